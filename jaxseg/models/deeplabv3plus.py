"""DeepLabV3+ as segmentation_models_pytorch builds it: Chen et al. (arXiv 1802.02611) on a dilated ResNet.

In: image f32 [b, h, w, 3] in [0, 1], height and width multiples of 16. Out: logits f32 [b, h, w, num_classes], from maps
at a stride of 4 upsampled bilinearly with corners aligned. 26,682,725 parameters with ResNet-50 and 21 classes.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.deeplabv3 import HEAD_FEATURES, PyramidPooling, classifier
from jaxseg.models.layers import ConvNorm, SeparableConvNorm, normalize
from jaxseg.models.resnet import ResNet
from jaxseg.ops import resize_bilinear

RATES = (12, 24, 36)  # dilations of the pyramid: segmentation_models_pytorch's, at every output stride
LOW_LEVEL_FEATURES = 48  # of a stem of 64; the paper, table 1


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ with a ResNet backbone; fields as of `DeepLabV3`."""

    num_classes: int
    backbone: str = "resnet50"
    stem_features: int = 64
    output_stride: int = 16
    dropout: float = 0.5  # of the pyramid: segmentation_models_pytorch's
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
        maps = ResNet(
            self.backbone,
            self.stem_features,
            self.output_stride,
            remat=self.remat,
            dilate_first=True,
            **common,
            name="backbone",
        )(x, train=train)
        pyramid = PyramidPooling(width, RATES, self.dropout, separable=True, **common, name="aspp")
        x = pyramid(maps[-1], train=train)
        x = nn.relu(SeparableConvNorm(width, 3, **common, name="conv")(x, train=train))
        features = LOW_LEVEL_FEATURES * self.stem_features // 64
        low = nn.relu(ConvNorm(features, 1, **common, name="low_level")(maps[1], train=train))
        x = resize_bilinear(x, low.shape[1:3], align_corners=True).astype(self.dtype)
        x = jnp.concatenate([x, low], axis=-1)
        x = nn.relu(SeparableConvNorm(width, 3, **common, name="decoder")(x, train=train))
        logits = classifier(self.num_classes, width, self.dtype)(x)
        return resize_bilinear(logits, image.shape[1:3], align_corners=True)
