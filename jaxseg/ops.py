"""Array operations that networks, losses and metrics share, with PyTorch's numerics.

In: arrays [b, h, w, c]. Out: arrays pooled or resized, float32 or wider where precision matters. Sources: PyTorch's
documentation of `MaxPool2d` and `interpolate`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

Length = Any  # of an image's side: int, or in an exported program the symbol of one, which is of a private type of JAX


def float32_or_float64(dtype: jnp.dtype) -> jnp.dtype:
    """What to compute in: float32, or float64 where that is given, to compare with float64 oracles."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def promote_to_float32(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """float32, or float64 as it is: to compare with float64 oracles."""
    return jnp.asarray(x, float32_or_float64(x.dtype))


def valid_pixels(label: Integer[ArrayLike, "*n"], num_classes: int) -> Bool[Array, "*n"]:
    """Where a bare label is a class, 0..num_classes-1; what is not (255, say) is void.

    >>> valid_pixels(jnp.array([0, 2, 255, -1]), 3).tolist()
    [True, True, False, False]
    """
    return (label >= 0) & (label < num_classes)


def sum_pixels(x: Float[ArrayLike, "b h w *c"]) -> Float[Array, "*c"]:
    """Sum over images, rows and columns; each row first, and the barrier keeps it so.

    XLA adds up small arrays on a CPU one by one, which is off by 9e-7 of the sum of 2 × 24 × 32 positive numbers in
    float32; so it is off by 2e-7. Values: tests/test_ops.py.
    """
    rows = lax.optimization_barrier(jnp.sum(x, axis=2))
    return rows.sum((0, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: Float[ArrayLike, "b h w c"], size: int, padding: int = 0) -> Float[Array, "b h2 w2 c"]:
    """Maximum over windows of size × size, which do not overlap: `torch.nn.MaxPool2d(size, size, padding)`.

    The gradient goes to the first maximum in row-major order, as in PyTorch. XLA's own (select-and-scatter) is slow on
    every platform; that of `jnp.max` splits ties, which makes the gradient of a constant prediction another one.

    Args:
      x: the maps; rows and columns beyond the last whole window are left out.
      size: side of the windows, and their stride.
      padding: rows and columns of -inf on every side.

    Returns:
      The maxima, in the dtype of `x`.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    return functools.reduce(jnp.maximum, window_views(x, size, padding=padding, fill=-jnp.inf))


def window_views(x: ArrayLike, size: int, *, padding: int, fill: int | float) -> list[Array]:
    """The size² views [b, h', w', ...] of x that hold, for every window, its first element, its second, ..."""
    x = pad_to_windows(jnp.asarray(x), size, padding=padding, fill=fill)
    b, h, w, *rest = x.shape
    x = x.reshape(b, h // size, size, w // size, size, *rest)
    return [x[:, :, row, :, column] for row in range(size) for column in range(size)]


def pad_to_windows(x: Array, size: int, *, padding: int, fill: int | float) -> Array:
    """x [b, h, w, ...] with `padding` rows and columns of `fill` around, cut to whole windows."""
    windows = [(length + 2 * padding) // size for length in x.shape[1:3]]
    sides = [(padding, n * size - length - padding, 0) for n, length in zip(windows, x.shape[1:3], strict=True)]
    if not any(any(side) for side in sides):
        return x
    return lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *sides, *[(0, 0, 0)] * (x.ndim - 3)])


def _max_pool_forward(x, size, padding):
    best, *others = window_views(x, size, padding=padding, fill=-jnp.inf)
    place = jnp.zeros(best.shape, jnp.uint8)
    for k, view in enumerate(others, 1):
        place = jnp.where(view > best, jnp.uint8(k), place)
        best = jnp.maximum(best, view)
    return best, (place, x.shape)


def _max_pool_backward(size, padding, residual, g):
    place, (b, h, w, c) = residual
    here = place[:, :, None, :, None, :] == jnp.arange(size**2, dtype=jnp.uint8).reshape(1, 1, size, 1, size, 1)
    rows, columns = (n * size for n in g.shape[1:3])
    x = jnp.where(here, g[:, :, None, :, None, :], 0).reshape(b, rows, columns, c)
    undo = [(-padding, length + padding - padded, 0) for length, padded in ((h, rows), (w, columns))]
    return (lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *undo, (0, 0, 0)]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def resize_bilinear(
    x: Float[ArrayLike, "*b h w c"], size: tuple[Length, Length], *, align_corners: bool = False
) -> Float[ArrayLike, "*b h2 w2 c"]:
    """Bilinear resizing as `torch.nn.functional.interpolate(mode="bilinear")`, without antialiasing.

    Two matrix products, which need no transposed copies; `jax.image.resize` makes several of the large map. At full
    precision: in TF32 or bfloat16, as GPUs and TPUs multiply by default, every logit would be rounded.

    Args:
      x: maps; a NumPy array is resized on the host.
      size: height and width of the result.
      align_corners: whether the centers of the corner pixels stay where they are; else pixels are areas, and half-pixel
        centers correspond.

    Returns:
      The resized maps, in float32 or wider.

    >>> resize_bilinear(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), (1, 4)).ravel().tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    on_host = isinstance(x, np.ndarray)
    if not on_host:
        x = promote_to_float32(x)
    *b, h, w, c = x.shape
    rows, columns = size
    if (h, w) == (rows, columns):
        return x
    matmul = np.matmul if on_host else functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    weigh = align_corners_weights if align_corners else half_pixel_weights
    along_rows = weigh(w, columns, x.dtype)
    down_columns = weigh(h, rows, x.dtype)
    x = matmul(along_rows, x)  # [*b, h, columns, c]
    return matmul(down_columns, x.reshape(*b, h, columns * c)).reshape(*b, rows, columns, c)


def half_pixel_weights(n: Length, m: Length, dtype: Any) -> np.ndarray | Array:
    """[m, n]: output i is read at (i + ½) n/m - ½, clamped to the centers of the first and last input.

    Positions are counted in integers, in 2m-ths of an input; n and m may be the symbols of an exported program.
    """
    xp = np if isinstance(n, int) and isinstance(m, int) else jnp
    at = xp.clip((2 * xp.arange(m) + 1) * n - m, 0, 2 * m * (n - 1))
    return xp.maximum(0, 1 - xp.abs(at[:, None] - 2 * m * xp.arange(n)[None]) / (2 * m)).astype(dtype)


def align_corners_weights(n: Length, m: Length, dtype: Any) -> np.ndarray | Array:
    """[m, n]: output i is read at i (n - 1) / (m - 1), reckoned in `dtype` as PyTorch does.

    For the symbols of an exported program it is counted in integers, in (m - 1)-ths of an input; there m is 2 or more.
    """
    if not (isinstance(n, int) and isinstance(m, int)):
        distance = jnp.abs(jnp.arange(m)[:, None] * (n - 1) - jnp.arange(n)[None] * (m - 1))
        return jnp.maximum(0, 1 - distance / (m - 1)).astype(dtype)
    scale = np.asarray(n - 1, dtype) / np.asarray(max(m - 1, 1), dtype)
    place = np.arange(m, dtype=dtype) * scale
    low = np.minimum(place.astype(int), n - 1)
    high = np.minimum(low + 1, n - 1)
    weight = place - low.astype(dtype)
    matrix = np.zeros((m, n), dtype)
    output = np.arange(m)
    matrix[output, low] = 1 - weight
    matrix[output, high] += weight
    return matrix


def adaptive_average_pool(x: Float[ArrayLike, "b h w c"], bins: int) -> Float[Array, "b n n c"]:
    """Means of `bins` × `bins` parts of each map, as `torch.nn.AdaptiveAvgPool2d`, in float32 or wider.

    Part i goes from floor(i h / n) to ceil((i + 1) h / n): neighbors may share a row.

    >>> adaptive_average_pool(jnp.arange(3.0).reshape(1, 1, 3, 1), 2)[0, 0, :, 0].tolist()
    [0.5, 1.5]
    """
    x = promote_to_float32(x)
    rows, columns = (_part_weights(length, bins, x.dtype) for length in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=lax.Precision.HIGHEST)


def _part_weights(length: Length, bins: int, dtype: Any) -> Array:
    """[bins, length]: 1 / its size within part i, 0 outside."""
    place = jnp.arange(length)[None]
    number = jnp.arange(bins)[:, None]
    inside = (place >= number * length // bins) & (place < -((-(number + 1) * length) // bins))
    return inside.astype(dtype) / inside.sum(1, keepdims=True).astype(dtype)


def repeat_pixels(x: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Every pixel as 2 × 2: nearest-neighbor upsampling."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
