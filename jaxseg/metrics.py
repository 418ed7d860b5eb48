"""Segmentation metrics from one integer confusion matrix: counted on devices, summed as int64, divided once.

In: predictions and labels, int [b, h, w] (any shape). Out: int [c, c] with the truth in rows, and from it, in float64
on the host, IoU per class, their mean and the accuracy. A class that occurs neither in truth nor in prediction has IoU
NaN ("absent") and stays out of the mean.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int


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
