"""U-Net with a ResNet as encoder, as segmentation_models_pytorch builds it.

In: image f32 [b, h, w, 3] in [0, 1], height and width multiples of 32. Out: logits f32 [b, h, w, num_classes].
24,439,269 parameters with ResNet-34 and 21 classes, 32,524,005 with ResNet-50.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.layers import Conv, ConvNorm, normalize
from jaxseg.models.resnet import ResNet
from jaxseg.ops import promote_to_float32, repeat_pixels

# Channels of the decoder, coarse to fine, over the stem's: segmentation_models_pytorch's (256, 128, 64, 32, 16) over 64
DECODER = (4, 2, 1, 1 / 2, 1 / 4)


class ResNetUNet(nn.Module):
    """U-Net with a ResNet as encoder ("resnet34" too); fields as of `DeepLabV3`."""

    num_classes: int
    backbone: str = "resnet50"
    stem_features: int = 64
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "b h w 3"], train: bool = False) -> Float[Array, "b h w c"]:
        x = normalize(image, self.mean, self.std).astype(self.dtype)
        *skips, x = ResNet(
            self.backbone, self.stem_features, 32, self.dtype, self.axis_name, remat=self.remat, name="backbone"
        )(x, train=train)
        for level, share in enumerate(DECODER, start=1):
            x = repeat_pixels(x)
            if skips:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            for number in (1, 2):
                features = max(int(share * self.stem_features), 1)
                name = f"decoder{level}_conv{number}"
                conv = ConvNorm(features, 3, dtype=self.dtype, axis_name=self.axis_name, name=name)
                x = nn.relu(conv(x, train=train))
        return promote_to_float32(Conv(self.num_classes, 3, dtype=self.dtype, name="head")(x))
