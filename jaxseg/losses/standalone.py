"""The losses by themselves, for training loops of one's own: averaged over the batch that is given.

In: logits [b, h, w, c], any float, and label int [b, h, w], where what is not in 0..c-1 (255, say) is void. Out: a
scalar, in float32 or wider, differentiable in the logits, finite also where classes are absent. A batch that is all void
is 0, with no gradient.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, Num

from jaxseg.losses.arguments import loss_of_labels
from jaxseg.losses.objective import check_choice, lovasz_loss_of, pixel_loss
from jaxseg.losses.overlap import tversky
from jaxseg.losses.pixel import pixel_weights
from jaxseg.ops import promote_to_float32, sum_pixels, valid_pixels

FOCAL_KINDS = {"softmax": "focal", "sigmoid": "focal_sigmoid"}  # of config.loss.pixel


@loss_of_labels("label_smoothing")
def cross_entropy_loss(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    *,
    class_weights: Sequence | Num[ArrayLike, "..."] | None = None,  # its shape is checked below, with a sentence
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Softmax cross-entropy, in nats: Σ ((1 - ε) w_y n_y + ε/c Σ_k w_k n_k) / Σ w_y over valid pixels, n_k = -log p_k.

    Source: `torch.nn.functional.cross_entropy(weight=…, label_smoothing=…, ignore_index=255)`.

    Args:
      logits: of the prediction.
      label: class y of every pixel.
      class_weights: w, one number of 0 or more per class; None: 1 each.
      label_smoothing: ε, 0 to 1.

    Returns:
      A scalar; 0 where no pixel has a weight.

    Raises:
      ValueError: for shapes or labels that do not fit, or not one weight per class.

    >>> logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]])).reshape(1, 1, 2, 2)
    >>> loss = cross_entropy_loss(logits, jnp.array([[[1, 0]]]), class_weights=jnp.array([1.0, 3.0]))
    >>> round(float(loss), 4)  # (3 ln 4/3 + ln 2) / 4
    0.389
    """
    logits, label, valid = promoted(logits, label)
    if class_weights is None:
        return pixel_loss(logits, label, valid, kind="softmax", label_smoothing=label_smoothing, **alone(logits, valid))
    of_class = jnp.asarray(class_weights, logits.dtype)
    if of_class.shape != logits.shape[-1:]:
        raise ValueError(f"class_weights {of_class.shape} with logits {logits.shape}; expected [c], one per class.")
    weights = sum_pixels(pixel_weights(label, valid, of_class))
    options = {"class_weights": of_class, "weights": weights, "label_smoothing": label_smoothing}
    return pixel_loss(logits, label, valid, kind="softmax", **options, **alone(logits, valid))


@loss_of_labels("kind")
def focal_loss(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    *,
    gamma: Float[ArrayLike, ""] = 2.0,
    kind: str = "softmax",
) -> Float[Array, ""]:
    """(1 - p)^γ (-log p), mean over valid pixels: Lin et al. (arXiv 1708.02002), equation 4, without α.

    Args:
      logits: of the prediction.
      label: class of every pixel.
      gamma: γ of 0 or more; with 0 it is cross-entropy.
      kind: "softmax", p being the probability of the label's class; or "sigmoid", every class by itself, p = σ(x) for the
        label's class and 1 - σ(x) for others, mean over classes too, as segmentation_models_pytorch 0.6.0 `FocalLoss`.

    Returns:
      A scalar.

    Raises:
      ValueError: for shapes or labels that do not fit, or another kind.

    >>> logits = jnp.log(jnp.array([1.0, 3.0])).reshape(1, 1, 1, 2)
    >>> round(float(focal_loss(logits, jnp.array([[[1]]]))), 4)  # ln(4/3) / 16
    0.018
    """
    check_choice("kind", kind, tuple(FOCAL_KINDS))
    logits, label, valid = promoted(logits, label)
    return pixel_loss(logits, label, valid, kind=FOCAL_KINDS[kind], gamma=gamma, **alone(logits, valid))


@loss_of_labels()
def dice_loss(
    logits: Float[ArrayLike, "b h w c"], label: Integer[ArrayLike, "b h w"], *, smooth: Float[ArrayLike, ""] = 0.0
) -> Float[Array, ""]:
    """Mean over classes of 1 - 2 (TP + s) / (P + T + 2 s): `tversky_loss` with α = β = ½.

    Args:
      logits: of the prediction.
      label: class of every pixel.
      smooth: s, in pixels.

    Returns:
      A scalar in 0..1.

    Raises:
      ValueError: for shapes or labels that do not fit.

    >>> logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]])).reshape(1, 1, 2, 2)
    >>> round(float(dice_loss(logits, jnp.array([[[1, 0]]]))), 4)  # 1 - (1 / 1.75 + 1.5 / 2.25) / 2
    0.381
    """
    return tversky(*promoted(logits, label), alpha=0.5, beta=0.5, smooth=smooth)


@loss_of_labels()
def tversky_loss(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    *,
    alpha: Float[ArrayLike, ""],
    beta: Float[ArrayLike, ""],
    smooth: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, ""]:
    """Mean over classes of 1 - (TP + s) / (TP + α FP + β FN + s), of softmax probabilities: Salehi et al. (arXiv 1706.05721).

    Sums are over the valid pixels of the whole batch; a class without a true pixel counts as 0. As
    segmentation_models_pytorch 0.6.0 `TverskyLoss`.

    Args:
      logits: of the prediction.
      label: class of every pixel.
      alpha: α, of false positives.
      beta: β, of false negatives.
      smooth: s, in pixels.

    Returns:
      A scalar in 0..1.

    Raises:
      ValueError: for shapes or labels that do not fit.

    >>> logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]])).reshape(1, 1, 2, 2)
    >>> label = jnp.array([[[1, 0]]])
    >>> round(float(tversky_loss(logits, label, alpha=1.0, beta=0.0)), 4)  # 1 - (0.5 / 0.75 + 0.75 / 1.25) / 2
    0.3667
    """
    return tversky(*promoted(logits, label), alpha=alpha, beta=beta, smooth=smooth)


@loss_of_labels("per_image")
def lovasz_loss(
    logits: Float[ArrayLike, "b h w c"], label: Integer[ArrayLike, "b h w"], *, per_image: bool = False
) -> Float[Array, ""]:
    """Lovász-Softmax over the classes that occur: Berman et al. (arXiv 1705.08790).

    Args:
      logits: of the prediction.
      label: class of every pixel.
      per_image: mean over images of the loss of each, as in jaxseg's own runs, and not of all their pixels together.

    Returns:
      A scalar in 0..1.

    Raises:
      ValueError: for shapes or labels that do not fit.

    >>> logits = jnp.log(jnp.array([1.0, 3.0])).reshape(1, 1, 1, 2)
    >>> round(float(lovasz_loss(logits, jnp.array([[[1]]]))), 4)  # 1 - p
    0.25
    """
    return lovasz_loss_of(*promoted(logits, label), per_image=per_image)


def promoted(
    logits: ArrayLike, label: ArrayLike
) -> tuple[Float[Array, "b h w c"], Integer[Array, "b h w"], Bool[Array, "b h w"]]:
    """The arrays, logits in float32 or wider, and where a pixel is valid."""
    logits = promote_to_float32(jnp.asarray(logits))
    label = jnp.asarray(label)
    return logits, label, valid_pixels(label, logits.shape[-1])


def alone(logits: Float[Array, "b h w c"], valid: Bool[Array, "b h w"]) -> dict:
    """`pixel_loss`'s account of the global batch where the arrays are all of it."""
    return {"pixels": valid.sum(dtype=logits.dtype), "num_parts": 1}
