"""Scoring while training: every validation pixel counted once, whatever the number of devices.

In: replicated peers and prepared records. Out: per peer an int64 confusion matrix, and the first few pictures.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.config import peer_sections
from jaxseg.config_checks import SIZE_MULTIPLE_PX
from jaxseg.data import pipeline
from jaxseg.data.records import Prepared
from jaxseg.errors import InputError
from jaxseg.training import parallel
from jaxseg.training.state import Peers


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """confusion: peer -> int64 [c, c]. images, labels, predictions: the first few that were scored, uint8."""

    confusion: dict[str, np.ndarray]
    images: list[np.ndarray]
    labels: list[np.ndarray]
    predictions: dict[str, list[np.ndarray]]


def evaluate(eval_step: Callable, peers: Peers, prepared: Prepared, config: ConfigDict) -> Evaluation:
    """Scores the validation split.

    Args:
      eval_step: `parallel.compile_eval_step`'s.
      peers: replicated.
      prepared: the data.
      config: how, in `config.eval`.

    Returns:
      The counts, and pictures for the figure.

    Raises:
      RuntimeError: where the pixels counted are not those counted when the records were written.
    """
    figure_images = min(config.eval.figure_images, prepared.images("val"))
    shown = Evaluation({}, [], [], {name: [] for name in peers})
    batches = pipeline.eval_batches(
        prepared,
        config,
        multiple_px=size_multiple_px(config),
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    for batch in pipeline.closing_iterator(batches):
        confusions, predictions = eval_step(peers, parallel.shard(batch))
        for name, confusion in parallel.unreplicate(confusions).items():
            shown.confusion[name] = shown.confusion.get(name, 0) + confusion.astype(np.int64)
        if (missing := figure_images - len(shown.images)) > 0:
            shown.images.extend(np.array(batch["image"][:missing]))
            shown.labels.extend(np.array(batch["label"][:missing]))
            for name, prediction in predictions.items():
                shown.predictions[name].extend(parallel.gather(prediction)[:missing])
    for name, confusion in shown.confusion.items():
        check_pixel_count(name, confusion, pipeline.scored_pixels(prepared, config))
    return shown


def size_multiple_px(config: ConfigDict) -> int:
    """Heights and widths that all peers take."""
    return max(SIZE_MULTIPLE_PX[section.model.name] for section in peer_sections(config).values())


def plateau(evaluations: Sequence[Mapping], *, key: str, patience: int) -> str | None:
    """Why a run should end early, or None.

    Args:
      evaluations: the lines of eval.jsonl, so that a run that goes on decides as one that was never interrupted.
      key: what of them is looked at; higher is better, and None (nothing was scored) is worse than any number.
      patience: how many may follow the best, the first of equals; 0: any number.

    >>> lines = [{"step": step, "unet/mean_iou": iou} for step, iou in ((10, 0.2), (20, 0.3), (30, 0.3), (40, None))]
    >>> plateau(lines, key="unet/mean_iou", patience=3)
    >>> plateau(lines, key="unet/mean_iou", patience=2)
    'no better unet/mean_iou than 0.3000, of step 20, in 2 evaluations (config.eval.patience=2)'
    """
    values = [-math.inf if line[key] is None else line[key] for line in evaluations]
    if not patience or not values:
        return None
    best = values.index(max(values))
    since = len(values) - 1 - best
    if since < patience:
        return None
    reached = f"{values[best]:.4f}, of step {evaluations[best]['step']:,}"
    return f"no better {key} than {reached}, in {since} evaluations (config.eval.patience={patience})"


def check_valid_pixels(prepared: Prepared) -> None:
    """Refuses splits without a pixel that is not void: nothing to learn from, or no score. Raises InputError."""
    for split, lacks in (("train", "there is nothing to learn from"), ("val", "no score of it is defined")):
        if not prepared.valid_pixels(split):
            raise InputError(
                f"{prepared.folder}: every pixel of the {split} split of {prepared.name} ({prepared.images(split):,} images) is"
                f" void, so {lacks}; look at its masks: python -m jaxseg.data.check."
            )


def check_pixel_count(name: str, confusion: np.ndarray, expected: int | None) -> None:
    """Raises RuntimeError where not all valid pixels were counted, each once."""
    if expected is not None and confusion.sum() != expected:
        raise RuntimeError(f"{name}: {confusion.sum()} pixels were scored, {expected} are in the records")
