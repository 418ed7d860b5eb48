"""What RMI compares, after downsampling: of every image and class, a map of truth and a map of probability.

In: logits [b, h, w, c] and label int [b, h, w]; a label outside 0..c-1 is void. Out: truth and prob [b, c, h', w'] in
float32 (float64 logits stay float64). Source: the RMI authors' `forward_sigmoid` and `rmi_lower_bound`
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

POOLS = choices_of("loss.pool")
LEAST_PROB = 1e-6  # `_CLIP_MIN` of their code
PRECISION = lax.Precision.HIGHEST


def pooled_size(size: int, *, pool: str, pool_size: int) -> int:
    """How many rows (or columns) are left of `size`."""
    if pool == "none" or pool_size == 1:
        return size
    if pool == "interpolate":
        return size // pool_size
    return (size + 2 * (pool_size // 2) - pool_size) // pool_size + 1


def pooled_maps(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    *,
    pool: str,
    pool_size: int,
    clip: bool = False,
) -> tuple[Float[Array, "b c hp wp"], Float[Array, "b c hp wp"]]:
    """Truth and probability of every image and class.

    Truth is the one-hot label and prob is sigmoid(logits), both 0 at void pixels; then prob gets its least value, 1e-6:
    added, as in the authors' `forward_sigmoid`, or with `clip` as maximum, as in their `forward_softmax_sigmoid`. Pool
    "max" and "avg" go over windows of pool_size × pool_size; "interpolate" takes the nearest label and the bilinear
    probability (align_corners=True) at 1 / pool_size of the size.
    """
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # bfloat16 must not reach the sigmoid
    classes, dtype = jnp.arange(logits.shape[-1]), logits.dtype
    label = jnp.asarray(label).astype(jnp.int32)
    valid = (label >= 0) & (label < logits.shape[-1])
    at_least = (lambda p: jnp.maximum(p, LEAST_PROB)) if clip else (lambda p: p + LEAST_PROB)
    if pool == "max" and pool_size > 1:
        # The sigmoid rises, so it may follow the maximum: there are pool_size² times fewer values then.
        truth = functools.reduce(jnp.logical_or, [v[..., None] == classes for v in views(label, pool_size, fill=-1)])
        prob = at_least(jax.nn.sigmoid(max_pool(jnp.where(valid[..., None], logits, -jnp.inf), pool_size)))
    else:
        truth = label[..., None] == classes
        prob = at_least(jnp.where(valid[..., None], jax.nn.sigmoid(logits), 0))
        if pool == "avg":
            truth, prob = avg_pool(truth.astype(dtype), pool_size), avg_pool(prob, pool_size)
        elif pool == "interpolate" and pool_size > 1:
            truth, prob = nearest(truth, pool_size), bilinear(prob, pool_size)
    return tuple(jnp.moveaxis(x.astype(dtype), -1, 1) for x in (truth, prob))


def padded(x: Array, size: int, fill) -> Array:
    """x [b, h, w, …] with size // 2 of `fill` in front, and behind it cut or filled up to whole windows."""
    before, config = size // 2, [(0, 0, 0)] * x.ndim
    for axis in (1, 2):
        covered = size * pooled_size(x.shape[axis], pool="max", pool_size=size)
        config[axis] = (before, covered - before - x.shape[axis], 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def views(x: Array, size: int, fill) -> list[Array]:
    """The size² elements of every window, in row-major order, each [b, h', w', …]."""
    x = padded(jnp.asarray(x), size, fill)
    return [x[:, row::size, column::size] for row in range(size) for column in range(size)]


def avg_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b hp wp c"]:
    """Average over windows; padding counts as zeros (count_include_pad=True, PyTorch's default)."""
    x = padded(x, size, fill=0)
    b, h, w, c = x.shape
    return x.reshape(b, h // size, size, w // size, size, c).sum((2, 4)) / size**2


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b hp wp c"]:
    """Maximum over windows; its gradient goes to the first maximum in row-major order, as in PyTorch.

    XLA's own gradient (select-and-scatter) is slow on every platform; that of `jnp.max` splits ties, which makes the
    gradient of a constant prediction another one.
    """
    return functools.reduce(jnp.maximum, views(x, size, fill=-jnp.inf))


def _max_pool_forward(x, size):
    best, *others = views(x, size, fill=-jnp.inf)
    place = jnp.zeros(best.shape, jnp.int32)
    for k, view in enumerate(others, 1):
        place = jnp.where(view > best, k, place)
        best = jnp.maximum(best, view)
    return best, (place, x.shape)


def _max_pool_backward(size, residual, g):
    place, (b, h, w, c) = residual
    here = place[:, :, None, :, None, :] == jnp.arange(size**2).reshape(1, 1, size, 1, size, 1)
    hp, wp = g.shape[1:3]
    x = jnp.where(here, g[:, :, None, :, None, :], 0).reshape(b, hp * size, wp * size, c)
    before = size // 2  # undo `padded`
    config = [(0, 0, 0), (-before, h + before - hp * size, 0), (-before, w + before - wp * size, 0), (0, 0, 0)]
    return (lax.pad(x, jnp.zeros((), x.dtype), config),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def nearest(x: Bool[Array, "b h w c"], size: int) -> Bool[Array, "b hp wp c"]:
    """The pixel at floor(index · h / h'), reckoned in float32 as PyTorch does."""

    def index(full):
        reduced = full // size
        steps = np.arange(reduced, dtype=np.float32) * (np.float32(full) / np.float32(reduced))
        return np.minimum(np.floor(steps).astype(int), full - 1)

    rows, columns = (index(n) for n in x.shape[1:3])
    return x[:, rows[:, None], columns]


def bilinear(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b hp wp c"]:
    """Two products with a matrix of two weights a row: 1/size of the rows, 1/size of the columns, corners kept."""
    rows, columns = (interpolation_matrix(n, n // size, x.dtype) for n in x.shape[1:3])
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=PRECISION)
    return jnp.einsum("jw,biwc->bijc", columns, x, precision=PRECISION)


def interpolation_matrix(full: int, reduced: int, dtype) -> np.ndarray:
    """[reduced, full]: row i weights the two neighbours of i · (full - 1) / (reduced - 1), reckoned in `dtype`."""
    scale = np.asarray(full - 1, dtype) / np.asarray(max(reduced - 1, 1), dtype)
    place = np.arange(reduced, dtype=dtype) * scale
    low = np.minimum(place.astype(int), full - 1)
    high, weight = np.minimum(low + 1, full - 1), place - low.astype(dtype)
    matrix, rows = np.zeros((reduced, full), dtype), np.arange(reduced)
    matrix[rows, low] = 1 - weight
    matrix[rows, high] += weight
    return matrix
