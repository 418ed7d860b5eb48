"""The layers that the networks are built of, with PyTorch's numerics.

In: arrays [b, h, w, c]. Out: arrays [b, h, w, c'] in the compute dtype. Parameters and BatchNorm statistics are
float32 whatever the compute dtype. Sources: PyTorch's documentation of `Conv2d`, `ConvTranspose2d`, `BatchNorm2d` and
`MaxPool2d`; each numeric constant below is the default given there.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from jaxseg.ops import Length, float32_or_float64, promote_to_float32

# PyTorch initialises a convolution by kaiming_uniform_(a=sqrt(5)): uniform in ±sqrt(1/fan_in), which has variance
# 1/(3 fan_in).
conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's bias of a layer with `fan_in` inputs per output: uniform in ±1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(jnp.asarray(fan_in, dtype))

    return init


class BatchNorm(nn.Module):
    """Batch normalisation as `torch.nn.BatchNorm2d`, synchronised over the devices of `axis_name`.

    A training pass in which the collection "batch_stats" may not change normalizes by the running statistics, as
    PyTorch's module in `.eval()`; scale and bias still learn.

    y = (x - mean) / sqrt(var + 1e-5) * scale + bias, statistics over (b, h, w) in float32. linen's own BatchNorm keeps
    the biased variance as running average; PyTorch keeps the unbiased one, n / (n - 1) times it, n counted over all
    devices.
    """

    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    momentum: float = 0.1  # weight of the new batch, torch.nn.BatchNorm2d
    epsilon: float = 1e-5  # torch.nn.BatchNorm2d

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        features = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, features, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        if train and self.is_mutable_collection("batch_stats"):
            axis_name = self.axis_name if not self.is_initializing() else None
            y, mean, var = normalize_batch(jnp.asarray(x), scale, bias, self.epsilon, self.dtype, axis_name)
            if not self.is_initializing():
                n = num_elements(x, axis_name)
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (var * (n / max(n - 1, 1)) - running_var.value)
            return y
        # By the square root and not lax.rsqrt, which is approximate on some platforms.
        gain = scale / jnp.sqrt(running_var.value + self.epsilon)
        return scale_and_shift(x, running_mean.value, gain, bias).astype(self.dtype)


def per_channel(x: Float[ArrayLike, " c"]) -> Float[Array, "1 1 1 c"]:
    """To be broadcast over [b, h, w, c]."""
    return jnp.asarray(x)[None, None, None]


def scale_and_shift(
    x: Float[ArrayLike, "b h w c"],
    mean: Float[ArrayLike, " c"],
    gain: Float[ArrayLike, " c"],
    bias: Float[ArrayLike, " c"],
) -> Float[Array, "b h w c"]:
    """(x - mean) * gain + bias in float32; folding the mean into the bias cancels where |mean| is large against x - mean."""
    return (promote_to_float32(x) - per_channel(mean)) * per_channel(gain) + per_channel(bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_batch(
    x: Float[Array, "b h w c"],
    scale: Float[ArrayLike, " c"],
    bias: Float[ArrayLike, " c"],
    epsilon: float,
    dtype: Dtype,
    axis_name: str | None,
) -> tuple[Float[Array, "b h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """`x` normalized by its own moments, and these: (x - mean) / sqrt(var + epsilon) * scale + bias in `dtype`, mean, var.

    The map is read once for the moments and once to be normalized; backward, once for two sums and once for the gradient.
    Nothing else of its size is kept. Of mean and var there is no gradient: they are for the running statistics.
    """
    return _normalize_batch_forward(x, scale, bias, epsilon, dtype, axis_name)[0]


def _normalize_batch_forward(x, scale, bias, epsilon, dtype, axis_name):
    mean, var = batch_moments(x, axis_name)
    deviation = jnp.sqrt(var + epsilon)
    gain = scale / deviation
    return (scale_and_shift(x, mean, gain, bias).astype(dtype), mean, var), (x, mean, gain, deviation, bias)


def _normalize_batch_backward(epsilon, dtype, axis_name, residual, cotangents):
    """With z = (x - mean) / deviation: dx = gain * (g - E[g] - z E[g z]), as Ioffe and Szegedy (arXiv 1502.03167) derive it."""
    x, mean, gain, deviation, bias = residual
    g = promote_to_float32(cotangents[0])
    centered = promote_to_float32(x) - per_channel(mean)
    sums = jnp.stack([g.sum((0, 1, 2)), (g * centered).sum((0, 1, 2)) / deviation])
    whole = sums if axis_name is None else lax.psum(sums, axis_name)
    of_g, of_gz = whole / num_elements(x, axis_name)
    dx = per_channel(gain) * (g - per_channel(of_g) - centered * per_channel(of_gz / deviation))
    dbias, dscale = sums.astype(bias.dtype)
    return dx.astype(x.dtype), dscale, dbias


normalize_batch.defvjp(_normalize_batch_forward, _normalize_batch_backward)


def batch_moments(x: Float[Array, "b h w c"], axis_name: str | None) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and biased variance over (b, h, w) and devices, from one pass over `x` and one exchange between devices.

    var = E[(x - shift)^2] - E[x - shift]^2 cancels where shift and mean are many deviations apart. The shift is the mean of
    the middle rows: the h-th part of all elements, so sqrt(h) deviations from the mean at most. Over devices, the mean of
    variances and the variance of means are added up; means are counted from the first device's shift, lest they round.
    """
    x = promote_to_float32(x)
    shift = x[:, x.shape[1] // 2].mean((0, 1))
    x = x - per_channel(shift)
    offset, square = x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))
    var = jnp.maximum(square - jnp.square(offset), 0)
    if axis_name is not None:
        shifts, offsets, variances = jnp.moveaxis(lax.all_gather(jnp.stack([shift, offset, var]), axis_name), 1, 0)
        shift = shifts[0]
        offsets += shifts - shift[None]
        offset = offsets.mean(0)
        var = variances.mean(0) + jnp.square(offsets - offset[None]).mean(0)
    return shift + offset, var


def num_elements(x: Float[ArrayLike, "b h w c"], axis_name: str | None) -> int:
    """Per channel, over all devices."""
    return x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))


class ConvNorm(nn.Module):
    """`size`×`size` convolution without bias, and BatchNorm."""

    features: int
    size: int
    stride: int = 1
    dilation: int = 1
    kernel_init: nn.initializers.Initializer = conv_init
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, dilation=self.dilation)
        return BatchNorm(self.axis_name, self.dtype, name="norm")(x, train=train)


class SeparableConvNorm(nn.Module):
    """One `size`×`size` kernel per channel, 1×1 convolution, both without bias, and BatchNorm."""

    features: int
    size: int
    stride: int = 1
    dilation: int = 1
    kernel_init: nn.initializers.Initializer = conv_init
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        depthwise = self.param("depthwise", self.kernel_init, (self.size, self.size, 1, x.shape[-1]))
        pointwise = self.param("pointwise", self.kernel_init, (1, 1, x.shape[-1], self.features))
        x = lax.conv_general_dilated(
            x.astype(self.dtype),
            depthwise.astype(self.dtype),
            (self.stride, self.stride),
            [(self.dilation * (self.size // 2),) * 2] * 2,
            rhs_dilation=[self.dilation] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
        x = convolve(x, pointwise.astype(self.dtype), stride=1, dilation=1)
        return BatchNorm(self.axis_name, self.dtype, name="norm")(x, train=train)


class Conv(nn.Module):
    """`size`×`size` convolution with bias, as `torch.nn.Conv2d(_, features, size, padding=size // 2)`."""

    features: int
    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h w d"]:
        kernel = self.param("kernel", conv_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", bias_init(self.size**2 * x.shape[-1]), (self.features,))
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=1, dilation=1)
        return x + per_channel(bias).astype(self.dtype)


# Below this share of the products, taps pay. On two CPU cores, 28×28×2048 to 256 channels: forward and gradients 0.30 s by
# taps and 0.67 s in one at a share of 0.51; 0.13 and 1.2 s at 0.18. On an H100, counted at its data sheet's rates (495
# TFLOP/s in TF32, 3.35 TB/s) and never run: a quarter more at 0.51, half the time at 0.18.
MOST_TAPS_MET = 2 / 3


def convolve(
    x: Float[ArrayLike, "b h w c"], kernel: Float[ArrayLike, "k k c d"], *, stride: int, dilation: int
) -> Float[Array, "b h2 w2 d"]:
    """Convolution that keeps height and width, over `stride`, rounded up.

    `torch.nn.Conv2d` with padding dilation * (k - 1) / 2 on every side (XLA's "SAME" is uneven there). 1×1 kernels are a
    matrix product. Kernels dilated so far that much of them lies outside the image (at 224 pixels, all but the center of
    the widest in DeepLabV3) are summed tap by tap where they meet it: the same sum without its zeros.
    """
    size = kernel.shape[0]
    if size == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    reach = [dilation * (tap - size // 2) for tap in range(size)]
    if stride == 1 and share_of_taps_met(x.shape[1:3], reach) < MOST_TAPS_MET:
        return convolve_by_taps(x, kernel, reach=reach)
    padding = dilation * (size // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=[dilation] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def share_of_taps_met(hw: tuple[Length, Length], reach: list[int]) -> float:
    """Of all products in a convolution of an image of that size, the share that meets the image; 1 for symbolic sizes."""
    if not all(isinstance(length, int) for length in hw):
        return 1.0
    h, w = (sum(max(length - abs(offset), 0) for offset in reach) / (len(reach) * length) for length in hw)
    return h * w


def convolve_by_taps(x: Float[ArrayLike, "b h w c"], kernel: Float[ArrayLike, "k k c d"], *, reach: list[int]) -> Array:
    """y[i, j] = sum over taps (k, l) of x[i + reach[k], j + reach[l]] @ kernel[k, l], x being 0 outside the image."""
    b, h, w, _ = x.shape
    wide = float32_or_float64(x.dtype)  # of the sum, as within a convolution
    y = jnp.zeros((b, h, w, kernel.shape[-1]), wide)
    for row, dy in enumerate(reach):
        for column, dx in enumerate(reach):
            if abs(dy) < h and abs(dx) < w:
                seen = x[:, max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)]
                around = ((0, 0), (max(0, -dy), max(0, dy)), (max(0, -dx), max(0, dx)), (0, 0))
                y += jnp.pad(jnp.matmul(seen, kernel[row, column], preferred_element_type=wide), around)
    return y.astype(x.dtype)


class ConvTranspose2x2(nn.Module):
    """2×2 transposed convolution of stride 2 with bias, as `torch.nn.ConvTranspose2d(_, features, 2, stride=2)`.

    Windows do not overlap, so it is one matrix product and a reshape: y[2i+k, 2j+l] = x[i, j] @ kernel[k, l] + bias.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        b, h, w, c = x.shape
        # PyTorch takes fan_in from dimension 1 of the weight [in, out, 2, 2]: 4 * out.
        fan_in = 4 * self.features
        kernel = self.param("kernel", bias_init(fan_in), (2, 2, c, self.features))
        bias = self.param("bias", bias_init(fan_in), (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        matrix = kernel.transpose(2, 0, 1, 3).reshape(c, -1)  # [c, 2*2*d]
        y = (x.reshape(-1, c) @ matrix).reshape(b, h, w, 2, 2, self.features) + bias[(None,) * 5]
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)


def max_pool_3x3(x: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """3×3 max pooling of stride 2 and padding 1; the gradient goes to the first maximum in row-major order.

    Padded ahead, which XLA folds into the same pooling: jax2onnx (0.13 to 0.17) drops `nn.max_pool`'s own padding.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


def normalize(image: Float[ArrayLike, "b h w 3"], mean: tuple, std: tuple) -> Float[Array, "b h w 3"]:
    """(image - mean) / std per channel, in float32."""
    if not any(mean) and all(value == 1 for value in std):
        return jnp.asarray(image)
    return (promote_to_float32(image) - per_channel(jnp.asarray(mean))) / per_channel(jnp.asarray(std))


def apply_block(
    block: nn.Module, x: Float[ArrayLike, "b h w c"], *, train: bool, remat: bool
) -> Float[Array, "b h2 w2 d"]:
    """block(x), what is inside it computed again in the backward pass where `remat` asks for it."""

    def call(block, x):
        return block(x, train=train)

    return nn.remat(call)(block, x) if remat else call(block, x)
