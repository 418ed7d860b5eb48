"""Segmentation metrics from one integer confusion matrix: counted on devices, summed as int64, divided once.

In: predictions and labels, int [b, h, w] (any shape). Out: int [c, c] with the truth in rows, and from it, in float64
on the host, IoU per class, their means and accuracies. A class that occurs neither in truth nor in prediction has IoU
NaN ("absent") and stays out of the mean. Boundary IoU has counts of its own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer
from scipy import ndimage

from jaxseg.information import summarize_information
from jaxseg.ops import valid_pixels

BOUNDARY_WIDTH = 0.02  # of the image's diagonal: Cheng et al., "Boundary IoU" (CVPR 2021)


def confusion_matrix(
    prediction: Integer[ArrayLike, "*n"], label: Integer[ArrayLike, "*n"], num_classes: int
) -> Int[Array, "c c"]:
    """How many pixels of class i (row: truth) were called j (column).

    Args:
      prediction: class of every pixel.
      label: its true class; what is not in 0..num_classes-1 (255, say) is void and not counted.
      num_classes: c.

    Returns:
      The counts, exact up to 2^31 - 1 pixels a call.

    Raises:
      ValueError: for shapes that differ and, where values are known (not under jit), for a prediction outside 0..c-1 at
        a valid pixel.

    >>> confusion_matrix(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 255]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    if jnp.shape(prediction) != jnp.shape(label):
        raise ValueError(
            f"confusion_matrix: prediction has shape {jnp.shape(prediction)}, label {jnp.shape(label)}; they must be equal"
        )
    prediction = jnp.asarray(prediction)
    label = jnp.asarray(label)
    valid = valid_pixels(label, num_classes)
    wrong = valid & ~valid_pixels(prediction, num_classes)
    if not isinstance(wrong, jax.core.Tracer) and wrong.any():
        value = int(prediction[wrong][0])
        raise ValueError(
            f"confusion_matrix: prediction {value} is outside 0..{num_classes - 1} ({int(wrong.sum())} pixels)"
        )
    return count_pixels(prediction, label, valid, num_classes)


def count_pixels(
    prediction: Integer[ArrayLike, "*n"],
    label: Integer[ArrayLike, "*n"],
    valid: Bool[ArrayLike, "*n"],
    num_classes: int,
) -> Int[ArrayLike, "c c"]:
    """`confusion_matrix` of the valid pixels; NumPy arrays are counted by NumPy, which compiles nothing for their size."""
    if isinstance(prediction, np.ndarray):
        cell = label[valid].astype(np.int64) * num_classes + prediction[valid]
        return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)
    cell = jnp.where(valid, label.astype(jnp.int32) * num_classes + prediction.astype(jnp.int32), num_classes**2)
    return jnp.bincount(cell.ravel(), length=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)


def iou_per_class(confusion: Integer[ArrayLike, "c c"]) -> Float[np.ndarray, " c"]:
    """IoU = TP / (TP + FP + FN) per class, float64; NaN where the class is in neither truth nor prediction.

    >>> iou_per_class(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])).tolist()
    [0.75, 0.8, nan]
    """
    confusion = np.asarray(confusion).astype(np.int64)
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def mean_iou(confusion: Integer[ArrayLike, "c c"]) -> float:
    """Mean IoU over the classes that are present; NaN if none is."""
    return mean_of_present(iou_per_class(confusion))


def micro_iou(confusion: Integer[ArrayLike, "c c"]) -> float:
    """IoU pooled over classes: the sum of their intersections over that of their unions; NaN if nothing was counted.

    It is Acc / (2 - Acc) of the pixel accuracy Acc, as every wrong pixel is in two unions.

    >>> micro_iou(np.array([[3, 1], [1, 3]]))
    0.6
    """
    confusion = np.asarray(confusion).astype(np.int64)
    hit = np.trace(confusion)
    union = 2 * confusion.sum() - hit
    return float(hit / union) if union else float("nan")


def pixel_accuracy(confusion: Integer[ArrayLike, "c c"]) -> float:
    """Share of counted pixels that are right; NaN if none was counted."""
    confusion = np.asarray(confusion).astype(np.int64)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def one_vs_rest_accuracy(confusion: Integer[ArrayLike, "c c"]) -> float:
    """Equation 5 of the study (RECPAD 2024) to the letter: (TP + TN) / all per class, its mean over the classes present.

    It is 1 - 2 (1 - Acc) / c of the pixel accuracy Acc and c classes present, as every wrong pixel is wrong of two
    classes and right of the others. NaN if nothing was counted.

    >>> one_vs_rest_accuracy(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    0.875
    """
    confusion = np.asarray(confusion).astype(np.int64)
    total = confusion.sum()
    wrong = confusion.sum(0) + confusion.sum(1) - 2 * np.diag(confusion)
    right = 1 - wrong / np.maximum(total, 1)
    return mean_of_present(np.where(np.isnan(iou_per_class(confusion)), np.nan, right))


def class_accuracy(confusion: Integer[ArrayLike, "c c"]) -> Float[np.ndarray, " c"]:
    """Share of each class's pixels that are right (recall), float64; NaN where the truth has none."""
    confusion = np.asarray(confusion).astype(np.int64)
    truth = confusion.sum(1)
    return np.where(truth > 0, np.diag(confusion) / np.maximum(truth, 1), np.nan)


def mean_accuracy(confusion: Integer[ArrayLike, "c c"]) -> float:
    """Mean of `class_accuracy` over the classes that the truth has; NaN if it has none."""
    return mean_of_present(class_accuracy(confusion))


def frequency_weighted_iou(confusion: Integer[ArrayLike, "c c"]) -> float:
    """Mean of IoU weighted by the classes' pixels in the truth (Long et al., CVPR 2015); NaN if nothing was counted."""
    truth = np.asarray(confusion).astype(np.int64).sum(1)
    iou = iou_per_class(confusion)
    return float((truth * np.where(truth > 0, iou, 0)).sum() / truth.sum()) if truth.sum() else float("nan")


def mean_of_present(values: Float[np.ndarray, " c"]) -> float:
    """Mean of what is not NaN; NaN if all is."""
    present = ~np.isnan(values)
    return float(values[present].mean()) if present.any() else float("nan")


def boundary_counts(
    prediction: Integer[np.ndarray, "h w"],
    label: Integer[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"],
    num_classes: int,
) -> Int[np.ndarray, "two c"]:
    """Intersection and union of the boundary regions of one image, int64 [2, c]; add over images, then divide.

    A class's boundary region is those of its pixels that have another class, or the image's end, within d pixels along
    or across, d being 2 % of the diagonal (Cheng et al., CVPR 2021, for masks; here for label maps, in which void
    borders on nothing).
    """
    distance = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*label.shape))))
    truth_region = valid & is_near_boundary(label, valid, distance)
    found_region = valid & is_near_boundary(prediction, np.ones_like(valid), distance)

    def count(region: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes[region], minlength=num_classes)

    hit = count(truth_region & found_region & (label == prediction), label)
    union = count(truth_region, label) + count(found_region, prediction) - hit
    return np.stack([hit, union])


def is_near_boundary(
    classes: Integer[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], distance: int
) -> Bool[np.ndarray, "h w"]:
    """Whether the square of 2 distance + 1 pixels around holds two classes, or ends outside the image."""
    classes = classes.astype(np.int32)
    window = {"size": 2 * distance + 1, "mode": "constant"}
    lowest = ndimage.minimum_filter(np.where(valid, classes, 2**20), cval=-2, **window)
    highest = ndimage.maximum_filter(np.where(valid, classes, -1), cval=-1, **window)
    return lowest != highest


def summarize_confusion(confusion: Integer[np.ndarray, "c c"], names: Sequence[str]) -> dict:
    """All metrics of one confusion matrix, ready for JSON; an absent class is null."""
    iou = iou_per_class(confusion)
    return {
        "mean_iou": null_if_nan(mean_iou(confusion)),
        "pixel_accuracy": null_if_nan(pixel_accuracy(confusion)),
        "mean_accuracy": null_if_nan(mean_accuracy(confusion)),
        "frequency_weighted_iou": null_if_nan(frequency_weighted_iou(confusion)),
        "micro_iou": null_if_nan(micro_iou(confusion)),
        "one_vs_rest_accuracy": null_if_nan(one_vs_rest_accuracy(confusion)),
        "classes_present": int((~np.isnan(iou)).sum()),
        "pixels": int(confusion.sum()),
        "iou": by_class_name(names, iou),
        "accuracy": by_class_name(names, class_accuracy(confusion)),
        "information": summarize_information(confusion, names),
        "confusion": confusion.tolist(),
    }


def by_class_name(names: Sequence[str], values: Float[np.ndarray, " c"]) -> dict[str, float | None]:
    """A number per class, null where it is NaN."""
    return {name: null_if_nan(float(value)) for name, value in zip(names, values, strict=True)}


def null_if_nan(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(value) else value
