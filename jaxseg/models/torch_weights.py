"""State dicts of PyTorch's networks to variables of ours and back: which tensor is which.

In: a state dict of the study's U-Net, torchvision or segmentation_models_pytorch, or one with our own names. Out:
{"params": …, "batch_stats": …}, float32, and a `LoadReport` of every tensor. Raises InputError naming every tensor that is
missing, left over or of another shape.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import flax.linen as nn
import numpy as np

from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.deeplabv3plus import DeepLabV3Plus
from jaxseg.models.fcn import FCN
from jaxseg.models.fpn import FPN
from jaxseg.models.pspnet import BINS, PSPNet
from jaxseg.models.resnet import BASIC, DEPTHS
from jaxseg.models.resnet_unet import DECODER, ResNetUNet
from jaxseg.models.torch_tensors import (
    KERNEL_AXES,
    LoadReport,
    TensorMap,
    conv_norm_tensor_maps,
    convert,
    convert_back,
    flatten,
    fresh_names,
    head_tensor_maps,
    norm_tensor_maps,
    shapes_of,
    to_mapping,
)
from jaxseg.models.unet import LEVELS, UNet
from jaxseg.models.weights_io import StateDict, strip_prefix

UNET_HEAD = ("conv.",)
DEEPLABV3_HEADS = ("classifier.4.", "aux_classifier.4.")
OWN_HEADS = ("params/head/", "params/auxiliary/head/", "params/classifier/head/")
TORCHVISION = "torchvision"
SMP = "segmentation_models_pytorch"


def unet_tensor_maps() -> list[TensorMap]:
    """Every tensor of the study's U-Net (the brain-segmentation U-Net's names)."""
    tensor_maps = []
    blocks = [(f"{kind}{i}", f"{kind[:3]}{i}") for kind in ("encoder", "decoder") for i in range(1, LEVELS + 1)]
    for block, short in [*blocks, ("bottleneck", "bottleneck")]:
        for i in (1, 2):
            tensor_maps.append(
                TensorMap(f"{block}.{short}conv{i}.weight", "params", (block, f"conv{i}", "kernel"), (2, 3, 1, 0))
            )
            tensor_maps += norm_tensor_maps(f"{block}.{short}norm{i}", (block, f"norm{i}"))
    for i in range(1, LEVELS + 1):
        tensor_maps.append(TensorMap(f"upconv{i}.weight", "params", (f"upconv{i}", "kernel"), (2, 3, 0, 1)))
        tensor_maps.append(TensorMap(f"upconv{i}.bias", "params", (f"upconv{i}", "bias")))
    tensor_maps.append(TensorMap("conv.weight", "params", ("head", "kernel"), (2, 3, 1, 0)))
    tensor_maps.append(TensorMap("conv.bias", "params", ("head", "bias")))
    return tensor_maps


def resnet_tensor_maps(depths: Iterable[int], *, theirs: str = "backbone", is_basic: bool = False) -> list[TensorMap]:
    """Every tensor of torchvision's ResNet as a backbone, its own classifier `fc` apart; `theirs`: how names begin there."""
    tensor_maps = conv_norm_tensor_maps(f"{theirs}.conv1", f"{theirs}.bn1", ("backbone", "stem"))
    for stage, blocks in enumerate(depths, start=1):
        for i in range(blocks):
            block = f"{theirs}.layer{stage}.{i}"
            path = ("backbone", f"stage{stage}_block{i + 1}")
            for k in (1, 2) if is_basic else (1, 2, 3):
                tensor_maps += conv_norm_tensor_maps(f"{block}.conv{k}", f"{block}.bn{k}", (*path, f"conv{k}"))
            if i == 0 and not (is_basic and stage == 1):
                downsample = f"{block}.downsample"
                tensor_maps += conv_norm_tensor_maps(f"{downsample}.0", f"{downsample}.1", (*path, "downsample"))
    return tensor_maps


def deeplabv3_tensor_maps(depths: Iterable[int], *, auxiliary: bool) -> list[TensorMap]:
    """Every tensor of torchvision's DeepLabV3."""
    tensor_maps = resnet_tensor_maps(depths)
    aspp = "classifier.0"
    for i in range(4):
        tensor_maps += conv_norm_tensor_maps(f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1", ("aspp", f"conv{i + 1}"))
    tensor_maps += conv_norm_tensor_maps(f"{aspp}.convs.4.1", f"{aspp}.convs.4.2", ("aspp", "pooled"))
    tensor_maps += conv_norm_tensor_maps(f"{aspp}.project.0", f"{aspp}.project.1", ("aspp", "project"))
    tensor_maps += conv_norm_tensor_maps("classifier.1", "classifier.2", ("conv",))
    tensor_maps += head_tensor_maps("classifier.4", ("head",))
    if auxiliary:
        tensor_maps += conv_norm_tensor_maps("aux_classifier.0", "aux_classifier.1", ("auxiliary", "conv"))
        tensor_maps += head_tensor_maps("aux_classifier.4", ("auxiliary", "head"))
    return tensor_maps


def resnet_maps_of(backbone: str, *, theirs: str) -> list[TensorMap]:
    """Every tensor of a ResNet, whose names in PyTorch begin with `theirs`."""
    return resnet_tensor_maps(DEPTHS[backbone], theirs=theirs, is_basic=backbone in BASIC)


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


def unet_from_torch(state_dict: StateDict | str | Path, *, target: Mapping | None = None, parts: str = "all") -> dict:
    """Variables of `UNet` from the state dict of the study's released U-Net.

    Args:
      state_dict: arrays or CPU tensors by name, or a file as in `jaxseg.models.weights_io.read_state_dict`.
      target: variables (or their shapes) that the result must match; default: those of the U-Net that the state dict is of.
      parts: "all", or "all_but_head": the head as in `target`.

    Returns:
      {"params": …, "batch_stats": …}.

    Raises:
      InputError: naming leftover, missing and misshapen tensors.
    """
    return load_unet(state_dict, target=target, parts=parts)[0]


def load_unet(
    state_dict: StateDict | str | Path, *, target: Mapping | None = None, parts: str = "all"
) -> tuple[dict, LoadReport]:
    """`unet_from_torch` with its report."""
    state_dict, prefix = strip_prefix(to_mapping(state_dict))
    fresh = fresh_names(parts, {"all": (), "all_but_head": UNET_HEAD}, target)
    if target is None:
        features = _size_of(state_dict, "encoder1.enc1conv1.weight") or 1
        classes = _size_of(state_dict, "conv.weight") or 1
        target = shapes_of(UNet(classes, features))
    options = {"target": target, "architecture": "the study's U-Net", "fresh": fresh, "prefix": prefix}
    return convert(state_dict, unet_tensor_maps(), **options)


def deeplabv3_from_torch(
    state_dict: StateDict | str | Path, *, target: Mapping | None = None, auxiliary: bool = False, parts: str = "all"
) -> dict:
    """Variables of `DeepLabV3` from a state dict of torchvision's `deeplabv3_resnet50` or `deeplabv3_resnet101`.

    Args:
      state_dict: as for `unet_from_torch`.
      target: likewise.
      auxiliary: whether `aux_classifier.*` is kept; else it is dropped where there.
      parts: "all", "all_but_head", or "backbone": the ResNet alone, also from a state dict of torchvision's `resnet50`
        or `resnet101`, everything else as in `target`.

    Returns:
      {"params": …, "batch_stats": …}.

    Raises:
      InputError: naming leftover, missing and misshapen tensors.
    """
    return load_deeplabv3(state_dict, target=target, auxiliary=auxiliary, parts=parts)[0]


def load_deeplabv3(
    state_dict: StateDict | str | Path, *, target: Mapping | None = None, auxiliary: bool = False, parts: str = "all"
) -> tuple[dict, LoadReport]:
    """`deeplabv3_from_torch` with its report."""
    state_dict, prefix = strip_prefix(to_mapping(state_dict))
    known = {"all": (), "all_but_head": DEEPLABV3_HEADS, "backbone": ("classifier.", "aux_classifier.")}
    fresh = fresh_names(parts, known, target)
    if parts == "backbone" and not any(name.startswith("backbone.") for name in state_dict):
        state_dict = {f"backbone.{name}": array for name, array in state_dict.items()}
    if target is None:
        target = shapes_of(_deeplabv3_of(state_dict, auxiliary))
    return convert(
        state_dict,
        deeplabv3_tensor_maps(_depths_of(target["params"]["backbone"]), auxiliary=auxiliary),
        target=target,
        architecture="a torchvision DeepLabV3 or ResNet" if parts == "backbone" else "a torchvision DeepLabV3",
        fresh=fresh,
        dropped=("backbone.fc.", *(() if auxiliary else ("aux_classifier.",))),
        prefix=prefix,
    )


def unet_to_torch(variables: Mapping) -> dict[str, np.ndarray]:
    """State dict of the study's U-Net, PyTorch's counters included: the inverse of `unet_from_torch`."""
    return convert_back(variables, unet_tensor_maps())


def deeplabv3_to_torch(variables: Mapping) -> dict[str, np.ndarray]:
    """State dict of torchvision's DeepLabV3, with `aux_classifier.*` where there is an auxiliary head: the inverse of
    `deeplabv3_from_torch`."""
    params = variables["params"]
    return convert_back(
        variables, deeplabv3_tensor_maps(_depths_of(params["backbone"]), auxiliary="auxiliary" in params)
    )


def has_own_names(state_dict: StateDict) -> bool:
    """Whether a file is of ours, as `python -m jaxseg.export --format=safetensors` writes it."""
    return any(name.startswith("params/") for name in state_dict)


def load_own_names(state_dict: StateDict, *, target: Mapping, parts: str = "all") -> tuple[dict, LoadReport]:
    """Variables from arrays by our own names, and the report; arguments and errors as `deeplabv3_from_torch`."""
    names = flatten(target)
    known = {"all": (), "all_but_head": OWN_HEADS}
    if "backbone" in target["params"]:
        known["backbone"] = tuple({name for name in names if "/backbone/" not in name})
    return convert(
        state_dict,
        [TensorMap(name, name.split("/")[0], tuple(name.split("/")[1:])) for name in names],
        target=target,
        architecture="this network",
        fresh=fresh_names(parts, known, target),
        dropped=() if "auxiliary" in target["params"] else ("params/auxiliary/", "batch_stats/auxiliary/"),
    )


def _size_of(state_dict: StateDict, name: str) -> int:
    """Output channels of the convolution `name`; 0 where it is not there."""
    return int(np.shape(state_dict[name])[0]) if np.ndim(state_dict.get(name)) else 0


def _deeplabv3_of(state_dict: StateDict, auxiliary: bool) -> DeepLabV3:
    """The network that a state dict is of, as far as it can be told."""
    blocks = {int(m[1]) for name in state_dict if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))}
    bottlenecks = {depths[2]: name for name, depths in DEPTHS.items() if name not in BASIC}
    backbone = bottlenecks.get(len(blocks), "resnet50")
    classes, stem = (_size_of(state_dict, name) or 1 for name in ("classifier.4.weight", "backbone.conv1.weight"))
    return DeepLabV3(classes, backbone, stem, auxiliary=auxiliary)


def _depths_of(backbone: Mapping) -> list[int]:
    return [sum(name.startswith(f"stage{stage}_") for name in backbone) for stage in (1, 2, 3, 4)]


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
    maps = resnet_maps_of(network.backbone, theirs="encoder") + builders[type(network)]()
    return TorchNetwork(maps, SMP, ("segmentation_head.",), "encoder.", ("encoder.fc.",))


def torchvision_network(network: DeepLabV3 | FCN) -> TorchNetwork:
    """DeepLabV3 and FCN, with their auxiliary head or without."""
    if isinstance(network, DeepLabV3):
        maps = deeplabv3_tensor_maps(DEPTHS[network.backbone], auxiliary=network.auxiliary)
    else:
        maps = resnet_maps_of(network.backbone, theirs="backbone")
        heads = {"classifier": "classifier", "aux_classifier": "auxiliary"}
        for theirs, ours in list(heads.items())[: 1 + network.auxiliary]:
            maps += conv_norm_tensor_maps(f"{theirs}.0", f"{theirs}.1", (ours, "conv"))
            maps += head_tensor_maps(f"{theirs}.4", (ours, "head"))
    dropped = ("backbone.fc.", *(() if network.auxiliary else ("aux_classifier.",)))
    return TorchNetwork(maps, TORCHVISION, ("classifier.4.", "aux_classifier.4."), "backbone.", dropped)


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
    return convert_back(variables, torch_network(network).tensor_maps)
