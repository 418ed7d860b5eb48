"""The study's U-Net: Ronneberger et al. (arXiv 1505.04597) in the variant of the brain-segmentation U-Net.

In: image f32 [b, h, w, 3] in [0, 1], h and w multiples of 16. Out: logits f32 [b, h, w, num_classes]. Four levels of
two (3×3 convolution without bias, BatchNorm, ReLU), 2×2 max pooling down, 2×2 transposed convolution up, skip
connections (upsampled first), and a 1×1 head. 7,763,701 parameters at 21 classes and 32 features.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.layers import BatchNorm, ConvTranspose2x2, apply_block, bias_init, conv_init, normalize
from jaxseg.ops import Length, max_pool, promote_to_float32

LEVELS = 4


class ConvBlock(nn.Module):
    """Twice: 3×3 convolution without bias, BatchNorm, ReLU."""

    features: int
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        for i in (1, 2):
            x = nn.Conv(
                self.features, (3, 3), use_bias=False, kernel_init=conv_init, dtype=self.dtype, name=f"conv{i}"
            )(x)
            x = BatchNorm(self.axis_name, self.dtype, name=f"norm{i}")(x, train=train)
            x = nn.relu(x)
        return x


class UNet(nn.Module):
    """U-Net with `features` channels on its first level, doubled on each of the four levels below.

    Args (fields): num_classes; features; dtype of the computation (parameters and statistics stay float32); axis_name,
    the device axis over which BatchNorm is synchronised (None: not); mean and std of the images that its weights were
    trained on; remat, recompute blocks in the backward pass.
    Raises ValueError at trace time where h or w is no multiple of 16.
    """

    num_classes: int
    features: int = 32  # study: initial features of the brain-segmentation U-Net
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    remat: bool = False

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "b h w 3"], train: bool = False) -> Float[Array, "b h w c"]:
        check_size(image.shape[1:3])
        widths = [self.features * 2**level for level in range(LEVELS + 1)]

        def block(x, width, name):
            return apply_block(
                ConvBlock(width, self.axis_name, self.dtype, name=name), x, train=train, remat=self.remat
            )

        x = normalize(image, self.mean, self.std).astype(self.dtype)
        skips = []
        for level in range(LEVELS):
            x = block(x, widths[level], f"encoder{level + 1}")
            skips.append(x)
            x = max_pool(x, 2)
        x = block(x, widths[LEVELS], "bottleneck")
        for level in reversed(range(LEVELS)):
            x = ConvTranspose2x2(widths[level], self.dtype, name=f"upconv{level + 1}")(x)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = block(x, widths[level], f"decoder{level + 1}")
        x = nn.Conv(
            self.num_classes,
            (1, 1),
            kernel_init=conv_init,
            bias_init=bias_init(self.features),
            dtype=self.dtype,
            name="head",
        )(x)
        return promote_to_float32(x)


def check_size(size_px: tuple[Length, Length]) -> None:
    """Raises ValueError unless height and width survive four halvings exactly."""
    step = 2**LEVELS
    if any(s % step or s == 0 for s in size_px):
        raise ValueError(f"UNet: image height × width is {size_px[0]}×{size_px[1]}; both must be multiples of {step}")
