"""Residual networks as backbones, as torchvision builds them: He et al. (arXiv 1512.03385), stride in the 3×3 layer.

In: image [b, h, w, 3]. Out: the maps of the first layer and of the four stages. With `output_stride` 8 or 16 the last two
or the last stage keep their size and dilate their 3×3 kernels instead (torchvision's `replace_stride_with_dilation`).
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from jaxseg.models.layers import ConvNorm, apply_block, max_pool_3x3

# Blocks in each of the four stages. The paper's table 1, and one of a bottleneck a stage for CPUs and tests.
DEPTHS = {"resnet14": (1, 1, 1, 1), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
BASIC = ("resnet34",)  # of two 3×3 layers a block, not of bottlenecks
EXPANSION = 4  # channels that leave a bottleneck over channels within it; the paper's table 1
# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu")
resnet_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nn.Module):
    """relu(x + f(x)), f: 1×1, 3×3 (stride and dilation here), 1×1 to 4 times the channels; x projected where it differs."""

    features: int
    stride: int
    dilation: int
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        def conv(features, size, name, stride=1, dilation=1):
            return ConvNorm(features, size, stride, dilation, resnet_init, self.dtype, self.axis_name, name=name)

        y = nn.relu(conv(self.features, 1, "conv1")(x, train=train))
        y = nn.relu(conv(self.features, 3, "conv2", self.stride, self.dilation)(y, train=train))
        y = conv(EXPANSION * self.features, 1, "conv3")(y, train=train)
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            x = conv(EXPANSION * self.features, 1, "downsample", self.stride)(x, train=train)
        return nn.relu(x + y)


class BasicBlock(nn.Module):
    """relu(x + f(x)), f: two 3×3 layers, the stride in the first; x projected where it differs."""

    features: int
    stride: int
    dilation: int
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        def conv(size, name, stride=1, dilation=1):
            return ConvNorm(self.features, size, stride, dilation, resnet_init, self.dtype, self.axis_name, name=name)

        y = nn.relu(conv(3, "conv1", self.stride, self.dilation)(x, train=train))
        y = conv(3, "conv2", dilation=self.dilation)(y, train=train)
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            x = conv(1, "downsample", self.stride)(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Returns five maps: [b, h/2, w/2, f] of the first layer, f `stem_features`, and of the stages at strides of 4, 8, 16
    and 32, the last of them `output_stride` at most; sizes are rounded up.

    Of bottlenecks, stage k has 2 f 2^k channels; of basic blocks a quarter.

    Args (fields): backbone; stem_features; output_stride; dilate_first, whether the first block of a stage that dilates
    does so too (segmentation_models_pytorch) or still sees the grid of the stage before (torchvision); stages, how many
    are computed: the others have parameters, and no map; dtype; axis_name; remat, each block is computed again in the
    backward pass instead of keeping what is inside it.
    """

    backbone: str = "resnet50"
    stem_features: int = 64
    output_stride: int = 8
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    dilate_first: bool = False
    stages: int = 4

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "b h w c"], *, train: bool) -> list[Float[Array, "b _ _ _"]]:
        x = ConvNorm(self.stem_features, 7, 2, 1, resnet_init, self.dtype, self.axis_name, name="stem")(x, train=train)
        maps = [nn.relu(x)]
        x = max_pool_3x3(maps[0])
        kind = BasicBlock if self.backbone in BASIC else Bottleneck
        wanted = 4 if self.is_initializing() else self.stages
        for stage, (blocks, stride, dilations) in enumerate(plan(self.backbone, self.output_stride)[:wanted], start=1):
            for i in range(blocks):
                block = kind(
                    self.stem_features * 2 ** (stage - 1),
                    stride if i == 0 else 1,
                    dilations[1 if self.dilate_first else min(i, 1)],
                    self.dtype,
                    self.axis_name,
                    name=f"stage{stage}_block{i + 1}",
                )
                x = apply_block(block, x, train=train, remat=self.remat)
            maps.append(x)
        return maps[: self.stages + 1]


def plan(backbone: str, output_stride: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Of each stage: how many bottlenecks, the stride of the first, the dilations of the first and of the others.

    A stage that would stride beyond `output_stride` doubles its dilation instead, from its second bottleneck on: the
    first still sees the grid of the stage before.
    """
    stages = []
    stride_so_far = 4  # stem and pooling
    dilation = 1
    for stage, blocks in enumerate(DEPTHS[backbone], start=1):
        stride = 1 if stage == 1 else 2
        before = dilation
        if stride_so_far * stride > output_stride:
            stride, dilation = 1, dilation * stride
        stride_so_far *= stride
        stages.append((blocks, stride, (before, dilation)))
    return stages
