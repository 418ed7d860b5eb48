"""Lovász-Softmax: a convex extension of 1 - IoU. Berman et al. (CVPR 2018, arXiv 1705.08790).

In: logits f32 [n, c], label int [n] and valid bool [n], n pixels that are scored together. Out: a scalar. Source: the
authors' code (https://github.com/bermanmaxim/LovaszSoftmax), classes="present", as segmentation_models_pytorch 0.6.0 has it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer


def lovasz(
    logits: Float[ArrayLike, "n c"], label: Integer[ArrayLike, " n"], valid: Bool[ArrayLike, " n"]
) -> Float[Array, ""]:
    """Mean over the classes that occur of sum_i m_i g_i: m_i = |[label is k] - p_k| of every pixel, and g_i by how much
    1 - IoU grows when pixel i is got wrong after all those with larger m. No class occurs: 0."""
    is_class = jax.nn.one_hot(label, logits.shape[-1], dtype=bool, axis=0) & valid[None]  # [c n]
    prob = jax.nn.softmax(logits).T
    errors = jnp.where(is_class, 1 - prob, prob)
    growth = jaccard_growth(lax.stop_gradient(jnp.where(valid[None], errors, -1)), is_class)
    of_class = jnp.where(valid[None], errors * growth, 0).sum(1)  # [c]
    occurs = is_class.any(1)
    return jnp.where(occurs, of_class, 0).sum() / jnp.maximum(occurs.sum(dtype=of_class.dtype), 1)


def jaccard_growth(errors: Float[Array, "c n"], is_class: Bool[Array, "c n"]) -> Float[Array, "c n"]:
    """g of `lovasz` for every pixel; pixels of negative error come last, so that they change no other's.

    g is a difference of rounded values near 1, as in the authors' code: in float32 each is off by up to 6e-8, and the gradient
    of an image of 224 × 224 and 19 classes by 2e-4 of its norm. The sum of all g stays exact.
    """
    n = errors.shape[1]
    packed = 2 * jnp.arange(n, dtype=jnp.int32)[None] + is_class.astype(jnp.int32)  # one value to sort along, not two
    _, packed = lax.sort((-errors, packed), num_keys=1)
    place, found = packed // 2, jnp.cumsum(packed % 2, axis=1)
    total = found[:, -1:]
    union = total + jnp.arange(1, n + 1, dtype=jnp.int32)[None] - found
    jaccard = 1 - (total - found).astype(errors.dtype) / union.astype(errors.dtype)
    growth = jnp.diff(jaccard, axis=1, prepend=jnp.zeros_like(jaccard[:, :1]))
    return jax.vmap(lambda at, g: jnp.zeros_like(g).at[at].set(g, unique_indices=True))(place, growth)
