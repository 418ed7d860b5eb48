"""PSPNet as segmentation_models_pytorch builds it: Zhao et al. (arXiv 1612.01105) on the first two stages of a ResNet.

In: image f32 [b, h, w, 3] in [0, 1], height and width multiples of 8. Out: logits f32 [b, h, w, num_classes], from maps
at a stride of 8 upsampled bilinearly with corners aligned. 24,393,173 parameters with ResNet-50 and 21 classes, of which
the last two stages, 22 million, are carried along and not computed, as there.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.layers import Conv, ConvNorm, normalize
from jaxseg.models.resnet import ResNet
from jaxseg.ops import adaptive_average_pool, resize_bilinear

BINS = (1, 2, 3, 6)  # along each side; the paper, section 3.2
HEAD_FEATURES = 8  # channels of the head over the stem's: segmentation_models_pytorch's 512 over 64


class PSPNet(nn.Module):
    """PSPNet with a ResNet backbone; fields as of `DeepLabV3`."""

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
        width = HEAD_FEATURES * self.stem_features
        common = {"dtype": self.dtype, "axis_name": self.axis_name}
        x = normalize(image, self.mean, self.std).astype(self.dtype)
        *_, x = ResNet(
            self.backbone, self.stem_features, output_stride=32, remat=self.remat, stages=2, **common, name="backbone"
        )(x, train=train)
        branches = []
        for bins in BINS:
            pooled = adaptive_average_pool(x, bins).astype(self.dtype)
            features = x.shape[-1] // len(BINS)
            # One value per channel and image: segmentation_models_pytorch normalizes it not, and adds a bias.
            if bins == 1:
                pooled = Conv(features, 1, dtype=self.dtype, name="pooled1")(pooled)
            else:
                pooled = ConvNorm(features, 1, **common, name=f"pooled{bins}")(pooled, train=train)
            branches.append(resize_bilinear(nn.relu(pooled), x.shape[1:3], align_corners=True).astype(self.dtype))
        x = jnp.concatenate([*branches, x], axis=-1)
        x = nn.relu(ConvNorm(width, 1, **common, name="conv")(x, train=train))
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        logits = Conv(self.num_classes, 3, dtype=self.dtype, name="head")(x)
        return resize_bilinear(logits, image.shape[1:3], align_corners=True)
