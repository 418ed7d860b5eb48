"""Region Mutual Information (RMI) loss: how much of a region of the truth a region of the prediction leaves open.

Source: Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019 (arXiv 1910.12037), and
its code (https://github.com/ZJULearning/RMI/blob/10a40cd/losses/rmi/rmi.py). Of one image and class, Y and P are the
d × n matrices whose columns are the n regions of radius × radius pixels (d = radius²) of truth and probability, centred
over n. The bound of the paper is -½ log det M (equation 14) with the conditional covariance M = Σyy - Σyp (Σpp + αI)⁻¹
Σypᵀ (equation 13); the loss is ½ log det(M + αI) / d.

In float32 that difference loses all digits once predictions are confident, and its Cholesky factor is NaN. Here M is
never computed. With both stacked, Z = [P; Y], the 2d × 2d Cholesky factor L of Z Zᵀ + αI holds all that is wanted:

    L = [L11 0; L21 L22]      L22 L22ᵀ = M + αI      W = Σyp (Σpp + αI)⁻¹ = L21 L11⁻¹

and L is what a QR decomposition of [Z √αI]ᵀ gives, whose errors are relative to the residual Y - W P instead of Y.
Dimensions: b h w c as everywhere, d region size, n number of regions.
"""

# Unsure: the equation numbers, 17 for the whole loss among them, are from memory; the formulas are the authors' code's.

import functools

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
RIDGE = 2**13  # × machine epsilon: 13 times the rounding of Z Zᵀ that was found. Values: tests/losses/test_rmi.py
SEGMENT = 2**14  # columns of one inner product: its rounding grows with its length, and a CPU's cache holds its rows
REGION_ELEMENTS = 2**26  # d × n of as many maps at once as fit on an accelerator: 512 MiB of Z
CACHE_ELEMENTS = 2**19  # likewise on a CPU: 4 MiB of Z

HIGHEST = lax.Precision.HIGHEST  # no TF32, no bfloat16
matmul = functools.partial(jnp.matmul, precision=HIGHEST)
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
    """`rmi_of_map` of every image and class. The gradient with respect to `prob` comes with it; `truth` has none."""
    return rmi_and_gradient(truth, prob, radius)[0]


def _rmi_of_maps_backward(radius, gradient, g):
    del radius
    return None, g[..., None, None] * gradient


def rmi_and_gradient(
    truth: Float[Array, "b c hp wp"], prob: Float[Array, "b c hp wp"], radius: int
) -> tuple[Float[Array, "b c"], Float[Array, "b c hp wp"]]:
    """`rmi_of_map` of every image and class, or what it comes to where truth is constant: log √α, 0.

    As many maps at once as REGION_ELEMENTS allows; on a CPU as many as its cache holds.
    """
    b, c, h, w = truth.shape
    maps = tuple(x.reshape(b * c, h, w) for x in (truth, prob))
    of_map = functools.partial(rmi_of_map, radius=radius)
    size = radius**2 * h * w
    in_memory = max(1, min(b * c, REGION_ELEMENTS // size))
    in_cache = min(b * c, max(2, CACHE_ELEMENTS // size))
    value, gradient = lax.platform_dependent(
        *maps,
        cpu=lambda *maps: map_in_groups(of_map, *maps, size=in_cache),
        default=lambda *maps: lax.map(lambda m: of_map(*m), maps, batch_size=in_memory),
    )
    constant = is_constant(truth)
    least = jnp.log(jnp.sqrt(jnp.asarray(ALPHA, prob.dtype)) + PIVOT_OFFSET)
    value = jnp.where(constant, least, value.reshape(b, c))
    return value, jnp.where(constant[..., None, None], 0, gradient.reshape(prob.shape))


rmi_of_maps.defvjp(rmi_and_gradient, _rmi_of_maps_backward)


def map_in_groups(of_map, truth: Float[Array, "m hp wp"], prob: Float[Array, "m hp wp"], *, size: int):
    """of_map(truth, prob) of `size` maps after the other, and 0 where truth is constant, as it is in most of an image's
    classes: these maps come last, and a group of nothing else is skipped.
    """
    filling = ((0, -len(truth) % size), (0, 0), (0, 0))  # constant, too
    maps = [jnp.pad(x, filling) for x in (truth, prob)]
    order = jnp.argsort(is_constant(maps[0]))
    groups = [x[order].reshape(-1, size, *x.shape[1:]) for x in maps]

    def of_group(group):
        nothing = jax.tree.map(jnp.zeros_like, (group[1][:, 0, 0], group[1]))
        return lax.cond(is_constant(group[0]).all(), lambda *_: nothing, jax.vmap(of_map), *group)

    results = lax.map(of_group, groups)
    back = jnp.argsort(order)[: len(truth)]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], results)


def is_constant(x: Float[Array, "*maps hp wp"]) -> Bool[Array, "*maps"]:
    return (x == x[..., :1, :1]).all((-2, -1))


def rmi_of_map(
    truth: Float[Array, "hp wp"], prob: Float[Array, "hp wp"], radius: int
) -> tuple[Float[Array, ""], Float[Array, "hp wp"]]:
    """v = ½ log det(M + αI) / d of one map, and ∂v/∂prob.

    v is the mean of log L22_ii. Since W minimises |Y - W P|² + α |W|², it may be held fixed (the envelope theorem):
    ∂v/∂P = -(1/d) Wᵀ (M + αI)⁻¹ (Y - W P). Its mean over n is 0, so centring P passes it on unchanged. L22⁻¹ [-W I] are
    the lower rows of L⁻¹.
    """
    d = radius**2
    n = (prob.shape[0] - radius + 1) * (prob.shape[1] - radius + 1)
    prob_regions, to_pixels = jax.vjp(functools.partial(regions, radius=radius), prob)
    z = jnp.concatenate([centered(prob_regions, n), centered(regions(truth, radius), n)], axis=1)
    diagonal, whitened, first, last = whiten(z)
    pivots, last = diagonal[d:], last[d:]
    value = jnp.log(pivots + PIVOT_OFFSET).mean()
    lower = matmul(last, first)  # of L⁻¹, [d 2d]
    # The offset weighs rows by L22_ii / (L22_ii + offset).
    to_regions = matmul(lower[:, :d].T, (pivots / (pivots + PIVOT_OFFSET))[:, None] * last) / d  # [d 2d]
    return value, to_pixels(matmul_each(to_regions, whitened))[0]


def whiten(
    z: Float[Array, "s r k"],
) -> tuple[Float[Array, " r"], Float[Array, "s r k"], Float[Array, "r r"], Float[Array, "r r"]]:
    """The Cholesky factor L of Z Zᵀ + αI by shifted Cholesky QR, which never fails on rounding.

    The computed Z Zᵀ of nearly collinear rows (a straight edge of the truth, a smooth prediction) is not positive
    definite: in float32 its error exceeds α. So the matrix with RIDGE · ε of its diagonal added is factored, F Fᵀ,
    which covers that error; the rows are whitened, F⁻¹ Z, and the same again. After that the least eigenvalue is about
    α / (RIDGE · ε)² / the largest diagonal, 1 at most, and the third matrix is factored as it is. Source: Fukaya et
    al., SIAM J. Sci. Comput. 42(1), 2020.

    Args:
      z: centred rows, in s segments of k columns.

    Returns:
      The diagonal of L, the whitened rows `first` · z, and `first` and `last` with L⁻¹ = last · first.
    """
    first = jnp.eye(z.shape[1], dtype=z.dtype)
    diagonal = 1
    for _ in range(2):
        pivots, inverse = cholesky_inverse(gram(z) + ALPHA * matmul(first, first.T), ridge=RIDGE)
        z = matmul_each(inverse, z)
        first = matmul(inverse, first)
        diagonal = diagonal * pivots
    pivots, last = cholesky_inverse(gram(z) + ALPHA * matmul(first, first.T), ridge=0)
    return diagonal * pivots, z, first, last


def gram(z: Float[Array, "s r k"]) -> Float[Array, "r r"]:
    """Z Zᵀ."""
    return jnp.einsum("srk,sqk->srq", z, z, precision=HIGHEST).sum(0)


def matmul_each(matrix: Float[Array, "q r"], z: Float[Array, "s r k"]) -> Float[Array, "s q k"]:
    """matrix · Z. As a batch of products: one large product would have the segments side by side first."""
    return matmul(jnp.broadcast_to(matrix, (len(z), *matrix.shape)), z)


def cholesky_inverse(matrix: Float[Array, "d d"], *, ridge: int) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Diagonal and inverse of the Cholesky factor of matrix + ridge · ε · its diagonal."""
    matrix = matrix + jnp.diag(ridge * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix))
    factor = lax.linalg.cholesky(matrix)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    return jnp.diagonal(factor), lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)


def regions(x: Float[Array, "hp wp"], radius: int) -> Float[Array, "s d k"]:
    """Every radius × radius region of x as a column, rows of the region first: the paper's multi-dimensional points.

    They come in segments of whole rows of x, as few as have no more than about SEGMENT columns. The last is filled up.
    """
    h, w = (size - radius + 1 for size in x.shape)
    rows = -(-h // max(1, round(h * w / SEGMENT)))
    segments = -(-h // rows)
    x = jnp.pad(x, ((0, segments * rows - h), (0, 0)))
    shifted = [x[i : i + segments * rows, j : j + w] for i in range(radius) for j in range(radius)]
    return jnp.stack(shifted).reshape(radius**2, segments, rows * w).swapaxes(0, 1)


def centered(z: Float[Array, "s r k"], n: int) -> Float[Array, "s r k"]:
    """Z less its rows' means over the first n columns; 0 in those beyond, which fill the last segment."""
    segments, _, k = z.shape
    if segments * k == n:
        return z - z.mean((0, 2), keepdims=True)
    column = jnp.arange(segments * k).reshape(segments, 1, k)
    mean = jnp.where(column < n, z, 0).sum((0, 2), keepdims=True) / n
    return jnp.where(column < n, z - mean, 0)
