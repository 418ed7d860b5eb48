"""The layers that the networks are built of, with PyTorch's numerics.

In: arrays [b, h, w, c]. Out: arrays [b, h, w, c'] in the compute dtype. Parameters and BatchNorm statistics are
float32 whatever the compute dtype. Sources: PyTorch's documentation of `Conv2d`, `ConvTranspose2d`, `BatchNorm2d` and
`MaxPool2d`; each numeric constant below is the default given there.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, ArrayLike, Float

Length = Any  # of an image's side: int, or in an exported program the symbol of one, which is of a private type of JAX

# PyTorch initialises a convolution by kaiming_uniform_(a=sqrt(5)): uniform in ±sqrt(1/fan_in), which has variance
# 1/(3 fan_in).
conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's bias of a layer with `fan_in` inputs per output: uniform in ±1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(jnp.asarray(fan_in, dtype))

    return init


def promote_to_float32(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """float32, or float64 as it is: to compare with float64 oracles."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


class BatchNorm(nn.Module):
    """Batch normalisation as `torch.nn.BatchNorm2d`, synchronised over the devices of `axis_name`.

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
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var, n = batch_moments(x, self.axis_name if not self.is_initializing() else None)
            if not self.is_initializing():
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (var * (n / max(n - 1, 1)) - running_var.value)
        # x - mean first: folding the mean into the bias cancels where |mean| is large against the deviation. And
        # division by the square root, because lax.rsqrt is approximate on some platforms.
        gain = scale / jnp.sqrt(var + self.epsilon)
        return ((promote_to_float32(x) - mean) * gain + bias).astype(self.dtype)


def batch_moments(x: Float[ArrayLike, "b h w c"], axis_name: str | None) -> tuple[Array, Array, int]:
    """Mean and biased variance [c] over (b, h, w) and devices, and the number n of elements per channel.

    Two passes, var = E[(x - mean)^2]: E[x^2] - mean^2 cancels when |mean| is large against the deviation.
    """
    x = promote_to_float32(x)
    n = x.size // x.shape[-1]
    mean = x.mean((0, 1, 2))
    if axis_name is not None:
        mean, n = lax.pmean(mean, axis_name), n * lax.axis_size(axis_name)
    var = jnp.square(x - mean).mean((0, 1, 2))
    if axis_name is not None:
        var = lax.pmean(var, axis_name)
    return mean, var, n


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


def convolve(
    x: Float[ArrayLike, "b h w c"], kernel: Float[ArrayLike, "k k c d"], *, stride: int, dilation: int
) -> Float[Array, "b h2 w2 d"]:
    """Convolution that keeps height and width, over `stride`, rounded up: `torch.nn.Conv2d` with padding
    dilation * (k - 1) / 2 on every side (XLA's "SAME" is uneven there).

    1×1 kernels are a matrix product. Kernels dilated so far that much of them lies outside the image (at 224 pixels, all
    but the centre of the widest in DeepLabV3) are summed tap by tap where they meet it: the same sum without its zeros.
    """
    size = kernel.shape[0]
    if size == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    reach = [dilation * (tap - size // 2) for tap in range(size)]
    known = [length for length in x.shape[1:3] if isinstance(length, int)]  # an exported program's may be symbols
    met = [sum(max(length - abs(offset), 0) for offset in reach) / (size * length) for length in known]
    if (
        stride == 1 and len(known) == 2 and met[0] * met[1] < 2 / 3
    ):  # timed on a CPU: 0.5 is 2.5 times as fast so, 0.9 slower
        return by_taps(x, kernel, reach)
    pad = dilation * (size // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=[dilation] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def by_taps(x: Float[ArrayLike, "b h w c"], kernel: Float[ArrayLike, "k k c d"], reach: list[int]) -> Array:
    """y[i, j] = sum over taps (k, l) of x[i + reach[k], j + reach[l]] @ kernel[k, l], x being 0 outside the image."""
    b, h, w, _ = x.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)  # of the sum, as within a convolution
    y = jnp.zeros((b, h, w, kernel.shape[-1]), wide)
    for row, dy in enumerate(reach):
        for column, dx in enumerate(reach):
            if abs(dy) < h and abs(dx) < w:
                top, left, rows, columns = max(0, -dy), max(0, -dx), h - abs(dy), w - abs(dx)
                seen = x[:, top + dy : top + dy + rows, left + dx : left + dx + columns]
                around = ((0, 0), (top, h - top - rows), (left, w - left - columns), (0, 0))
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
        y = (x.reshape(-1, c) @ matrix).reshape(b, h, w, 2, 2, self.features) + bias
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)


@jax.custom_vjp
def max_pool_2x2(x: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2×2 max pooling of stride 2; the gradient goes to the first maximum in row-major order, as in PyTorch.

    Written with strided views: XLA's own gradient (select-and-scatter) is slow on every platform, and that of
    `jnp.max` splits ties, which bfloat16 makes common.
    """
    a, b, c, d = corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def corners(x: Array) -> tuple[Array, Array, Array, Array]:
    """The four elements of every 2×2 window, in row-major order, each [b, h/2, w/2, c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return x[:, :, 0, :, 0], x[:, :, 0, :, 1], x[:, :, 1, :, 0], x[:, :, 1, :, 1]


def _max_pool_forward(x):
    y = max_pool_2x2(x)
    return y, (x, y)


def _max_pool_backward(residual, g):
    x, y = residual
    taken = jnp.zeros(y.shape, bool)
    parts = []
    for corner in corners(x):
        first = (corner == y) & ~taken
        parts.append(jnp.where(first, g, 0))
        taken |= first
    top = jnp.stack(parts[:2], axis=3)  # [b, h/2, w/2, 2, c]
    bottom = jnp.stack(parts[2:], axis=3)
    return (jnp.stack([top, bottom], axis=2).reshape(x.shape),)


max_pool_2x2.defvjp(_max_pool_forward, _max_pool_backward)


def max_pool_3x3(x: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """3×3 max pooling of stride 2 and padding 1; the gradient goes to the first maximum in row-major order.

    Padded ahead, which XLA folds into the same pooling: jax2onnx (0.13 to 0.17) drops `nn.max_pool`'s own padding.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


def upsample(x: Float[ArrayLike, "b h w c"], size: tuple[Length, Length]) -> Float[Array, "b h2 w2 c"]:
    """Bilinear, half-pixel centres, in float32: `torch.nn.functional.interpolate(align_corners=False)`.

    Two matrix products, first along rows, that need no transposed copies; `jax.image.resize` makes several of the large
    map. Full precision: in TF32 or bfloat16, as GPUs and TPUs multiply by default, every logit would be rounded.
    """
    x = promote_to_float32(x)
    (b, h, w, c), (rows, columns) = x.shape, size
    along_rows, down_columns = (jnp.asarray(bilinear_weights(*n), x.dtype) for n in ((w, columns), (h, rows)))
    x = jnp.matmul(along_rows, x, precision="highest")  # [b, h, columns, c]
    x = jnp.matmul(down_columns, x.reshape(b, h, columns * c), precision="highest")
    return x.reshape(b, rows, columns, c)


def bilinear_weights(n: Length, m: Length) -> np.ndarray | Array:
    """[m, n]: output i is read at (i + ½) n/m - ½, clamped to the centres of the first and last input.

    Positions are counted in integers, in 2m-ths of an input; n and m may be the symbols of an exported program.
    """
    xp = np if isinstance(n, int) and isinstance(m, int) else jnp
    at = xp.clip((2 * xp.arange(m) + 1) * n - m, 0, 2 * m * (n - 1))
    return xp.maximum(0, 1 - xp.abs(at[:, None] - 2 * m * xp.arange(n)) / (2 * m))


def normalize(image: Float[ArrayLike, "b h w 3"], mean: tuple, std: tuple) -> Float[Array, "b h w 3"]:
    """(image - mean) / std per channel, in float32."""
    if not any(mean) and all(value == 1 for value in std):
        return jnp.asarray(image)
    return (promote_to_float32(image) - jnp.asarray(mean)) / jnp.asarray(std)


def apply_block(
    block: nn.Module, x: Float[ArrayLike, "b h w c"], *, train: bool, remat: bool
) -> Float[Array, "b h2 w2 d"]:
    """block(x), what is inside it computed again in the backward pass where `remat` asks for it."""

    def call(block, x):
        return block(x, train=train)

    return nn.remat(call)(block, x) if remat else call(block, x)
