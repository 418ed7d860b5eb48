"""Can the network learn four images? The first thing to try when training fails.

    python -m jaxseg.main --config=FILE --mode=overfit [--workdir=DIR] [--config.field=value]

In: an experiment. Out: whether its networks, losses, optimisers and data get above a mean IoU of 0.95 on the central crops
of the first four training images within a minute of training (or `config.train.max_steps`), in the same loop as any run;
what was trained lies in DIR/trial, which every trial makes anew. Exit status 1 where they do not.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.config import default, peer_sections
from jaxseg.config_checks import check_devices, validate
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.data.records import Prepared, Summary
from jaxseg.data.transforms import center_crop
from jaxseg.files import is_own_folder, make_own_folder, read_json, remove_own_folder
from jaxseg.labels import VOID
from jaxseg.metrics import mean_iou
from jaxseg.models.pretrained import settle_pretrained
from jaxseg.training.failures import failures_as_errors
from jaxseg.training.loop import train
from jaxseg.training.validation import Evaluation
from jaxseg.training.workdir import lock_workdir

IMAGES = 4
GOAL = 0.95  # mean IoU: below it something is not learned; 1 is kept from it by thin things at the image's size
SECONDS = 60
MOST_STEPS = 10_000
FEWEST_PIXELS = 16  # of a class, in all images; a rarer one would weigh as much in the mean as any other
GROWTH = 1.3  # from one scoring to the next: few of them, and the first soon


@dataclasses.dataclass(frozen=True)
class FewImages(Prepared):
    """A few images as training and as validation split, held in memory."""

    held: tuple[dict, ...]

    def records(self, split: str) -> Sequence:
        return self.held


def first_images(prepared: Prepared, *, crop_px: int) -> FewImages:
    """The central squares, crop_px wide, of the first IMAGES training images: a random crop of one is itself. Classes with
    fewer than FEWEST_PIXELS are void in them."""
    pipeline.check_crop(prepared, "train", crop_px)
    records = prepared.records("train")
    images = []
    for number in range(min(IMAGES, len(records))):
        image, label = center_crop(records[number]["image"], records[number]["label"], crop_px=crop_px)
        images.append(records[number] | {"image": image, "label": label})
    count = pixels_of_label(images)
    rare = count < FEWEST_PIXELS
    images = [
        record | {"label": np.where(rare[record["label"]], VOID, record["label"]).astype(np.uint8)} for record in images
    ]
    summary = Summary()
    for record in images:
        summary.add(record["id"].decode(), record["image"], record["label"])
    before = prepared.summary["train"]
    of_images = before | summary.as_dict() | {"sha256": before["sha256"]}
    return FewImages(
        prepared.name, prepared.folder, {"train": of_images, "val": of_images}, prepared.labels, tuple(images)
    )


def pixels_of_label(records: Sequence[dict]) -> np.ndarray:
    """int64 [256]"""
    return np.bincount(np.concatenate([record["label"].ravel() for record in records]), minlength=256)


def overfit_config(config: ConfigDict) -> ConfigDict:
    """A copy that sees the images again and again, as they are, at a constant rate, whole when it scores them.

    No average lags behind.
    """
    config = config.copy_and_resolve_references()
    batch = math.ceil(IMAGES / jax.device_count()) * jax.device_count()
    config.train.update({"batch_size": batch, "accumulate_steps": 1, "epochs": MOST_STEPS * batch // IMAGES})
    config.eval.update({"batch_size": batch, "view": "whole", "passes": 1, "figure_images": IMAGES, "patience": 0})
    config.augment.update(default().augment)
    for section in peer_sections(config).values():
        section.optim.update({"schedule": "constant", "warmup_steps": 0, "ema_decay": 0.0})
    return config


def overfit(config: ConfigDict, workdir: Path) -> dict:
    """The trial's results, with "learned": whether the reported peer reached GOAL. Raises as `loop.train_and_evaluate`."""
    validate(config)
    settle_pretrained(config)
    config = overfit_config(config)
    folder = workdir / "trial"
    check_devices(config, devices=jax.device_count())
    remove_own_folder(folder, why="where the trial goes (--workdir)", is_own=is_trial)
    make_own_folder(folder)
    evaluated_at = []

    def should_stop(evaluation: Evaluation) -> bool:
        evaluated_at.append(time.monotonic())  # the first comes after the first step: from there all is compiled
        is_over = not config.train.max_steps and evaluated_at[-1] - evaluated_at[0] > SECONDS
        return is_over or mean_iou(evaluation.confusion[config.peer]) > GOAL

    with failures_as_errors(config, folder):
        prepared = first_images(prepare(config.data), crop_px=config.data.crop_px)
        with lock_workdir(folder):
            results = train(
                config,
                folder,
                prepared,
                started_at=time.monotonic(),
                eval_steps=evaluation_steps(config),
                should_stop=should_stop,
            )
    reached = results["peers"][config.peer]["mean_iou"]
    is_learned = reached is not None and reached > GOAL
    return results | {"learned": is_learned, "training_s": evaluated_at[-1] - evaluated_at[0]}


def is_trial(folder: Path) -> bool:
    """Whether a trial made it; earlier versions left no mark."""
    if is_own_folder(folder) or folder.is_symlink() or not (folder / "config.json").is_file():
        return is_own_folder(folder)
    return {"config", "data"} <= read_json(folder / "config.json").keys()


def evaluation_steps(config: ConfigDict) -> set[int]:
    """Steps to score at: 1, 2, 3, 4, 6, 8, 11, …, and the last."""
    last = config.train.max_steps or MOST_STEPS
    steps = [1]
    while steps[-1] < last:
        steps.append(min(last, math.ceil(steps[-1] * GROWTH)))
    return set(steps)


def verdict(results: dict, config: ConfigDict, losses: Sequence[float]) -> str:
    """What came of it, and where it did not, what to look at."""
    reached = results["peers"][config.peer]["mean_iou"] or 0.0
    took = f"{results['step']:,} steps, {results['training_s']:.0f} s after the first"
    if results["learned"]:
        return f"learned: mean IoU {reached:.3f} on {results['data']['train']} images ({took})"
    before = losses[0]
    after = float(np.mean(losses[-10:]))
    rate = config.optim.learning_rate
    fell = f"the loss went from {before:.3g} to {after:.3g}"
    hint = (
        f"it hardly fell: try config.optim.learning_rate={rate * 10:g} or {rate / 10:g} (now {rate:g}), and look at the labels in"
        " predictions.png"
        if after > 0.7 * before
        else "it falls: the network learns, but slowly here; give it more steps, config.train.max_steps=N"
    )
    iou = {name: value for name, value in results["peers"][config.peer]["iou"].items() if value is not None}
    worst = min(iou, key=iou.get) if iou else "no class"
    least = f"worst: {worst}, {iou.get(worst, 0.0):.3f}"
    return f"not learned: mean IoU {reached:.3f} of {GOAL} ({least}; {took}); {fell}, {hint}"
