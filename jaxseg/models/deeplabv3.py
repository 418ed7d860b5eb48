"""DeepLabV3 as torchvision builds it: Chen et al. (arXiv 1706.05587) on a dilated ResNet.

In: image f32 [b, h, w, 3] in [0, 1], any height and width. Out: logits f32 [b, h, w, num_classes], the head's coarse
logits upsampled bilinearly, half-pixel centres. 39,638,869 parameters with ResNet-50 and 21 classes.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.layers import ConvNorm, SeparableConvNorm, bias_init, conv_init, normalize
from jaxseg.models.resnet import ResNet
from jaxseg.ops import promote_to_float32, resize_bilinear

RATES = {8: (12, 24, 36), 16: (6, 12, 18)}  # dilations of the pyramid by output stride; the paper, sections 3.3 and 4.2
HEAD_FEATURES = 4  # channels of the head over the stem's: torchvision's 256 over 64
FCN_DROPOUT = 0.1  # torchvision's FCNHead


class DeepLabV3(nn.Module):
    """DeepLabV3 with a ResNet backbone ("resnet50", "resnet101"; "resnet14" for CPUs).

    Args (fields): num_classes; backbone; stem_features, channels of the backbone's first layer, all others in
    proportion; output_stride, 8 or 16; auxiliary, a second head on the third stage, whose logits in a training pass are
    sown into the collection "auxiliary"; dropout of the head; mean and std of the weights' training images; dtype of
    the computation (parameters and statistics stay float32); axis_name, the device axis over which BatchNorm is
    synchronised (None: not); remat, recompute bottlenecks in the backward pass.
    """

    num_classes: int
    backbone: str = "resnet50"
    stem_features: int = 64
    output_stride: int = 8
    auxiliary: bool = False
    dropout: float = 0.5  # torchvision's ASPP
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
        *_, stage3, x = ResNet(
            self.backbone, self.stem_features, self.output_stride, remat=self.remat, **common, name="backbone"
        )(x, train=train)
        if self.auxiliary:
            head = FCNHead(self.num_classes, stage3.shape[-1] // 4, **common, name="auxiliary")
            logits = resize_bilinear(head(stage3, train=train), image.shape[1:3])
            self.sow("auxiliary", "logits", logits)
        x = PyramidPooling(width, RATES[self.output_stride], self.dropout, **common, name="aspp")(x, train=train)
        x = nn.relu(ConvNorm(width, 3, **common, name="conv")(x, train=train))
        return resize_bilinear(classifier(self.num_classes, width, self.dtype)(x), image.shape[1:3])


class PyramidPooling(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1, three dilated 3×3 and the image's mean, concatenated, projected, dropped.

    separable: the 3×3 are one kernel per channel, then 1×1, as in DeepLabV3+.
    """

    features: int
    rates: tuple[int, int, int]
    dropout: float
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    separable: bool = False

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        def conv(size, name, dilation=1):
            kind = SeparableConvNorm if self.separable and size > 1 else ConvNorm
            return kind(self.features, size, 1, dilation, conv_init, self.dtype, self.axis_name, name=name)

        branches = [conv(1, "conv1")(x, train=train)]
        for i, rate in enumerate(self.rates, start=2):
            branches.append(conv(3, f"conv{i}", rate)(x, train=train))
        mean = promote_to_float32(x).mean((1, 2), keepdims=True)
        pooled = conv(1, "pooled")(mean.astype(self.dtype), train=train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = nn.relu(jnp.concatenate(branches, axis=-1))
        x = nn.relu(conv(1, "project")(x, train=train))
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class FCNHead(nn.Module):
    """torchvision's head of FCN, and auxiliary head of DeepLabV3: 3×3, dropout, 1×1."""

    num_classes: int
    features: int
    dropout: float = FCN_DROPOUT
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        x = nn.relu(ConvNorm(self.features, 3, dtype=self.dtype, axis_name=self.axis_name, name="conv")(x, train=train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return classifier(self.num_classes, self.features, self.dtype)(x)


def classifier(num_classes: int, features: int, dtype: Dtype) -> nn.Conv:
    """The 1×1 layer from `features` channels to logits."""
    return nn.Conv(num_classes, (1, 1), kernel_init=conv_init, bias_init=bias_init(features), dtype=dtype, name="head")
