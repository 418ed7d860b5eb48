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
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxseg.config import FIELDS
from jaxseg.losses import arguments
from jaxseg.losses.arguments import check_arrays
from jaxseg.losses.rmi_maps import POOLS, pooled_maps, pooled_size
from jaxseg.ops import valid_pixels

ALPHA = 5e-4  # α of the authors' code, `_POS_ALPHA`
PIVOT_OFFSET = 1e-8  # what their `log_det_by_cholesky` adds to each pivot
MAX_RADIUS = FIELDS["loss.radius"].at_most
RIDGE = 2**13  # × machine epsilon: five times the rounding of Z Zᵀ that was found. Values: tests/losses/test_rmi.py
SEGMENT = 2**14  # columns of one inner product; its rounding grows with its length
REGION_ELEMENTS = 2**26  # d × n of as many maps at once as fit on an accelerator: 512 MiB of Z

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
    return map_over_classes(lambda y, p: rmi_and_gradient(y, p, radius)[0], truth, prob, radius)


def _rmi_of_maps_forward(truth, prob, radius):
    return map_over_classes(functools.partial(rmi_and_gradient, radius=radius), truth, prob, radius)


def _rmi_of_maps_backward(radius, gradient, g):
    del radius
    return None, g[..., None, None] * gradient


rmi_of_maps.defvjp(_rmi_of_maps_forward, _rmi_of_maps_backward)


def map_over_classes(function, truth: Float[Array, "b c hp wp"], prob: Float[Array, "b c hp wp"], radius: int):
    """function(truth [h', w'], prob [h', w']) of every image and class, stacked [b, c, …].

    On a CPU one map after another, so that its region matrices stay in the cache; elsewhere as many at once as
    REGION_ELEMENTS allows.
    """
    b, c, h, w = truth.shape
    maps = tuple(x.reshape(b * c, h, w) for x in (truth, prob))
    at_once = max(1, min(b * c, REGION_ELEMENTS // (radius**2 * h * w)))
    out = lax.platform_dependent(
        maps,
        cpu=lambda maps: lax.map(lambda m: function(*m), maps),
        default=lambda maps: lax.map(lambda m: function(*m), maps, batch_size=at_once),
    )
    return jax.tree.map(lambda x: x.reshape(b, c, *x.shape[1:]), out)


def rmi_and_gradient(
    truth: Float[Array, "hp wp"], prob: Float[Array, "hp wp"], radius: int
) -> tuple[Float[Array, ""], Float[Array, "hp wp"]]:
    """`rmi_of_map` of one map, or what it comes to where truth is constant (most classes of an image): log √α, 0."""
    constant = jnp.log(jnp.sqrt(jnp.asarray(ALPHA, prob.dtype)) + PIVOT_OFFSET)
    return lax.cond(
        (truth == truth[0, 0]).all(),
        lambda _, prob: (constant, jnp.zeros_like(prob)),
        functools.partial(rmi_of_map, radius=radius),
        truth,
        prob,
    )


def rmi_of_map(
    truth: Float[Array, "hp wp"], prob: Float[Array, "hp wp"], radius: int
) -> tuple[Float[Array, ""], Float[Array, "hp wp"]]:
    """v = ½ log det(M + αI) / d of one map, and ∂v/∂prob.

    v is the mean of log L22_ii. Since W minimises |Y - W P|² + α |W|², it may be held fixed (the envelope theorem):
    ∂v/∂P = -(1/d) Wᵀ (M + αI)⁻¹ (Y - W P). Its mean over n is 0, so centring P passes it on unchanged. L22⁻¹ [-W I] are
    the lower rows of L⁻¹.
    """
    d = radius**2
    prob_regions, to_pixels = jax.vjp(functools.partial(regions, radius=radius), prob)
    z = centered(jnp.concatenate([prob_regions, regions(truth, radius)]))
    diagonal, whitened, first, last = whiten(z)
    pivots, last = diagonal[d:], last[d:]
    value = jnp.log(pivots + PIVOT_OFFSET).mean()
    lower = matmul(last, first)  # of L⁻¹, [d 2d]
    # The offset weighs rows by L22_ii / (L22_ii + offset).
    to_regions = matmul(lower[:, :d].T, (pivots / (pivots + PIVOT_OFFSET))[:, None] * last) / d  # [d 2d]
    return value, to_pixels(matmul(to_regions, whitened))[0]


def whiten(
    z: Float[Array, "r n"],
) -> tuple[Float[Array, " r"], Float[Array, "r n"], Float[Array, "r r"], Float[Array, "r r"]]:
    """The Cholesky factor L of Z Zᵀ + αI by shifted Cholesky QR, which never fails on rounding.

    The computed Z Zᵀ of nearly collinear rows (a straight edge of the truth, a smooth prediction) is not positive
    definite: in float32 its error exceeds α. So the matrix with RIDGE · ε of its diagonal added is factored, F Fᵀ,
    which covers that error; the rows are whitened, F⁻¹ Z, and the same again. After that the least eigenvalue is about
    α / (RIDGE · ε)² / the largest diagonal, 1 at most, and the third matrix is factored as it is. Source: Fukaya et
    al., SIAM J. Sci. Comput. 42(1), 2020.

    Args:
      z: centred rows.

    Returns:
      The diagonal of L, the whitened rows `first` · z, and `first` and `last` with L⁻¹ = last · first.
    """
    first = jnp.eye(len(z), dtype=z.dtype)
    diagonal = 1
    for _ in range(2):
        pivots, inverse = cholesky_inverse(gram(z) + ALPHA * gram(first), ridge=RIDGE)
        z = matmul(inverse, z)
        first = matmul(inverse, first)
        diagonal = diagonal * pivots
    pivots, last = cholesky_inverse(gram(z) + ALPHA * gram(first), ridge=0)
    return diagonal * pivots, z, first, last


def gram(z: Float[Array, "r n"]) -> Float[Array, "r r"]:
    """Z Zᵀ, in segments of n."""
    return sum(matmul(z[:, i : i + SEGMENT], z[:, i : i + SEGMENT].T) for i in range(0, z.shape[1], SEGMENT))


def cholesky_inverse(matrix: Float[Array, "d d"], *, ridge: int) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Diagonal and inverse of the Cholesky factor of matrix + ridge · ε · its diagonal."""
    matrix = matrix + jnp.diag(ridge * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix))
    factor = lax.linalg.cholesky(matrix)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    return jnp.diagonal(factor), lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)


def regions(x: Float[Array, "hp wp"], radius: int) -> Float[Array, "d n"]:
    """Every radius × radius region of x as a column, rows of the region first: the paper's multi-dimensional points."""
    h, w = (size - radius + 1 for size in x.shape)
    shifted = [x[row : row + h, column : column + w] for row in range(radius) for column in range(radius)]
    return jnp.stack(shifted).reshape(radius**2, h * w)


def centered(x: Float[Array, "d n"]) -> Float[Array, "d n"]:
    return x - x.mean(1, keepdims=True)
