"""Scores a checkpoint, image by image, in the run's own way or another.

    python -m jaxseg.evaluate --workdir=RUN [--checkpoint=last|best|STEP] [--output=FILE.json] [--config.field=value]
        [--full_resolution] [--resize=run|none] [--window_px=224 [--overlap=0.5]] [--scales=0.75,1,1.25] [--flip]

Without further flags: on the prepared validation images, as the run's own config says. With --full_resolution on the
raw images and labels: predictions are brought back to the label's size. Windows, scales and mirror image as in
`python -m jaxseg.predict`. In: replicated peers and images. Out: per peer an int64 confusion matrix and from it the
metrics; as a command a JSON with scores of every image too, config, versions and device, and beside it a folder of
small pictures for `python -m jaxseg.report --html`.
"""

import dataclasses
import itertools
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxseg import cli
from jaxseg.config import peer_sections
from jaxseg.config_checks import check_devices, validate
from jaxseg.console import progress_bar
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare, raw_source
from jaxseg.data.records import Prepared
from jaxseg.data.sources import read_sample
from jaxseg.errors import InputError
from jaxseg.files import make_parent, parallel_map, write_json
from jaxseg.inference.per_image import Tally, worst
from jaxseg.inference.predictor import Network, View, define_view, given_view, label_map, restored, scored
from jaxseg.provenance import provenance
from jaxseg.reporting import terminal
from jaxseg.training import parallel
from jaxseg.training.failures import failures_as_errors
from jaxseg.training.peers import restored_peers
from jaxseg.training.state import Peers
from jaxseg.training.validation import as_bytes, check_counted, evaluated_batches

WORST = 5  # images that the command names


@dataclasses.dataclass(frozen=True)
class Scored:
    """One image, uint8 [h, w, 3], its label and predictions by peer, uint8 [h, w]; its number and name in the split."""

    number: int
    id: str
    image: np.ndarray
    label: np.ndarray
    predictions: dict[str, np.ndarray]


def score_checkpoint(
    config: ConfigDict,
    workdir: Path | None,
    which: str,
    *,
    view: View | None = None,
    full_resolution: bool = False,
    gallery: Path | None = None,
) -> dict:
    """The results of one checkpoint of a run, ready for JSON: scores of all peers, together and image by image.

    view: how the networks look at an image; None: as `config.eval` says. gallery: the folder for small pictures.
    """
    validate(config)
    check_devices(config, devices=jax.device_count())
    prepared = prepare(config.data)
    tally = Tally(prepared.labels, list(peer_sections(config)), gallery=gallery)
    if view is None and not full_resolution:
        step, peers = restored_peers(config, workdir, which)
        images, protocol = by_protocol(parallel.replicate(peers), prepared, config), str_of_protocol(config)
    else:
        view = view or View(batch=config.eval.batch_size)
        networks = restored(config, workdir, which, names=list(peer_sections(config)))
        step, samples = networks[0].step, raw_samples(config) if full_resolution else record_samples(prepared)
        sizes = "raw labels" if full_resolution else "prepared labels"
        images, protocol = by_view(networks, samples, view), f"{sizes}, every pixel once; images {view}"
    with progress_bar("scoring the validation split", prepared.images("val")) as advance:
        for one in images:
            tally.add(one.number, one.id, one.image, one.label, one.predictions)
            advance(1)
    results = {"reported_peer": config.peer, "step": step, "protocol": protocol, **tally.results()}
    if not full_resolution:
        for name, scores in results["peers"].items():
            check_counted(name, np.array(scores["confusion"]), pipeline.scored_pixels(prepared, config))
    return results | provenance(config, prepared)


def str_of_protocol(config: ConfigDict) -> str:
    size = {"square": "square, side", "shorter_side": "shorter side", "none": "as they are"}[config.data.resize]
    size += "" if config.data.resize == "none" else f" {config.data.size_px} pixels"
    crop = f"{config.data.crop_px} pixels"
    views = {
        "whole": "every pixel once",
        "center": f"central {crop}",
        "random": f"random {crop}, {config.eval.passes} passes",
    }
    return f"prepared images and labels ({size}), {views[config.eval.view]}"


def by_protocol(peers: Peers, prepared: Prepared, config: ConfigDict) -> Iterator[Scored]:
    """What the run's own scoring sees, image by image."""
    records, numbers = prepared.records("val"), numbers_of([r["id"] for r in prepared.records("val")])
    eval_step = parallel.compile_eval_step(num_classes=prepared.labels.num_classes)
    position = 0
    for batch, _, predictions in evaluated_batches(eval_step, peers, prepared, config):
        predictions = {name: parallel.gather(p) for name, p in predictions.items()}
        for row in range(len(batch["image"])):
            crop, i = divmod(position, len(records))
            if crop == config.eval.passes:  # the last batch is filled up with void
                return
            record = records[i]
            whole = config.eval.view == "whole"
            inside = np.s_[row, : record["label"].shape[0], : record["label"].shape[1]] if whole else row
            yield Scored(
                numbers[i] + crop * len(records),
                record["id"].decode() + (f", crop {crop + 1}" if config.eval.passes > 1 else ""),
                as_bytes(batch["image"][inside]),
                batch["label"][inside].astype(np.uint8),
                {name: p[inside] for name, p in predictions.items()},
            )
            position += 1


def by_view(networks: list[Network], samples: Iterable[Scored], view: View) -> Iterator[Scored]:
    """`samples` with what each network predicts, at the label's size."""
    samples = iter(samples)
    while chunk := list(itertools.islice(samples, view.batch)):
        images = [sample.image for sample in chunk]
        scores = {network.name: scored(network, images, view=view) for network in networks}
        for sample in chunk:
            yield dataclasses.replace(sample, predictions={name: label_map(next(s)) for name, s in scores.items()})


def record_samples(prepared: Prepared) -> Iterator[Scored]:
    records = prepared.records("val")
    numbers = numbers_of([record["id"] for record in records])
    for i, record in enumerate(records):
        yield Scored(numbers[i], record["id"].decode(), record["image"], record["label"], {})


def raw_samples(config: ConfigDict) -> Iterator[Scored]:
    """The validation split as it is in the files. Raises InputError where the config does not say where they are."""
    if (source := raw_source(config.data)) is None:
        raise InputError(
            "--full_resolution reads the raw labels, and config.data.source_dir does not say where they are; give"
            " --config.data.source_dir=DIR."
        )
    samples = source.samples["val"]
    numbers = numbers_of([sample.id for sample in samples])
    pairs = parallel_map(lambda sample: read_sample(source, sample), samples)
    for number, sample, (image, label) in zip(numbers, samples, pairs, strict=True):
        yield Scored(number, sample.id, image, label, {})


def numbers_of(ids: list) -> list[int]:
    """Place of each in alphabetical order: the same in the raw files and in the shuffled records."""
    place = {name: number for number, name in enumerate(sorted(ids))}
    return [place[name] for name in ids]


def define_flags() -> None:
    cli.define_run()
    define_view()
    flags.DEFINE_string("output", None, "JSON to write; default: WORKDIR/evaluation-STEP….json, named after the flags.")
    flags.DEFINE_bool("full_resolution", False, "Score at the size of the raw labels.")


def execute() -> None:
    values, config = flags.FLAGS, flags.FLAGS.config
    workdir = Path(values.workdir).expanduser() if values.workdir else None
    if workdir is None and not values.output:
        raise InputError("--output=FILE.json is needed where there is no --workdir.")
    beside = Path(values.output or workdir / "evaluation.json").expanduser()
    if beside.suffix != ".json":
        raise InputError(
            f"--output={beside}: expected a file ending in .json; a folder of the same name goes beside it."
        )
    make_parent(beside)
    full = values.full_resolution
    given = [name for name in ("resize", "window_px", "overlap", "scales", "flip") if values[name].present]
    view = given_view(config, resize="run" if full else "none") if given else None
    part = beside.with_name(f"{beside.stem}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        with failures_as_errors(config, beside.parent, predicting=True):
            results = score_checkpoint(
                config, workdir, values.checkpoint, view=view, full_resolution=full, gallery=part
            )
            output = beside if values.output else workdir / default_name(results["step"], full, given)
            finish(output, results, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    terminal.print_results(results)
    for image_id, iou in worst(results, WORST):
        print(f"worst: {image_id}, mean IoU {iou:.4f}")
    print(f"written: {output}, {output.with_suffix('')}")


def default_name(step: int, full_resolution: bool, given: list[str]) -> str:
    """evaluation-1200.json, evaluation-1200-full_resolution-flip-scales_1_1.5.json: of each way a file of its own."""
    ways = ["full_resolution"] if full_resolution else []
    for name in given:
        value = str(flags.FLAGS[name].value).replace(",", "_")
        ways.append(name if value == "True" else f"{name}_{value}")
    return "-".join([f"evaluation-{step}", *ways]) + ".json"


def finish(output: Path, results: dict, pictures: Path) -> None:
    """Pictures first, so that no JSON is without its own."""
    output.unlink(missing_ok=True)
    shutil.rmtree(output.with_suffix(""), ignore_errors=True)
    pictures.rename(output.with_suffix(""))
    write_json(output, results)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags)


if __name__ == "__main__":
    sys.exit(main())
