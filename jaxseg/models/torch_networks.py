"""The networks beside U-Net and DeepLabV3 in PyTorch: which tensor of torchvision or segmentation_models_pytorch is which.

In: a network of ours and a state dict, or its variables. Out: variables with a `LoadReport`, or a state dict.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import numpy as np

from jaxseg.errors import InputError
from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.deeplabv3plus import DeepLabV3Plus
from jaxseg.models.fcn import FCN
from jaxseg.models.fpn import FPN
from jaxseg.models.pspnet import BINS, PSPNet
from jaxseg.models.resnet import BASIC, DEPTHS
from jaxseg.models.resnet_unet import DECODER, ResNetUNet
from jaxseg.models.torch_weights import (
    KERNEL_AXES,
    LoadReport,
    TensorMap,
    conv_norm_tensor_maps,
    convert,
    convert_back,
    deeplabv3_tensor_maps,
    fresh_names,
    head_tensor_maps,
    norm_tensor_maps,
    resnet_tensor_maps,
    shapes_of,
    to_mapping,
    unet_tensor_maps,
)
from jaxseg.models.unet import UNet
from jaxseg.models.weights_io import StateDict, strip_prefix

TORCHVISION = "torchvision"
SMP = "segmentation_models_pytorch"


@dataclasses.dataclass(frozen=True)
class TorchNetwork:
    """A network as PyTorch's libraries have it.

    Args:
      tensor_maps: every tensor.
      library: whose names they are.
      heads: how the names of its last layers begin.
      backbone: how the names of its ResNet begin; "": it has none.
      dropped: how names begin that we have no place for.
    """

    tensor_maps: list[TensorMap]
    library: str
    heads: tuple[str, ...]
    backbone: str = ""
    dropped: tuple[str, ...] = ()


def torch_network(network: nn.Module) -> TorchNetwork:
    """What `network` is in PyTorch."""
    if isinstance(network, UNet):
        return TorchNetwork(unet_tensor_maps(), "the study's code", ("conv.",))
    if isinstance(network, DeepLabV3 | FCN):
        return torchvision_network(network)
    builders = {
        DeepLabV3Plus: deeplabv3plus_tensor_maps,
        PSPNet: pspnet_tensor_maps,
        FPN: fpn_tensor_maps,
        ResNetUNet: resnet_unet_tensor_maps,
    }
    ours = "encoder" if isinstance(network, ResNetUNet) else "backbone"
    maps = resnet_maps_of(network.backbone, theirs="encoder", ours=ours) + builders[type(network)]()
    return TorchNetwork(maps, SMP, ("segmentation_head.",), "encoder.", ("encoder.fc.",))


def torchvision_network(network: DeepLabV3 | FCN) -> TorchNetwork:
    """DeepLabV3 and FCN, with their auxiliary head or without."""
    if isinstance(network, DeepLabV3):
        maps = deeplabv3_tensor_maps(DEPTHS[network.backbone], auxiliary=network.auxiliary)
    else:
        maps = resnet_maps_of(network.backbone, theirs="backbone", ours="backbone")
        heads = {"classifier": "classifier", "aux_classifier": "auxiliary"}
        for theirs, ours in list(heads.items())[: 1 + network.auxiliary]:
            maps += conv_norm_tensor_maps(f"{theirs}.0", f"{theirs}.1", (ours, "conv"))
            maps += head_tensor_maps(f"{theirs}.4", (ours, "head"))
    dropped = ("backbone.fc.", *(() if network.auxiliary else ("aux_classifier.",)))
    return TorchNetwork(maps, TORCHVISION, ("classifier.4.", "aux_classifier.4."), "backbone.", dropped)


def resnet_maps_of(backbone: str, *, theirs: str, ours: str) -> list[TensorMap]:
    """Every tensor of a ResNet below the names `theirs` and `ours`."""
    return resnet_tensor_maps(DEPTHS[backbone], theirs=theirs, ours=ours, is_basic=backbone in BASIC)


def separable_tensor_maps(torch_name: str, norm: str, path: tuple[str, ...]) -> list[TensorMap]:
    """A depthwise and a pointwise kernel, and BatchNorm."""
    return [
        TensorMap(f"{torch_name}.0.weight", "params", (*path, "depthwise"), KERNEL_AXES),
        TensorMap(f"{torch_name}.1.weight", "params", (*path, "pointwise"), KERNEL_AXES),
        *norm_tensor_maps(norm, (*path, "norm")),
    ]


def deeplabv3plus_tensor_maps() -> list[TensorMap]:
    """Decoder and head of DeepLabV3+."""
    aspp = "decoder.aspp.0"
    maps = conv_norm_tensor_maps(f"{aspp}.convs.0.0", f"{aspp}.convs.0.1", ("aspp", "conv1"))
    for i in (1, 2, 3):
        maps += separable_tensor_maps(f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1", ("aspp", f"conv{i + 1}"))
    maps += conv_norm_tensor_maps(f"{aspp}.convs.4.1", f"{aspp}.convs.4.2", ("aspp", "pooled"))
    maps += conv_norm_tensor_maps(f"{aspp}.project.0", f"{aspp}.project.1", ("aspp", "project"))
    maps += separable_tensor_maps("decoder.aspp.1", "decoder.aspp.2", ("conv",))
    maps += conv_norm_tensor_maps("decoder.block1.0", "decoder.block1.1", ("low_level",))
    maps += separable_tensor_maps("decoder.block2.0", "decoder.block2.1", ("decoder",))
    return maps + head_tensor_maps("segmentation_head.0", ("head",))


def pspnet_tensor_maps() -> list[TensorMap]:
    """Decoder and head of PSPNet."""
    maps = []
    for place, bins in enumerate(BINS):
        block = f"decoder.psp.blocks.{place}.pool.1"
        path = (f"pooled{bins}",)
        if bins == 1:
            maps += head_tensor_maps(f"{block}.0", path)
        else:
            maps += conv_norm_tensor_maps(f"{block}.0", f"{block}.1", path)
    maps += conv_norm_tensor_maps("decoder.conv.0", "decoder.conv.1", ("conv",))
    return maps + head_tensor_maps("segmentation_head.0", ("head",))


def fpn_tensor_maps() -> list[TensorMap]:
    """Decoder and head of FPN."""
    maps = []
    for place, level in enumerate((5, 4, 3, 2)):
        lateral = f"decoder.p{level}" if level == 5 else f"decoder.p{level}.skip_conv"
        maps += head_tensor_maps(lateral, (f"lateral{level}",))
        for number in range(max(level - 2, 1)):
            block = f"decoder.seg_blocks.{place}.block.{number}.block"
            path = (f"segmentation{level}_{number + 1}",)
            maps.append(TensorMap(f"{block}.0.weight", "params", (*path, "kernel"), KERNEL_AXES))
            maps.append(TensorMap(f"{block}.1.weight", "params", (*path, "norm", "scale")))
            maps.append(TensorMap(f"{block}.1.bias", "params", (*path, "norm", "bias")))
    return maps + head_tensor_maps("segmentation_head.0", ("head",))


def resnet_unet_tensor_maps() -> list[TensorMap]:
    """Decoder and head of the U-Net with a ResNet as encoder."""
    maps = []
    for place in range(len(DECODER)):
        for number in (1, 2):
            conv = f"decoder.blocks.{place}.conv{number}"
            maps += conv_norm_tensor_maps(f"{conv}.0", f"{conv}.1", (f"decoder{place + 1}_conv{number}",))
    return maps + head_tensor_maps("segmentation_head.0", ("head",))


def variables_from_torch(
    network: nn.Module, state_dict: StateDict | str | Path, *, target: Mapping | None = None, parts: str = "all"
) -> dict:
    """Variables of a network from a state dict of the library that it follows.

    UNet: the study's code; DeepLabV3 and FCN: torchvision; the others: segmentation_models_pytorch.

    Args:
      network: any of `jaxseg.models`.
      state_dict: arrays or CPU tensors by name, or a file as in `jaxseg.models.weights_io.read_state_dict`.
      target: variables (or their shapes) that the result must match; default: those of `network`.
      parts: "all", "all_but_head", or "backbone": the ResNet alone, also from a state dict of torchvision's ResNet,
        everything else as in `target`.

    Returns:
      {"params": …, "batch_stats": …}.

    Raises:
      InputError: naming leftover, missing and misshapen tensors.
    """
    return load_network(network, state_dict, target=target, parts=parts)[0]


def load_network(
    network: nn.Module, state_dict: StateDict | str | Path, *, target: Mapping | None = None, parts: str = "all"
) -> tuple[dict, LoadReport]:
    """`variables_from_torch` with its report."""
    state_dict, prefix = strip_prefix(to_mapping(state_dict))
    theirs = torch_network(network)
    names = [tensor_map.torch_name for tensor_map in theirs.tensor_maps]
    known = {"all": (), "all_but_head": theirs.heads}
    if theirs.backbone:
        known["backbone"] = tuple(name for name in names if not name.startswith(theirs.backbone))
    fresh = fresh_names(parts, known, target)
    if parts == "backbone":
        state_dict = backbone_alone(state_dict, theirs.backbone)
    return convert(
        state_dict,
        theirs.tensor_maps,
        target=shapes_of(network) if target is None else target,
        architecture=f"{type(network).__name__} of {theirs.library}" + " or a ResNet" * (parts == "backbone"),
        fresh=fresh,
        dropped=theirs.dropped,
        prefix=prefix,
    )


def backbone_alone(state_dict: StateDict, prefix: str) -> StateDict:
    """The tensors of the ResNet, by names that begin with `prefix`, of a whole network or of a bare ResNet."""
    for theirs in ("encoder.", "backbone."):
        if any(name.startswith(theirs) for name in state_dict):
            return {
                prefix + name.removeprefix(theirs): state_dict[name] for name in state_dict if name.startswith(theirs)
            }
    return {prefix + name: array for name, array in state_dict.items()}


def variables_to_torch(network: nn.Module, variables: Mapping) -> dict[str, np.ndarray]:
    """The state dict of a network: the inverse of `variables_from_torch`, PyTorch's counters included."""
    try:
        return convert_back(variables, torch_network(network).tensor_maps)
    except KeyError as error:
        raise InputError(f"{type(network).__name__}: there is no network of PyTorch known for it.") from error
