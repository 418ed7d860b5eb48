"""Scoring: every validation pixel counted once, whatever the number of devices.

    python -m jaxseg.evaluate --workdir=RUN [--checkpoint=last|best|STEP] [--output=FILE.json] [--config.field=value]

In: replicated peers and prepared records. Out: per peer an int64 confusion matrix and from it the metrics, as a JSON
with the resolved config, versions and device.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxseg import cli, parallel, show
from jaxseg.config import check_devices, peer_sections, validate
from jaxseg.data import pipeline
from jaxseg.data.prepare import Prepared, prepare
from jaxseg.models import SIZE_MULTIPLE_PX
from jaxseg.peers import restored_peers
from jaxseg.results import make_parent, provenance, scores, write_json
from jaxseg.step import Peers


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """confusion: peer -> int64 [c, c]. images, labels, predictions: the first few that were scored, uint8."""

    confusion: dict[str, np.ndarray]
    images: np.ndarray
    labels: np.ndarray
    predictions: dict[str, np.ndarray]


def evaluate(eval_step, peers: Peers, prepared: Prepared, config: ConfigDict) -> Evaluation:
    """Scores replicated `peers` on the validation split.

    Raises RuntimeError where the pixels counted are not those counted when the records were written.
    """
    multiple_px = max(SIZE_MULTIPLE_PX[section.model.name] for section in peer_sections(config).values())
    batches = pipeline.eval_batches(
        prepared, config, multiple_px=multiple_px, process=jax.process_index(), processes=jax.process_count()
    )
    total, shown = {}, []
    for batch in pipeline.closing(batches):
        confusions, predictions = eval_step(peers, parallel.shard(batch))
        for name, confusion in parallel.unreplicate(confusions).items():
            total[name] = total.get(name, 0) + confusion.astype(np.int64)
        if sum(len(b["image"]) for b, _ in shown) < config.eval.figure_images:
            shown.append((batch, {n: parallel.gather(p) for n, p in predictions.items()}))
    expected = pipeline.scored_pixels(prepared, config)
    for name, confusion in total.items():
        if expected is not None and confusion.sum() != expected:
            raise RuntimeError(f"{name}: {confusion.sum()} pixels were scored, {expected} are in the records")

    def first(arrays):
        return np.concatenate(arrays)[: min(config.eval.figure_images, prepared.images("val"))]

    return Evaluation(
        total,
        images=np.round(first([b["image"] for b, _ in shown]) * 255).astype(np.uint8),
        labels=first([b["label"] for b, _ in shown]).astype(np.uint8),
        predictions={name: first([p[name] for _, p in shown]) for name in total},
    )


def score_checkpoint(config: ConfigDict, workdir: Path, which: str) -> dict:
    """The results of one checkpoint of a run, ready for JSON."""
    validate(config)
    check_devices(config, devices=jax.device_count())
    prepared = prepare(config.data)
    step, peers = restored_peers(config, workdir, which)
    eval_step = parallel.compile_eval_step(num_classes=prepared.labels.num_classes)
    evaluation = evaluate(eval_step, parallel.replicate(peers), prepared, config)
    peers = {name: scores(confusion, prepared.labels.names) for name, confusion in evaluation.confusion.items()}
    return {"reported_peer": config.peer, "step": step, "peers": peers, **provenance(config, prepared)}


def define_flags() -> None:
    cli.define_run()
    flags.DEFINE_string("output", None, "JSON to write; default: WORKDIR/evaluation-STEP.json.")


def main() -> None:
    workdir, config = Path(flags.FLAGS.workdir), flags.FLAGS.config
    if flags.FLAGS.output:
        make_parent(Path(flags.FLAGS.output))
    results = score_checkpoint(config, workdir, flags.FLAGS.checkpoint)
    output = Path(flags.FLAGS.output or workdir / f"evaluation-{results['step']}.json")
    write_json(output, results)
    show.print_results(results)
    print(f"written: {output}")


if __name__ == "__main__":
    cli.run(main, usage=__doc__, define=define_flags)
