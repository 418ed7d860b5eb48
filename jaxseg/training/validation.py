"""Scoring while training: every validation pixel counted once, whatever the number of devices.

In: replicated peers and prepared records. Out: per peer an int64 confusion matrix, and the first few pictures.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.config import peer_sections
from jaxseg.data import pipeline
from jaxseg.data.records import Prepared
from jaxseg.models.factory import SIZE_MULTIPLE_PX
from jaxseg.training import parallel
from jaxseg.training.state import Peers


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
    total, shown = {}, []
    for batch, confusions, predictions in evaluated_batches(eval_step, peers, prepared, config):
        for name, confusion in parallel.unreplicate(confusions).items():
            total[name] = total.get(name, 0) + confusion.astype(np.int64)
        if sum(len(b["image"]) for b, _ in shown) < config.eval.figure_images:
            shown.append((batch, {n: parallel.gather(p) for n, p in predictions.items()}))
    for name, confusion in total.items():
        check_counted(name, confusion, pipeline.scored_pixels(prepared, config))

    def first(arrays):
        return np.concatenate(arrays)[: min(config.eval.figure_images, prepared.images("val"))]

    return Evaluation(
        total,
        images=as_bytes(first([b["image"] for b, _ in shown])),
        labels=first([b["label"] for b, _ in shown]).astype(np.uint8),
        predictions={name: first([p[name] for _, p in shown]) for name in total},
    )


def evaluated_batches(eval_step, peers: Peers, prepared: Prepared, config: ConfigDict) -> Iterator[tuple]:
    """(this host's batch, confusions, predictions) of every batch of the validation split."""
    multiple_px = max(SIZE_MULTIPLE_PX[section.model.name] for section in peer_sections(config).values())
    batches = pipeline.eval_batches(
        prepared, config, multiple_px=multiple_px, process=jax.process_index(), processes=jax.process_count()
    )
    for batch in pipeline.closing_iterator(batches):
        yield batch, *eval_step(peers, parallel.shard(batch))


def check_counted(name: str, confusion: np.ndarray, expected: int | None) -> None:
    if expected is not None and confusion.sum() != expected:
        raise RuntimeError(f"{name}: {confusion.sum()} pixels were scored, {expected} are in the records")


def as_bytes(image: np.ndarray) -> np.ndarray:
    """f32 in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)
