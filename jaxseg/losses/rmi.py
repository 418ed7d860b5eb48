"""Region Mutual Information (RMI) loss: how much of a region of the truth a region of the prediction leaves open.

Source: Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019 (arXiv 1910.12037), and
its code (https://github.com/ZJULearning/RMI/blob/10a40cd/losses/rmi/rmi.py). Of one image and class, Y and P are the
d × n matrices whose columns are the n regions of radius × radius pixels (d = radius²) of truth and probability, centred
over n. The bound of the paper is -½ log det M (equation 14) with the conditional covariance M = Σyy - Σyp (Σpp + αI)⁻¹
Σypᵀ (equation 13); the loss is ½ log det(M + αI) / d.

In float32 that difference loses all digits once predictions are confident, and its Cholesky factor is NaN. Here M is
never computed. M + αI is the Schur complement of Σpp + αI in the Gram matrix of

    Z = [P  √αI  0 ]        so in   Z Zᵀ = L Lᵀ,   L = [L11   0 ]        L22 L22ᵀ = M + αI,   W = Σyp (Σpp + αI)⁻¹
        [Y   0  √αI]                                   [L21  L22]                              = L21 L11⁻¹

and the lower d rows of L⁻¹Z are L22⁻¹ (Y - W P), orthogonal to P: a least-squares fit by shifted Cholesky QR, whose
errors are relative to the residual rather than to Σyy (`whiten`). W minimises the residual's squares with the ridge, so
differentiation with W held fixed is exact.
Dimensions: b h w c as everywhere, d region size, n number of regions.
"""

# Unsure: the equation numbers, 17 for the whole loss among them, are from memory; the formulas are the authors' code's.

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer

from jaxseg.config import FIELDS
from jaxseg.losses import arguments
from jaxseg.losses.arguments import check_arrays
from jaxseg.losses.rmi_maps import POOLS, pooled_maps, pooled_size
from jaxseg.ops import valid_pixels

ALPHA = 5e-4  # α of the authors' code, `_POS_ALPHA`
PIVOT_OFFSET = 1e-8  # what their `log_det_by_cholesky` adds to each pivot
MAX_RADIUS = FIELDS["loss.radius"].at_most
RIDGE = 8  # × 2d × machine epsilon: covers the rounding of an inner product eightfold. Values: tests/losses/test_rmi.py
SEGMENT = 256  # columns of one inner product; its rounding grows with its length
CPU_SEGMENT = 2**13  # likewise on a CPU, whose library sums in blocks and is slow for small products
REGION_ELEMENTS = 2**26  # d × n of all maps at once on an accelerator, as many as fit: 256 MiB each of P and Y
CACHE_ELEMENTS = 2**19  # likewise on a CPU, 2 MiB each: ten maps of 75², one of 224². Measured: scripts/SPEED.md
UNROLLED_ROWS = 18  # radius 3, the default; longer sums take long to compile. Bytes that it saves: scripts/SPEED.md

matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)  # no TF32, no bfloat16
loss_of_labels = arguments.loss_of_labels("radius", "pool", "pool_size")


@loss_of_labels
def rmi_loss(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    *,
    radius: int = 3,
    pool: str = "max",
    pool_size: int = 3,
) -> Float[Array, ""]:
    """Mean over images of the sum over classes of `rmi_lower_bound`: the second term of the paper's loss, equation 17.

    It is negative for good predictions (its least value is c · ½ log α = -3.8 c) and needs a pixel term beside it:
    `jaxseg.losses.pixel_and_rmi_loss`.

    Args:
      logits: as for `rmi_lower_bound`, and so are the others.
      label: class of every pixel.
      radius: side of the regions.
      pool: downsampling before regions are cut.
      pool_size: its window.

    Returns:
      A scalar, differentiable in `logits`.

    Raises:
      ValueError: while tracing, as `rmi_lower_bound`.

    >>> label = jnp.arange(256).reshape(1, 16, 16) // 128
    >>> loss, gradient = jax.value_and_grad(rmi_loss)(jnp.zeros((1, 16, 16, 2)), label)
    >>> gradient.shape
    (1, 16, 16, 2)
    """
    return rmi_lower_bound(logits, label, radius=radius, pool=pool, pool_size=pool_size).mean(0).sum()


@loss_of_labels
def rmi_lower_bound(
    logits: Float[ArrayLike, "b h w c"],
    label: Integer[ArrayLike, "b h w"],
    *,
    radius: int = 3,
    pool: str = "max",
    pool_size: int = 3,
) -> Float[Array, "b c"]:
    """½ log det(M + αI) / d of every image and class: the paper's lower bound of the information, negated, per element.

    Args:
      logits: floats of any width; float64 stays, everything else is float32 inside.
      label: class of every pixel. What is not in 0..c-1 (255, say) is void and counts as truth 0 and probability 0, as
        in the authors' code.
      radius: side of the square regions in pixels, 1 to 10.
      pool: downsampling before regions are cut, "max", "avg", "interpolate" or "none"; see `jaxseg.losses.rmi_maps`.
      pool_size: its window and stride in pixels.

    Returns:
      The bounds, float32 or float64. A class without a pixel gives ½ log α = -3.80 and no gradient; so does an image
      that is all void.

    Raises:
      ValueError: while tracing, where an argument is unusable or the downsampled image is smaller than a region.

    >>> rmi_lower_bound(jnp.zeros((1, 16, 16, 2)), jnp.full((1, 16, 16), 255)).round(2).tolist()
    [[-3.799999952316284, -3.799999952316284]]
    """
    logits = jnp.asarray(logits)
    label = jnp.asarray(label)
    check_arguments(logits, label, radius=radius, pool=pool, pool_size=pool_size)
    valid = valid_pixels(label, logits.shape[-1])
    truth, prob = pooled_maps(logits, label, valid, pool=pool, pool_size=pool_size)
    return rmi_of_maps(truth, prob, radius)


def check_arguments(logits: ArrayLike, label: ArrayLike, *, radius: int, pool: str, pool_size: int) -> None:
    """Raises ValueError with what was got and what is expected."""
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}; expected one of {', '.join(POOLS)}.")
    if not 1 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius={radius}; expected 1 to {MAX_RADIUS}.")
    if pool_size < 1:
        raise ValueError(f"pool_size={pool_size}; expected at least 1.")
    check_arrays(logits, label)
    shape = jnp.shape(logits)
    left = [pooled_size(size, pool=pool, pool_size=pool_size) for size in shape[1:3]]
    if min(left) < radius:
        raise ValueError(
            f"an image of {shape[1]}×{shape[2]} pixels is {left[0]}×{left[1]} after pool={pool!r}, pool_size={pool_size}:"
            f" smaller than a region of radius={radius}. Use larger images, or a smaller radius or pool_size."
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rmi_of_maps(truth: Float[Array, "b c hp wp"], prob: Float[Array, "b c hp wp"], radius: int) -> Float[Array, "b c"]:
    """`rmi_and_gradient` of every map. The gradient with respect to `prob` comes with the value; `truth` has none."""
    return rmi_and_gradient(truth, prob, radius)[0]


def _rmi_of_maps_forward(truth, prob, radius):
    return rmi_and_gradient(truth, prob, radius)


def _rmi_of_maps_backward(radius, gradient, g):
    del radius
    return None, g[..., None, None] * gradient


rmi_of_maps.defvjp(_rmi_of_maps_forward, _rmi_of_maps_backward)


def rmi_and_gradient(
    truth: Float[Array, "b c hp wp"], prob: Float[Array, "b c hp wp"], radius: int
) -> tuple[Float[Array, "b c"], Float[Array, "b c hp wp"]]:
    """`rmi_of_map` of every image and class, or what it comes to where truth is constant: log √α and no gradient.

    Most classes of most images are constant. On a CPU only the others are computed, in groups whose region matrices stay
    in the cache; elsewhere as many maps at once as REGION_ELEMENTS allows.
    """
    b, c, h, w = truth.shape
    maps = tuple(x.reshape(b * c, h, w) for x in (truth, prob))
    constant = (maps[0] == maps[0][:, :1, :1]).all((1, 2))
    at_once, in_cache = (min(b * c, max(1, n // (radius**2 * h * w))) for n in (REGION_ELEMENTS, CACHE_ELEMENTS))
    value, gradient = lax.platform_dependent(
        (*maps, constant),
        cpu=functools.partial(varying_maps_in_groups, radius=radius, at_once=in_cache),
        default=functools.partial(all_maps, radius=radius, at_once=at_once),
    )
    return value.reshape(b, c), gradient.reshape(b, c, h, w)


def all_maps(maps: tuple[Array, Array, Array], *, radius: int, at_once: int) -> tuple[Array, Array]:
    """`rmi_or_constant` of (truth, prob, constant) stacked, `at_once` of them together: no loop where that is all."""
    unroll = 2 * radius**2 <= UNROLLED_ROWS
    of_map = functools.partial(rmi_or_constant, radius=radius, segment=SEGMENT, unroll=unroll)
    if at_once >= len(maps[0]):
        return jax.vmap(of_map)(*maps)
    return lax.map(lambda m: of_map(*m), maps, batch_size=at_once)


def varying_maps_in_groups(maps: tuple[Array, Array, Array], *, radius: int, at_once: int) -> tuple[Array, Array]:
    """The same, but only of groups of `at_once` maps that vary; the last group may overlap the one before."""
    truth, prob, constant = maps
    order = jnp.argsort(constant)  # stable: the varying ones first
    groups = ((~constant).sum() + at_once - 1) // at_once
    of_group = jax.vmap(functools.partial(rmi_or_constant, radius=radius, segment=CPU_SEGMENT, unroll=False))

    def step(i, results):
        group = lax.dynamic_slice_in_dim(order, i * at_once, at_once)
        new = of_group(truth[group], prob[group], constant[group])
        return tuple(of_all.at[group].set(x) for of_all, x in zip(results, new, strict=True))

    start = (jnp.full(len(truth), bound_of_constant(prob.dtype)), jnp.zeros_like(prob))
    return lax.fori_loop(0, groups, step, start)


def rmi_or_constant(
    truth: Float[Array, "hp wp"], prob: Float[Array, "hp wp"], constant: Bool[Array, ""], **options: Any
) -> tuple[Float[Array, ""], Float[Array, "hp wp"]]:
    """`rmi_of_map`, or where truth is constant what that comes to but for rounding."""
    value, gradient = rmi_of_map(truth, prob, **options)
    return jnp.where(constant, bound_of_constant(prob.dtype), value), jnp.where(constant, 0, gradient)


def bound_of_constant(dtype: jnp.dtype) -> Float[Array, ""]:
    """log √α: the residual of a constant truth is 0."""
    return jnp.log(jnp.sqrt(jnp.asarray(ALPHA, dtype)) + PIVOT_OFFSET)


def rmi_of_map(
    truth: Float[Array, "hp wp"], prob: Float[Array, "hp wp"], *, radius: int, segment: int, unroll: bool
) -> tuple[Float[Array, ""], Float[Array, "hp wp"]]:
    """v = ½ log det(M + αI) / d of one map, and ∂v/∂prob.

    v is the mean of log L22_ii. Since W minimises M, ∂v/∂P = -(1/d) Wᵀ (M + αI)⁻¹ (Y - W P) (the envelope theorem); its
    mean over n is 0, so centring P passes it on unchanged. The lower rows of L⁻¹ are L22⁻¹ [-W  I].
    """
    d = radius**2
    prob_rows, to_pixels = jax.vjp(functools.partial(regions, radius=radius), prob)
    rows = [*prob_rows, *regions(truth, radius)]  # 2d of [h w]
    means = jnp.stack([row.mean() for row in rows])
    z = segments(jnp.stack(rows).reshape(2 * d, -1) - means[:, None], segment)  # [s 2d k]
    if unroll:
        pieces = [segments((row - mean).reshape(1, -1), segment) for row, mean in zip(rows, means, strict=True)]
        combine = functools.partial(combine_unrolled, pieces=pieces)
    else:
        combine = functools.partial(combine_rows, z=z)
    diagonal, inverse = whiten(z, combine)
    pivots, lower = diagonal[d:], inverse[d:]
    value = jnp.log(pivots + PIVOT_OFFSET).mean()
    # The offset weighs rows by L22_ii / (L22_ii + offset).
    to_regions = matmul(lower[:, :d].T, (pivots / (pivots + PIVOT_OFFSET))[:, None] * lower) / d  # [d 2d]
    gradient = combine(to_regions)  # [s d k]
    h, w = prob_rows[0].shape
    return value, to_pixels([gradient[:, i].ravel()[: h * w].reshape(h, w) for i in range(d)])[0]


def combine_rows(weights: Float[Array, "e r"], z: Float[Array, "s r k"]) -> Float[Array, "s e k"]:
    """weights · z, as a matrix product of every segment."""
    return matmul(jnp.broadcast_to(weights, (len(z), *weights.shape)), z)


def combine_unrolled(weights: Float[Array, "e r"], pieces: list[Float[Array, "s 1 k"]]) -> Float[Array, "s e k"]:
    """The same of the rows of z as a sum written out, which XLA computes from the maps without reading z."""
    return sum(weights[None, :, j, None] * row for j, row in enumerate(pieces))


def whiten(z: Float[Array, "s r k"], combine: Callable) -> tuple[Float[Array, " r"], Float[Array, "r r"]]:
    """Diagonal and inverse of the Cholesky factor L of Z Zᵀ, Z = [z √αI], by shifted Cholesky QR.

    Computed Gram matrices of nearly collinear rows (a straight edge of the truth, a smooth prediction) are not positive
    definite: in float32 their error exceeds α. So first the Gram matrix with RIDGE·r·ε of its diagonal added is
    factored, F Fᵀ, which covers that error by construction; then the rows are whitened, F⁻¹Z, and their Gram matrix is
    well conditioned and factored exactly: eigenvalues are at least α / (α + RIDGE·r·ε·max diagonal). Source: Fukaya et
    al., SIAM J. Sci. Comput. 42(1), 2020.
    """
    eye = jnp.eye(z.shape[1], dtype=z.dtype)
    diagonal, first = cholesky_inverse(gram(z) + ALPHA * eye, ridge=RIDGE)
    whitened = gram(combine(first)) + ALPHA * matmul(first, first.T)
    second_diagonal, second = cholesky_inverse(whitened, ridge=0)
    return diagonal * second_diagonal, matmul(second, first)


def gram(x: Float[Array, "s r k"]) -> Float[Array, "r r"]:
    """Inner products of rows, segment by segment."""
    return matmul(x, x.mT).sum(0)


def segments(x: Float[Array, "r n"], longest: int) -> Float[Array, "s r k"]:
    """x cut along n into as few parts of equal length as there must be; the rest of the last one is 0."""
    r, n = x.shape
    parts = -(-n // longest)
    if parts == 1:
        return x[None]
    length = -(-n // (8 * parts)) * 8  # aligned for vector instructions
    return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, parts * length - n))).reshape(r, parts, length), 1, 0)


def cholesky_inverse(matrix: Float[Array, "d d"], *, ridge: int) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Diagonal and inverse of the Cholesky factor of matrix + ridge · d · ε · its diagonal."""
    d = len(matrix)
    matrix = matrix + jnp.diag(ridge * d * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix))
    factor = lax.linalg.cholesky(matrix)
    eye = jnp.eye(d, dtype=matrix.dtype)
    return jnp.diagonal(factor), lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)


def regions(x: Float[Array, "hp wp"], radius: int) -> list[Float[Array, "h w"]]:
    """x's pixel at each place of a region, of every region, rows of the region first: the d rows of P or Y, as maps."""
    h, w = (size - radius + 1 for size in x.shape)
    return [x[row : row + h, column : column + w] for row in range(radius) for column in range(radius)]
