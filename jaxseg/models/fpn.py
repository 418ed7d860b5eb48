"""FPN as segmentation_models_pytorch builds it: Lin et al. (arXiv 1612.03144), for segmentation Kirillov et al. (CVPR 2019).

In: image f32 [b, h, w, 3] in [0, 1], height and width multiples of 32. Out: logits f32 [b, h, w, num_classes], from maps
at a stride of 4 upsampled bilinearly with corners aligned. 26,118,613 parameters with ResNet-50 and 21 classes.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.deeplabv3 import classifier
from jaxseg.models.layers import Conv, conv_init, convolve, normalize
from jaxseg.models.resnet import ResNet
from jaxseg.ops import float32_or_float64, promote_to_float32, repeat_pixels, resize_bilinear

PYRAMID_FEATURES = 4  # over the stem's channels: segmentation_models_pytorch's 256 over 64
SEGMENTATION_FEATURES = 2  # and its 128
GROUP = 4  # channels of a group of GroupNorm: its 32 groups of 128


class FPN(nn.Module):
    """FPN with a ResNet backbone; fields as of `DeepLabV3`."""

    num_classes: int
    backbone: str = "resnet50"
    stem_features: int = 64
    dropout: float = 0.2  # of whole channels: segmentation_models_pytorch's
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "b h w 3"], train: bool = False) -> Float[Array, "b h w c"]:
        width = SEGMENTATION_FEATURES * self.stem_features
        x = normalize(image, self.mean, self.std).astype(self.dtype)
        backbone = ResNet(
            self.backbone, self.stem_features, 32, self.dtype, self.axis_name, remat=self.remat, name="backbone"
        )
        _, *maps = backbone(x, train=train)
        merged = 0.0
        above = None
        for level in (5, 4, 3, 2):
            x = Conv(PYRAMID_FEATURES * self.stem_features, 1, dtype=self.dtype, name=f"lateral{level}")(
                maps[level - 2]
            )
            above = x if above is None else repeat_pixels(above) + x
            x = above
            for number in range(max(level - 2, 1)):
                x = ConvGroupNorm(width, self.dtype, name=f"segmentation{level}_{number + 1}")(x)
                if level > 2:
                    x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True).astype(self.dtype)
            merged += x
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(merged)
        logits = classifier(self.num_classes, width, self.dtype)(x)
        return resize_bilinear(logits, image.shape[1:3], align_corners=True)


class ConvGroupNorm(nn.Module):
    """3×3 convolution without bias, GroupNorm and ReLU."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"]) -> Float[Array, "b h w d"]:
        kernel = self.param("kernel", conv_init, (3, 3, x.shape[-1], self.features))
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=1, dilation=1)
        groups = max(self.features // GROUP, 1)
        # E[x²] - E[x]² would cancel; epsilon is torch.nn.GroupNorm's.
        wide = float32_or_float64(x.dtype)
        norm = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, dtype=wide, name="norm")
        return nn.relu(norm(promote_to_float32(x))).astype(self.dtype)
