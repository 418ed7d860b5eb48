"""What RMI compares, after downsampling: of every image and class, a map of truth and a map of probability.

In: logits [b, h, w, c], label int [b, h, w] and valid bool [b, h, w]. Out: truth and prob [b, c, h', w'] in float32
(float64 logits stay float64). Source: the RMI authors' `forward_sigmoid` and `rmi_lower_bound`
(https://github.com/ZJULearning/RMI/blob/10a40cd/losses/rmi/rmi.py), which pool with stride = window size and padding
size // 2 on both sides, as PyTorch's max_pool2d, avg_pool2d and interpolate do.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from jaxseg.config import choices_of
from jaxseg.ops import max_pool, pad_to_windows, promote_to_float32, resize_bilinear, window_views

POOLS = choices_of("loss.pool")
LEAST_PROB = 1e-6  # `_CLIP_MIN` of their code


def pooled_size(size: int, *, pool: str, pool_size: int) -> int:
    """How many rows (or columns) are left of `size`."""
    if pool == "none" or pool_size == 1:
        return size
    if pool == "interpolate":
        return size // pool_size
    return (size + 2 * (pool_size // 2)) // pool_size


def pooled_maps(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    valid: Bool[ArrayLike, "b h w"],
    *,
    pool: str,
    pool_size: int,
    clip: bool = False,
) -> tuple[Float[Array, "b c hp wp"], Float[Array, "b c hp wp"]]:
    """Truth and probability of every image and class.

    Truth is the one-hot label and prob is sigmoid(logits), both 0 at void pixels; then prob gets its least value, 1e-6.

    Args:
      logits: any float; the sigmoid is in float32 or wider.
      label: class of every valid pixel.
      valid: False where a pixel is void.
      pool: "max" and "avg" go over windows of pool_size × pool_size; "interpolate" takes the nearest label and the
        bilinear probability (align_corners=True) at 1 / pool_size of the size; "none".
      pool_size: window and stride in pixels.
      clip: whether the least probability is a maximum, as in the authors' `forward_softmax_sigmoid`, or added, as in
        their `forward_sigmoid`.

    Returns:
      truth and prob.
    """
    logits = promote_to_float32(jnp.asarray(logits))  # bfloat16 must not reach the sigmoid
    if pool == "none" or pool_size == 1:
        pool = "none"
    downsample = {"max": _max_pooled, "avg": _avg_pooled, "interpolate": _interpolated, "none": _unpooled}[pool]
    truth, prob = downsample(logits, jnp.asarray(label), jnp.asarray(valid), pool_size, clip)
    return jnp.moveaxis(truth.astype(logits.dtype), -1, 1), jnp.moveaxis(prob, -1, 1)


def _unpooled(logits, label, valid, size, clip):
    del size
    truth = jax.nn.one_hot(label, logits.shape[-1], dtype=bool) & valid[..., None]
    return truth, _at_least(jnp.where(valid[..., None], jax.nn.sigmoid(logits), 0), clip)


def _max_pooled(logits, label, valid, size, clip):
    classes = logits.shape[-1]
    class_or_none = window_views(jnp.where(valid, label.astype(jnp.int32), -1), size, padding=size // 2, fill=-1)
    truth = functools.reduce(jnp.logical_or, [jax.nn.one_hot(view, classes, dtype=bool) for view in class_or_none])
    # The sigmoid rises, so it may follow the maximum: there are size² times fewer values then.
    # The barrier: else XLA for GPUs lets the transposition into the maximum, and reads all logits a second time.
    logits = lax.optimization_barrier(max_pool(jnp.where(valid[..., None], logits, -jnp.inf), size, size // 2))
    return truth, _at_least(jax.nn.sigmoid(logits), clip)


def _avg_pooled(logits, label, valid, size, clip):
    truth, prob = _unpooled(logits, label, valid, size, clip)
    return avg_pool(truth.astype(prob.dtype), size), avg_pool(prob, size)


def _interpolated(logits, label, valid, size, clip):
    truth, prob = _unpooled(logits, label, valid, size, clip)
    h, w = (length // size for length in prob.shape[1:3])
    return nearest(truth, size), resize_bilinear(prob, (h, w), align_corners=True)


def _at_least(prob: Array, clip: bool) -> Array:
    return jnp.maximum(prob, LEAST_PROB) if clip else prob + LEAST_PROB


def avg_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b hp wp c"]:
    """Average over windows; padding counts as zeros (count_include_pad=True, PyTorch's default)."""
    x = pad_to_windows(x, size, padding=size // 2, fill=0)
    b, h, w, c = x.shape
    return x.reshape(b, h // size, size, w // size, size, c).sum((2, 4)) / size**2


def nearest(x: Bool[Array, "b h w c"], size: int) -> Bool[Array, "b hp wp c"]:
    """The pixel at floor(index · h / h'), reckoned in float32 as PyTorch does."""

    def index(full):
        reduced = full // size
        steps = np.arange(reduced, dtype=np.float32) * (np.float32(full) / np.float32(reduced))
        return np.minimum(np.floor(steps).astype(int), full - 1)

    rows, columns = (index(n) for n in x.shape[1:3])
    return x[:, rows[:, None], columns]
