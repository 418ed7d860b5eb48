"""Scores image by image: confusion, boundaries, which images are worst, and small pictures to look at.

In: image, label map and the peers' predictions of one image after another. Out: scores per peer as JSON, and
thumbnails in a folder.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from jaxseg import metrics
from jaxseg.data.transforms import resize_image
from jaxseg.labels import VOID, Labels

THUMBNAIL_PX = 640  # longest side: two beside each other on a common screen


@dataclasses.dataclass(frozen=True)
class LabeledImage:
    """One image and its label map, 255 being void; its number and name in the split."""

    number: int
    id: str
    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]

    @property
    def valid(self) -> Bool[np.ndarray, "h w"]:
        return self.label != VOID


class PerImageScores:
    """What has been scored so far.

    Args:
      labels: the classes.
      peers: names of the networks that are scored.
      thumbnails: the folder for small pictures; None for none.
    """

    def __init__(self, labels: Labels, peers: Sequence[str], *, thumbnails: Path | None = None):
        self.labels = labels
        self.thumbnails = thumbnails
        self.confusion = {name: [] for name in peers}  # per image, int64 [c, c]
        self.boundary = {name: np.zeros((2, labels.num_classes), np.int64) for name in peers}
        self.images = []  # {"number", "id"} of each

    def update(self, sample: LabeledImage, predictions: Mapping[str, UInt8[np.ndarray, "h w"]]) -> None:
        """Counts one image, and saves its pictures where they are asked for."""
        classes = self.labels.num_classes
        for name, prediction in predictions.items():
            counts = metrics.count_pixels(prediction, sample.label, sample.valid, classes)
            self.confusion[name].append(counts)
            self.boundary[name] += metrics.boundary_counts(prediction, sample.label, sample.valid, classes)
        self.images.append({"number": sample.number, "id": sample.id})
        if self.thumbnails is not None:
            self.save_thumbnails(sample, predictions)

    def save_thumbnails(self, sample: LabeledImage, predictions: Mapping[str, np.ndarray]) -> None:
        """NUMBER_image.jpg, NUMBER_truth.png and NUMBER_PEER.png, of at most THUMBNAIL_PX."""
        shrink = min(1.0, THUMBNAIL_PX / max(sample.label.shape))
        h, w = (max(1, round(side * shrink)) for side in sample.label.shape)
        stem = self.thumbnails / f"{sample.number:04d}"
        Image.fromarray(resize_image(sample.image, (h, w))).save(f"{stem}_image.jpg", quality=85)
        for name, classes in ({"truth": sample.label} | dict(predictions)).items():
            picture = Image.fromarray(classes).resize((w, h), Image.Resampling.NEAREST)
            picture.putpalette(self.labels.palette.tobytes())
            picture.save(f"{stem}_{name}.png")

    def results(self) -> dict:
        """{"images": number and id of each, in order of number; "peers": scores of all, and of each image likewise}."""
        order = sorted(range(len(self.images)), key=lambda i: self.images[i]["number"])
        peers = {}
        for name, confusions in self.confusion.items():
            intersection, union = self.boundary[name]
            boundary = np.where(union > 0, intersection / np.maximum(union, 1), np.nan)
            peers[name] = metrics.summarize_confusion(sum(confusions), self.labels.names) | {
                "boundary_iou": metrics.null_if_nan(metrics.mean_of_present(boundary)),
                "boundary": metrics.by_class_name(self.labels.names, boundary),
                "images": [self.image_scores(confusions[i]) for i in order],
            }
        return {"images": [self.images[i] for i in order], "peers": peers}

    def image_scores(self, confusion: np.ndarray) -> dict:
        iou = metrics.iou_per_class(confusion)
        return {
            "mean_iou": metrics.null_if_nan(metrics.mean_of_present(iou)),
            "pixel_accuracy": metrics.null_if_nan(metrics.pixel_accuracy(confusion)),
            "iou": metrics.by_class_name(self.labels.names, iou),
        }


def worst_images(results: Mapping, count: int) -> list[tuple[str, float]]:
    """Id and mean IoU of the images that the reported peer does worst on; images that are all void are left out."""
    scored = results["peers"][results["reported_peer"]]["images"]
    pairs = [(image["id"], score["mean_iou"]) for image, score in zip(results["images"], scored, strict=True)]
    return sorted((pair for pair in pairs if pair[1] is not None), key=lambda pair: pair[1])[:count]
