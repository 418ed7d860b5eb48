"""Scores image by image: confusion, boundaries, which images are worst, and a gallery to look at.

In: image, label map and the peers' predictions of one image after another. Out: scores per peer as JSON, and small
pictures in a folder.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg import metrics
from jaxseg.data.transforms import resize_image
from jaxseg.labels import Labels
from jaxseg.metrics import by_name, scores

GALLERY_PX = 640  # longest side of the gallery's pictures: two beside each other on a common screen


class Tally:
    """What has been scored so far. gallery: the folder for pictures, None for none."""

    def __init__(self, labels: Labels, peers: list[str], *, gallery: Path | None = None):
        self.labels, self.gallery = labels, gallery
        self.confusion = {name: [] for name in peers}  # per image, int64 [c, c]
        self.boundary = {name: np.zeros((2, labels.num_classes), np.int64) for name in peers}
        self.images = []  # {"number", "id"} of each

    def add(
        self, number: int, image_id: str, image: np.ndarray, label: np.ndarray, predictions: Mapping[str, np.ndarray]
    ) -> None:
        """One image: uint8 [h, w, 3], its label and what each peer predicts, uint8 [h, w]."""
        classes = self.labels.num_classes
        for name, prediction in predictions.items():
            valid = label < classes  # counted by NumPy: `metrics.confusion_matrix` would compile for every image size
            cells = label[valid].astype(np.int64) * classes + prediction[valid]
            self.confusion[name].append(np.bincount(cells, minlength=classes**2).reshape(classes, classes))
            self.boundary[name] += metrics.boundary_counts(prediction, label, classes)
        self.images.append({"number": number, "id": image_id})
        if self.gallery is not None:
            self.draw(number, image, label, predictions)

    def draw(self, number: int, image: np.ndarray, label: np.ndarray, predictions: Mapping[str, np.ndarray]) -> None:
        """NUMBER_image.jpg, NUMBER_truth.png and NUMBER_PEER.png, of at most GALLERY_PX."""
        shrink = min(1.0, GALLERY_PX / max(label.shape))
        h, w = (max(1, round(side * shrink)) for side in label.shape)
        stem = self.gallery / f"{number:04d}"
        Image.fromarray(resize_image(image, (h, w))).save(f"{stem}_image.jpg", quality=85)
        for name, classes in ({"truth": label} | dict(predictions)).items():
            picture = Image.fromarray(classes).resize((w, h), Image.Resampling.NEAREST)
            picture.putpalette(self.labels.palette.tobytes())
            picture.save(f"{stem}_{name}.png")

    def results(self) -> dict:
        """ "images": number and id of each in order of number; "peers": scores of all, and "images" of each likewise."""
        order = sorted(range(len(self.images)), key=lambda i: self.images[i]["number"])
        peers = {}
        for name, confusions in self.confusion.items():
            hit, union = self.boundary[name]
            boundary = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
            mean = np.nan if np.isnan(boundary).all() else float(np.nanmean(boundary))
            peers[name] = scores(sum(confusions), self.labels.names) | {
                "boundary_iou": None if np.isnan(mean) else mean,
                "boundary": by_name(self.labels.names, boundary),
                "images": [self.of_one(confusions[i]) for i in order],
            }
        return {"images": [self.images[i] for i in order], "peers": peers}

    def of_one(self, confusion: np.ndarray) -> dict:
        score = scores(confusion, self.labels.names)
        return {key: score[key] for key in ("mean_iou", "pixel_accuracy", "iou")}


def worst(results: dict, count: int) -> list[tuple[str, float]]:
    """Id and mean IoU of the images that the reported peer does worst on; images that are all void are left out."""
    scored = results["peers"][results["reported_peer"]]["images"]
    pairs = [(image["id"], score["mean_iou"]) for image, score in zip(results["images"], scored, strict=True)]
    return sorted((pair for pair in pairs if pair[1] is not None), key=lambda pair: pair[1])[:count]
