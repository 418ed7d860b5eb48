"""FCN as torchvision builds it: Long et al. (arXiv 1411.4038) on a dilated ResNet.

In: image f32 [b, h, w, 3] in [0, 1], any height and width. Out: logits f32 [b, h, w, num_classes], the head's coarse
logits upsampled bilinearly, half-pixel centers. 32,957,013 parameters with ResNet-50 and 21 classes.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.deeplabv3 import FCN_DROPOUT, FCNHead
from jaxseg.models.layers import normalize
from jaxseg.models.resnet import ResNet
from jaxseg.ops import resize_bilinear


class FCN(nn.Module):
    """FCN with a ResNet backbone; fields as of `DeepLabV3`."""

    num_classes: int
    backbone: str = "resnet50"
    stem_features: int = 64
    output_stride: int = 8
    auxiliary: bool = False
    dropout: float = FCN_DROPOUT
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "b h w 3"], train: bool = False) -> Float[Array, "b h w c"]:
        common = {"dtype": self.dtype, "axis_name": self.axis_name}
        x = normalize(image, self.mean, self.std).astype(self.dtype)
        *_, stage3, stage4 = ResNet(
            self.backbone, self.stem_features, self.output_stride, remat=self.remat, **common, name="backbone"
        )(x, train=train)
        heads = {"auxiliary": stage3, "classifier": stage4} if self.auxiliary else {"classifier": stage4}
        for name, x in heads.items():
            head = FCNHead(self.num_classes, x.shape[-1] // 4, self.dropout, **common, name=name)
            logits = resize_bilinear(head(x, train=train), image.shape[1:3])
            if name == "auxiliary":
                self.sow("auxiliary", "logits", logits)
        return logits
