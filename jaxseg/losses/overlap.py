"""Dice and Tversky: how far the predicted pixels of a class and the true ones are the same.

In: logits f32 [b, h, w, c], label int [b, h, w] and valid bool [b, h, w]. Out: a scalar. Sums over pixels, of all images
together, are taken first and divided last, so the loss is of a whole batch and not a mean over its images. Source:
segmentation_models_pytorch 0.6.0, `DiceLoss` and `TverskyLoss` (mode="multiclass", ignore_index=255).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from jaxseg.ops import sum_pixels

LEAST_DIVISOR = 1e-7  # their `eps`


def tversky(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    alpha: Float[ArrayLike, ""],
    beta: Float[ArrayLike, ""],
    smooth: Float[ArrayLike, ""] = 0.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Mean over all classes of [k occurs] (1 - (TP + s) / (TP + α FP + β FN + s)); α = β = ½ is Dice.

    TP, FP and FN are sums over valid pixels of softmax probabilities: of true pixels, of others, and what is missing to 1
    on true pixels. A class without a true pixel counts as 0, and so does a batch that is all void.

    Args:
      logits: of the prediction.
      label: class of every valid pixel.
      valid: False where a pixel is void.
      alpha: weight of false positives. Source of the loss: Salehi et al. (arXiv 1706.05721), equation 4.
      beta: weight of false negatives.
      smooth: s.
      axis_name: of devices whose pixels count as one batch. The value is then the same on all of them, and the gradient on
        each is of the sum of their values (`lax.psum` is its own transpose): their mean is the gradient of the value.

    Returns:
      A scalar in 0..1.
    """
    is_class = jax.nn.one_hot(label, logits.shape[-1], dtype=bool) & valid[..., None]
    prob = jnp.where(valid[..., None], jax.nn.softmax(logits), 0)
    sums = tuple(map(sum_pixels, (jnp.where(is_class, prob, 0), prob, is_class.astype(prob.dtype))))
    hit, predicted, true = lax.psum(sums, axis_name) if axis_name else sums  # [c]
    divisor = hit + alpha * (predicted - hit) + beta * (true - hit) + smooth
    score = (hit + smooth) / jnp.maximum(divisor, LEAST_DIVISOR)
    return jnp.where(true > 0, 1 - score, 0).mean()
