"""PyTorch state dicts to variables of our networks and back, tensor by tensor, nothing left over and nothing missing.

In: a state dict, `{name: array}` with PyTorch's layouts (convolutions [out, in, h, w], transposed ones
[in, out, h, w]), or with our own names and layouts. Out: {"params": …, "batch_stats": …}, float32. Raises InputError
naming every tensor that is missing, left over or of another shape; a `report`, where one is given, gets a line for
every tensor.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from jaxseg.errors import InputError
from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.resnet import DEPTHS
from jaxseg.models.unet import LEVELS, UNet
from jaxseg.models.weights_io import StateDict, read_state_dict

Report = Callable[[str], None]

START_PX = 2**LEVELS  # side of the image that variables are made with: the smallest that every network takes
STATISTICS = {"running_mean": "mean", "running_var": "var"}


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """One tensor's way: its PyTorch name, our collection and path, and the permutation of its axes (None: as it is)."""

    torch_name: str
    collection: str
    path: tuple[str, ...]
    axes: tuple[int, ...] | None = None


def norm_tensor_maps(torch_name: str, path: tuple[str, ...]) -> list[TensorMap]:
    """The four tensors of a BatchNorm2d."""
    return [
        TensorMap(f"{torch_name}.weight", "params", (*path, "scale")),
        TensorMap(f"{torch_name}.bias", "params", (*path, "bias")),
        *(TensorMap(f"{torch_name}.{theirs}", "batch_stats", (*path, ours)) for theirs, ours in STATISTICS.items()),
    ]


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


def resnet_tensor_maps(depths: Iterable[int]) -> list[TensorMap]:
    """Every tensor of torchvision's dilated ResNet as a backbone, its own classifier `fc` apart."""
    tensor_maps = conv_norm_tensor_maps("backbone.conv1", "backbone.bn1", ("backbone", "stem"))
    for stage, blocks in enumerate(depths, start=1):
        for i in range(blocks):
            theirs, ours = f"backbone.layer{stage}.{i}", ("backbone", f"stage{stage}_block{i + 1}")
            for k in (1, 2, 3):
                tensor_maps += conv_norm_tensor_maps(f"{theirs}.conv{k}", f"{theirs}.bn{k}", (*ours, f"conv{k}"))
            if i == 0:
                tensor_maps += conv_norm_tensor_maps(
                    f"{theirs}.downsample.0", f"{theirs}.downsample.1", (*ours, "downsample")
                )
    return tensor_maps


def deeplabv3_tensor_maps(depths: Iterable[int], *, auxiliary: bool) -> list[TensorMap]:
    """Every tensor of torchvision's DeepLabV3."""
    tensor_maps, aspp = resnet_tensor_maps(depths), "classifier.0"
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


def conv_norm_tensor_maps(conv: str, norm: str, path: tuple[str, ...]) -> list[TensorMap]:
    return [
        TensorMap(f"{conv}.weight", "params", (*path, "kernel"), (2, 3, 1, 0)),
        *norm_tensor_maps(norm, (*path, "norm")),
    ]


def head_tensor_maps(torch_name: str, path: tuple[str, ...]) -> list[TensorMap]:
    return [
        TensorMap(f"{torch_name}.weight", "params", (*path, "kernel"), (2, 3, 1, 0)),
        TensorMap(f"{torch_name}.bias", "params", (*path, "bias")),
    ]


def unet_from_torch(
    state_dict: StateDict | str | Path,
    *,
    target: Mapping | None = None,
    parts: str = "all",
    report: Report | None = None,
) -> dict:
    """Variables of `UNet` from the state dict of the study's released U-Net.

    Args: state_dict, arrays or CPU tensors by name, or a file as in `read_state_dict`; target, variables (or their
    shapes) that the result must match (default: those of the U-Net that the state dict is of); parts, "all" or
    "all_but_head": the head as in `target`; report, called with a line for every tensor.
    Returns {"params": …, "batch_stats": …}. Raises InputError naming leftover, missing and misshapen tensors.
    """
    state_dict, fresh = _mapping(state_dict), {"all": (), "all_but_head": ("conv.",)}
    _check_parts(parts, fresh, target)
    if target is None:
        features, classes = (_size_of(state_dict, name) for name in ("encoder1.enc1conv1.weight", "conv.weight"))
        target = shapes_of(UNet(classes or 1, features or 1))
    return convert(
        state_dict,
        unet_tensor_maps(),
        target=target,
        architecture="the study's U-Net",
        fresh=fresh[parts],
        report=report,
    )


def deeplabv3_from_torch(
    state_dict: StateDict | str | Path,
    *,
    target: Mapping | None = None,
    auxiliary: bool = False,
    parts: str = "all",
    report: Report | None = None,
) -> dict:
    """Variables of `DeepLabV3` from a state dict of torchvision's `deeplabv3_resnet50` or `deeplabv3_resnet101`.

    Args: as `unet_from_torch`, and auxiliary, whether `aux_classifier.*` is kept (else it is dropped where there);
    parts "backbone": the ResNet alone, also from a state dict of torchvision's `resnet50` or `resnet101`, everything
    else as in `target`.
    Returns {"params": …, "batch_stats": …}. Raises InputError naming leftover, missing and misshapen tensors.
    """
    state_dict = _mapping(state_dict)
    heads = ("classifier.4.", "aux_classifier.4.")
    fresh = {"all": (), "all_but_head": heads, "backbone": ("classifier.", "aux_classifier.")}
    _check_parts(parts, fresh, target)
    if parts == "backbone":
        bare = not any(name.startswith("backbone.") for name in state_dict)
        state_dict = {f"backbone.{name}" if bare else name: array for name, array in state_dict.items()}
    if target is None:
        target = shapes_of(_deeplabv3_of(state_dict, auxiliary))
    tensor_maps = deeplabv3_tensor_maps(_depths_of(target["params"]["backbone"]), auxiliary=auxiliary)
    return convert(
        state_dict,
        tensor_maps,
        target=target,
        architecture="a torchvision DeepLabV3 or ResNet" if parts == "backbone" else "a torchvision DeepLabV3",
        fresh=fresh[parts],
        dropped=("backbone.fc.", *(() if auxiliary else ("aux_classifier.",))),
        report=report,
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


def convert_back(variables: Mapping, tensor_maps: list[TensorMap]) -> dict[str, np.ndarray]:
    """Undoes `tensor_maps`; PyTorch's `num_batches_tracked`, which nothing here counts, is 0 (it has no effect where momentum is
    a number, as in these networks)."""
    flat, state_dict = flatten(variables), {}
    paths = {_own_name(m): m for m in tensor_maps}
    if problems := sorted(set(flat) ^ set(paths)):
        raise InputError("these variables are not those of the network in PyTorch: " + _some(problems))
    for name, m in paths.items():
        array = np.asarray(flat[name])
        state_dict[m.torch_name] = np.ascontiguousarray(array.transpose(np.argsort(m.axes))) if m.axes else array
        if m.torch_name.endswith(".running_var"):
            state_dict[m.torch_name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state_dict


def flatten(variables: Mapping) -> dict:
    """Parameters and statistics by our own names: "params/encoder1/conv1/kernel", "batch_stats/encoder1/norm1/mean", …"""
    return traverse_util.flatten_dict({key: variables[key] for key in ("params", "batch_stats")}, sep="/")


def _own_name(m: TensorMap) -> str:
    return "/".join((m.collection, *m.path))


def has_own_names(state_dict: StateDict) -> bool:
    """Whether a file is of ours, as `python -m jaxseg.export --format=safetensors` writes it."""
    return any(name.startswith("params/") for name in state_dict)


def from_own_names(arrays: StateDict, *, target: Mapping, parts: str = "all", report: Report | None = None) -> dict:
    """Variables from arrays by our own names; arguments and errors as `deeplabv3_from_torch`."""
    names = flatten(target)
    heads = ("params/head/", "params/auxiliary/head/")
    fresh = {"all": (), "all_but_head": heads}
    if "backbone" in target["params"]:
        fresh["backbone"] = tuple({name for name in names if "/backbone/" not in name})
    _check_parts(parts, fresh, target)
    tensor_maps = [TensorMap(name, name.split("/")[0], tuple(name.split("/")[1:])) for name in names]
    dropped = () if "auxiliary" in target["params"] else ("params/auxiliary/", "batch_stats/auxiliary/")
    return convert(
        arrays,
        tensor_maps,
        target=target,
        architecture="this network",
        fresh=fresh[parts],
        dropped=dropped,
        report=report,
    )


def _mapping(state_dict: StateDict | str | Path) -> StateDict:
    return read_state_dict(state_dict) if isinstance(state_dict, str | Path) else state_dict


def _check_parts(parts: str, known: Mapping, target: Mapping | None) -> None:
    if parts not in known:
        raise InputError(f"parts={parts!r}; expected {' or '.join(known)}.")
    if parts != "all" and target is None:
        raise InputError(f"parts={parts!r} leaves tensors to be taken from target; give it.")


def _size_of(state_dict: StateDict, name: str) -> int:
    """Output channels of the convolution `name`; 0 where it is not there."""
    return int(np.shape(state_dict[name])[0]) if np.ndim(state_dict.get(name)) else 0


def _deeplabv3_of(state_dict: StateDict, auxiliary: bool) -> DeepLabV3:
    """The network that a state dict is of, as far as it can be told."""
    blocks = {int(m[1]) for name in state_dict if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))}
    backbone = next((name for name, depths in DEPTHS.items() if depths[2] == len(blocks)), "resnet50")
    classes, stem = (_size_of(state_dict, name) or 1 for name in ("classifier.4.weight", "backbone.conv1.weight"))
    return DeepLabV3(classes, backbone, stem, auxiliary=auxiliary)


def _depths_of(backbone: Mapping) -> list[int]:
    return [sum(name.startswith(f"stage{stage}_") for name in backbone) for stage in (1, 2, 3, 4)]


def shapes_of(network: nn.Module) -> dict:
    """The network's variables as shapes, without computing any."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, START_PX, START_PX, 3), np.float32))
    return {collection: shapes[collection] for collection in ("params", "batch_stats")}


def convert(
    state_dict: StateDict,
    tensor_maps: list[TensorMap],
    *,
    target: Mapping,
    architecture: str,
    fresh: tuple[str, ...] = (),
    dropped: tuple[str, ...] = (),
    report: Report | None = None,
) -> dict:
    """Applies `tensor_maps`. Tensors whose PyTorch names start with one of `fresh` are the target's; the file's own of that
    name and those starting with one of `dropped` are left, as are PyTorch's counters `num_batches_tracked`."""
    left = tuple(fresh) + tuple(dropped)
    names = {name for name in state_dict if not name.endswith("num_batches_tracked") and not name.startswith(left)}
    wanted = {m.torch_name for m in tensor_maps if not m.torch_name.startswith(tuple(fresh))}
    problems = [f"missing: {name}" for name in sorted(wanted - names)] + [
        f"left over: {name}" for name in sorted(names - wanted)
    ]
    if problems:
        raise InputError(f"these weights are not those of {architecture}: " + _some(problems))
    flat, wants = {}, traverse_util.flatten_dict({key: target[key] for key in ("params", "batch_stats")})
    for m in tensor_maps:
        path = (m.collection, *m.path)
        if m.torch_name not in wanted:
            flat[path] = wants[path]
            continue
        array = _numbers(m.torch_name, np.asarray(state_dict[m.torch_name]))
        if m.axes and array.ndim != len(m.axes):
            raise InputError(f"tensor {m.torch_name} has shape {array.shape}; expected {len(m.axes)} dimensions.")
        flat[path] = np.ascontiguousarray(array.transpose(m.axes)) if m.axes else array
    _check_shapes(flat, tensor_maps, wants)
    if report is not None:
        _report(report, state_dict, tensor_maps, wanted)
    return traverse_util.unflatten_dict(flat)


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    """float32. Raises InputError where a tensor is of something else, or not finite."""
    if array.dtype.kind in "USOMm":
        raise InputError(f"tensor {name} is of type {array.dtype}; expected numbers.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(
            f"tensor {name} holds values that are not finite ({(~np.isfinite(array)).sum()} of {array.size})."
        )
    return array


def _check_shapes(flat: Mapping, tensor_maps: list[TensorMap], wants: Mapping) -> None:
    problems = []
    for m in tensor_maps:
        path = (m.collection, *m.path)
        ours, theirs = tuple(wants[path].shape), flat[path].shape
        if ours != theirs:
            problems.append(f"{m.torch_name}: {theirs} (in our layout) where the network has {ours}")
    if problems:
        raise InputError(
            "the weights do not fit the network (its width, its backbone, its number of classes): " + _some(problems)
        )


def _report(report: Report, state_dict: StateDict, tensor_maps: list[TensorMap], wanted: set[str]) -> None:
    """A line for every tensor of the network, then one for every tensor of the file that was not taken."""
    for m in tensor_maps:
        ours = _own_name(m)
        if m.torch_name in wanted:
            report(f"loaded   {m.torch_name} {list(np.shape(state_dict[m.torch_name]))} -> {ours}")
        else:
            report(f"fresh    {ours}")
    for name in sorted(set(state_dict) - wanted):
        report(f"dropped  {name} {list(np.shape(state_dict[name]))}")


def _some(problems: list[str], most: int = 8) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more + "."
