"""What color alone, and class frequency alone, score on a data set: the floor that a network has to clear.

    python -m scripts.figures.color_baseline [--config=configs/demo.py] [--config.data.source_dir=FOLDER]

Color: every pixel gets the class that its color (16 levels per channel) has most often in the training images.
Frequency: every pixel gets the most frequent class. Scored on the validation images as prepared, like a network.
"""

import sys

import numpy as np
from absl import flags

from jaxseg import cli
from jaxseg.data.prepare import prepare
from jaxseg.data.sources import read_sample
from jaxseg.labels import VOID
from jaxseg.metrics import mean_iou, pixel_accuracy

LEVELS = 16


def cells(image: np.ndarray) -> np.ndarray:
    """The color cell of every pixel, 0..LEVELS^3 - 1."""
    level = image.astype(np.int64) * LEVELS // 256
    return (level[..., 0] * LEVELS + level[..., 1]) * LEVELS + level[..., 2]


def pairs(data, split: str):
    """(image, label) of a split of raw or of prepared samples."""
    if hasattr(data, "samples"):
        return (read_sample(data, sample) for sample in data.samples[split])
    return ((record["image"], record["label"]) for record in data.records(split))


def fit_color(data, split: str) -> np.ndarray:
    """How often each class has each color, [cells, 256]."""
    counts = np.zeros((LEVELS**3, 256), np.int64)
    for image, label in pairs(data, split):
        np.add.at(counts, (cells(image).ravel(), label.ravel()), 1)
    counts[:, VOID] = 0
    return counts


def score_color(counts: np.ndarray, data, split: str) -> tuple[float, float]:
    """Mean IoU and accuracy of the most frequent class per color (unseen colors: the most frequent class)."""
    best = np.where(counts.sum(1) > 0, counts.argmax(1), counts.sum(0).argmax())
    confusion = np.zeros((256, 256), np.int64)
    for image, label in pairs(data, split):
        valid = label != VOID
        np.add.at(confusion, (label[valid], best[cells(image)][valid]), 1)
    return mean_iou(confusion), pixel_accuracy(confusion)


def execute() -> None:
    prepared = prepare(flags.FLAGS.config.data)
    counts = fit_color(prepared, "train")
    for name, table in (("color", counts), ("frequency", np.broadcast_to(counts.sum(0), counts.shape))):
        iou, accuracy = score_color(table, prepared, "val")
        print(f"{name}: mean IoU {iou:.4f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    sys.exit(cli.run(execute, usage=__doc__, define=lambda: cli.define_config_file("configs/demo.py")))
