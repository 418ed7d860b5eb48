"""Losses of single pixels, unreduced: the caller masks nothing and averages once.

In: logits f32 [b, h, w, c], label int [b, h, w], valid bool [b, h, w] (False: void). Out: f32 [b, h, w], exactly 0,
with gradient exactly 0, where a pixel is void, whatever its logits are short of NaN and infinity.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Integer


def cross_entropy(
    logits: Float[ArrayLike, "b h w c"], label: Integer[ArrayLike, "b h w"], valid: Bool[ArrayLike, "b h w"]
) -> Float[Array, "b h w"]:
    """Softmax cross-entropy: logsumexp(logits) - logits[label], in nats.

    Source: `torch.nn.functional.cross_entropy` with ignore_index=255 and reduction="none".
    """
    label = jnp.where(valid, label, 0)
    of_label = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    return jnp.where(valid, jax.nn.logsumexp(logits, axis=-1) - of_label, 0.0)


def binary_cross_entropy(
    logits: Float[ArrayLike, "b h w c"], label: Integer[ArrayLike, "b h w"], valid: Bool[ArrayLike, "b h w"]
) -> Float[Array, "b h w"]:
    """Sigmoid cross-entropy of "is it class k?", summed over the classes k: sum_k softplus(x_k) - [k = label] x_k, in nats.

    Source: Zhao et al. (arXiv 1910.12037), L_bce of equation 17, as their code sums it.
    """
    label = jnp.where(valid, label, 0)
    of_label = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    return jnp.where(valid, jax.nn.softplus(logits).sum(-1) - of_label, 0.0)
