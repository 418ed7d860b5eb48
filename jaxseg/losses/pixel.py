"""Losses of single pixels, unreduced: the caller masks nothing and averages once.

In: logits f32 [b, h, w, c], label int [b, h, w], valid bool [b, h, w] (False: void). Out: f32 [b, h, w], exactly 0,
with gradient exactly 0, where a pixel is void, whatever its logits are short of NaN and infinity.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Integer


def cross_entropy(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    class_weights: Float[Array, " c"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, "b h w"]:
    """Softmax cross-entropy, in nats: (1 - ε) w[label] n[label] + ε/c sum_k w[k] n[k], n[k] = logsumexp(logits) - logits[k].

    Args:
      logits: of the prediction.
      label: class of every valid pixel.
      valid: False where a pixel is void.
      class_weights: w; None: 1 for every class.
      label_smoothing: ε, the share of the truth that is spread over all classes.

    Returns:
      Of every pixel. Source: `torch.nn.functional.cross_entropy` with ignore_index=255 and reduction="none".
    """
    label = jnp.where(valid, label, 0)
    of_label = logit_of(label, logits)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    nats = log_sum - of_label
    if class_weights is not None:
        nats = class_weights[label] * nats
    if label_smoothing:
        of_all = log_sum[..., None] - logits
        if class_weights is not None:
            of_all = class_weights[None, None, None] * of_all
        nats = (1 - label_smoothing) * nats + label_smoothing * of_all.mean(-1)
    return jnp.where(valid, nats, 0.0)


def logit_of(label: Integer[ArrayLike, "b h w"], logits: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h w"]:
    """logits[..., label]."""
    is_class = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    return jnp.where(is_class, logits, 0).sum(-1)


def pixel_weights(
    label: Integer[ArrayLike, "b h w"], valid: Bool[ArrayLike, "b h w"], class_weights: Float[Array, " c"]
) -> Float[Array, "b h w"]:
    """The weight of every pixel's class, 0 where it is void: their sum divides the weighted cross-entropy."""
    return jnp.where(valid, class_weights[jnp.where(valid, label, 0)], 0.0)


def binary_cross_entropy(
    logits: Float[ArrayLike, "b h w c"], label: Integer[ArrayLike, "b h w"], valid: Bool[ArrayLike, "b h w"]
) -> Float[Array, "b h w"]:
    """Sigmoid cross-entropy of "is it class k?", summed over the classes k: sum_k softplus(x_k) - [k = label] x_k, in nats.

    Source: Zhao et al. (arXiv 1910.12037), L_bce of equation 17, as their code sums it.
    """
    label = jnp.where(valid, label, 0)
    of_label = logit_of(label, logits)
    return jnp.where(valid, jax.nn.softplus(logits).sum(-1) - of_label, 0.0)


def focal(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    gamma: Float[ArrayLike, ""],
) -> Float[Array, "b h w"]:
    """Softmax focal loss: (1 - p)^γ (-log p), p the probability of the label's class.

    Source: Lin et al. (arXiv 1708.02002), equation 4, without α.
    """
    return damped(cross_entropy(logits, label, valid), gamma)


def binary_focal(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    gamma: Float[ArrayLike, ""],
) -> Float[Array, "b h w"]:
    """Sigmoid focal loss of "is it class k?", mean over the classes k: the same, p being σ(x_k) for the label's class and
    1 - σ(x_k) for the others. Source: as `focal`; the mean is that of segmentation_models_pytorch 0.6.0.
    """
    is_class = jax.nn.one_hot(label, logits.shape[-1], dtype=bool) & valid[..., None]
    nats = jax.nn.softplus(jnp.where(is_class, -logits, logits))
    return jnp.where(valid, damped(nats, gamma).mean(-1), 0.0)


def damped(nats: Float[Array, "..."], gamma: Float[ArrayLike, ""]) -> Float[Array, "..."]:
    """(1 - p)^γ (-log p) from -log p. With p = 1 value and gradient are 0, also for γ < 1, where the power has none."""
    wrong = -jnp.expm1(-nats)  # 1 - p, of which 1 - exp(-nats) loses all digits once p is nearly 1
    unsure = ~(wrong <= 0)  # rounding may take it below 0; NaN stays NaN
    return jnp.where(unsure, jnp.where(unsure, wrong, 1) ** gamma * nats, 0.0)
