"""Segmentation metrics from one integer confusion matrix: counted on devices, summed as int64, divided once.

In: predictions and labels, int [b, h, w] (any shape). Out: int [c, c] with the truth in rows, and from it, in float64
on the host, IoU per class, their means and accuracies. A class that occurs neither in truth nor in prediction has IoU
NaN ("absent") and stays out of the mean. Boundary IoU has counts of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int
from scipy import ndimage

from jaxseg import metrics

BOUNDARY_WIDTH = 0.02  # of the image's diagonal: Cheng et al., "Boundary IoU" (CVPR 2021)


def confusion_matrix(
    prediction: Int[ArrayLike, "*n"], label: Int[ArrayLike, "*n"], num_classes: int
) -> Int[Array, "c c"]:
    """How many pixels of class i (row: truth) were called j (column). Labels outside 0..c-1 (255: void) are not counted.

    Exact up to 2^31 - 1 pixels a call. Raises ValueError for shapes that differ and, where values are known (not under
    jit), for a prediction outside 0..c-1 at a counted pixel.
    """
    if jnp.shape(prediction) != jnp.shape(label):
        raise ValueError(
            f"confusion_matrix: prediction has shape {jnp.shape(prediction)}, label {jnp.shape(label)}; they must be equal"
        )
    prediction, label = jnp.asarray(prediction).astype(jnp.int32), jnp.asarray(label).astype(jnp.int32)
    counted = (label >= 0) & (label < num_classes)
    wrong = counted & ((prediction < 0) | (prediction >= num_classes))
    if not isinstance(wrong, jax.core.Tracer) and wrong.any():
        value = int(prediction[wrong][0])
        raise ValueError(
            f"confusion_matrix: prediction {value} is outside 0..{num_classes - 1} ({int(wrong.sum())} pixels)"
        )
    cell = jnp.where(counted, label * num_classes + prediction, num_classes**2)
    return jnp.bincount(cell.ravel(), length=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """IoU = TP / (TP + FP + FN) per class, float64 [c]; NaN where the class is in neither truth nor prediction."""
    confusion = np.asarray(confusion).astype(np.int64)
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that are present; NaN if none is."""
    iou = iou_per_class(confusion)
    return float(iou[~np.isnan(iou)].mean()) if (~np.isnan(iou)).any() else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of counted pixels that are right; NaN if none was counted."""
    confusion = np.asarray(confusion).astype(np.int64)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of each class's pixels that are right (recall), float64 [c]; NaN where the truth has none."""
    confusion = np.asarray(confusion).astype(np.int64)
    truth = confusion.sum(1)
    return np.where(truth > 0, np.diag(confusion) / np.maximum(truth, 1), np.nan)


def mean_accuracy(confusion: np.ndarray) -> float:
    """Mean of `class_accuracy` over the classes that the truth has; NaN if it has none."""
    accuracy = class_accuracy(confusion)
    return float(accuracy[~np.isnan(accuracy)].mean()) if (~np.isnan(accuracy)).any() else float("nan")


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """Mean of IoU weighted by the classes' pixels in the truth (Long et al., CVPR 2015); NaN if nothing was counted."""
    truth = np.asarray(confusion).astype(np.int64).sum(1)
    iou = iou_per_class(confusion)
    return float((truth * np.where(truth > 0, iou, 0)).sum() / truth.sum()) if truth.sum() else float("nan")


def boundary_counts(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Intersection and union of the boundary regions of one image, int64 [2, c]; add over images, then divide.

    prediction, label: [h, w], label outside 0..c-1 is void and not counted. A class's boundary region is those of its
    pixels that have another class, or the image's end, within d pixels along or across, d being 2 % of the diagonal (Cheng
    et al., CVPR 2021, for masks; here for label maps, in which void borders on nothing).
    """
    prediction, label = np.asarray(prediction, np.int32), np.asarray(label, np.int32)
    valid = (label >= 0) & (label < num_classes)
    near = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*label.shape))))
    truth = np.where(valid & _has_others_near(label, valid, near), label, -1)
    found = np.where(valid & _has_others_near(prediction, np.ones_like(valid), near), prediction, -1)

    def count(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes[classes >= 0], minlength=num_classes)

    hit = count(np.where(truth == found, truth, -1))
    return np.stack([hit, count(truth) + count(found) - hit])


def _has_others_near(classes: np.ndarray, valid: np.ndarray, near: int) -> np.ndarray:
    """Whether the square of 2 near + 1 pixels around holds two classes, or ends outside the image; bool [h, w]."""
    low, high = (np.where(valid, classes, other) for other in (2**20, -1))
    window = {"size": 2 * near + 1, "mode": "constant"}
    lowest, highest = ndimage.minimum_filter(low, cval=-2, **window), ndimage.maximum_filter(high, cval=-1, **window)
    return lowest != highest


def scores(confusion: np.ndarray, names: tuple[str, ...]) -> dict:
    """The metrics of one confusion matrix, ready for JSON; an absent class is null."""
    iou = metrics.iou_per_class(confusion)
    summary = {
        "mean_iou": metrics.mean_iou(confusion),
        "pixel_accuracy": metrics.pixel_accuracy(confusion),
        "mean_accuracy": metrics.mean_accuracy(confusion),
        "frequency_weighted_iou": metrics.frequency_weighted_iou(confusion),
    }
    return {
        **{key: None if np.isnan(value) else value for key, value in summary.items()},
        "classes_present": int((~np.isnan(iou)).sum()),
        "pixels": int(confusion.sum()),
        "iou": by_name(names, iou),
        "accuracy": by_name(names, metrics.class_accuracy(confusion)),
        "confusion": confusion.tolist(),
    }


def by_name(names: tuple[str, ...], values: np.ndarray) -> dict[str, float | None]:
    """A number per class, null where it is NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}
