"""PyTorch state dicts to variables of our networks and back, tensor by tensor, nothing left over and nothing missing.

In: a state dict, `{name: array}` with PyTorch's layouts (convolutions [out, in, h, w], transposed ones
[in, out, h, w]), or with our own names and layouts. Out: {"params": …, "batch_stats": …}, float32, and a `LoadReport`
of every tensor. Raises InputError naming every tensor that is missing, left over or of another shape.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from jaxseg.errors import InputError
from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.resnet import DEPTHS
from jaxseg.models.unet import LEVELS, UNet
from jaxseg.models.weights_io import StateDict, read_state_dict, strip_prefix

START_PX = 32  # side of the image that variables are made with: the smallest that every network takes
STATISTICS = {"running_mean": "mean", "running_var": "var"}
UNET_HEAD = ("conv.",)
DEEPLABV3_HEADS = ("classifier.4.", "aux_classifier.4.")
OWN_HEADS = ("params/head/", "params/auxiliary/head/", "params/classifier/head/")
KERNEL_AXES = (2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every tensor when weights were loaded, each as a line with its name and shape.

    loaded: taken from the file. fresh: of the network, left as they were. dropped: of the file, not taken. note:
    sentences on the file as a whole.
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    note: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """All of them, each with its kind in front."""
        return [f"{kind:<8} {name}" for kind, names in dataclasses.asdict(self).items() for name in names]


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """Where one tensor goes: its PyTorch name, our collection and path, the permutation of its axes (None: none)."""

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


def resnet_tensor_maps(
    depths: Iterable[int], *, theirs: str = "backbone", ours: str = "backbone", is_basic: bool = False
) -> list[TensorMap]:
    """Every tensor of torchvision's ResNet below the names `theirs` and `ours`, its own classifier `fc` apart."""
    tensor_maps = conv_norm_tensor_maps(f"{theirs}.conv1", f"{theirs}.bn1", (ours, "stem"))
    for stage, blocks in enumerate(depths, start=1):
        for i in range(blocks):
            block = f"{theirs}.layer{stage}.{i}"
            path = (ours, f"stage{stage}_block{i + 1}")
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


def conv_norm_tensor_maps(conv: str, norm: str, path: tuple[str, ...]) -> list[TensorMap]:
    return [
        TensorMap(f"{conv}.weight", "params", (*path, "kernel"), KERNEL_AXES),
        *norm_tensor_maps(norm, (*path, "norm")),
    ]


def head_tensor_maps(torch_name: str, path: tuple[str, ...]) -> list[TensorMap]:
    return [
        TensorMap(f"{torch_name}.weight", "params", (*path, "kernel"), KERNEL_AXES),
        TensorMap(f"{torch_name}.bias", "params", (*path, "bias")),
    ]


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


def convert_back(variables: Mapping, tensor_maps: list[TensorMap]) -> dict[str, np.ndarray]:
    """Undoes `tensor_maps`; PyTorch's `num_batches_tracked`, which nothing here counts, is 0 (it has no effect where momentum is
    a number, as in these networks)."""
    flat = flatten(variables)
    state_dict = {}
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


def to_mapping(state_dict: StateDict | str | Path) -> StateDict:
    return read_state_dict(state_dict) if isinstance(state_dict, str | Path) else state_dict


def fresh_names(parts: str, known: Mapping, target: Mapping | None) -> tuple[str, ...]:
    """What names of tensors that stay fresh begin with. Raises InputError."""
    if parts not in known:
        raise InputError(f"parts={parts!r}; expected {' or '.join(known)}.")
    if parts != "all" and target is None:
        raise InputError(f"parts={parts!r} leaves tensors to be taken from target; give it.")
    return known[parts]


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
    prefix: str = "",
) -> tuple[dict, LoadReport]:
    """Applies `tensor_maps`.

    Args:
      state_dict: arrays by name.
      tensor_maps: where each goes.
      target: variables, or their shapes, that the result must match.
      architecture: what the file should be of, for messages.
      fresh: tensors whose names begin so are the target's; the file's own are left.
      dropped: tensors of the file whose names begin so are left, as are PyTorch's counters `num_batches_tracked`.
      prefix: what `strip_prefix` took from every name, for the report.

    Returns:
      The variables and the report.

    Raises:
      InputError: naming leftover, missing and misshapen tensors.
    """
    left = fresh + dropped
    names = {name for name in state_dict if not name.endswith("num_batches_tracked") and not name.startswith(left)}
    wanted = {m.torch_name for m in tensor_maps if not m.torch_name.startswith(fresh)}
    problems = [f"missing: {name}" for name in sorted(wanted - names)]
    problems += [f"left over: {name}" for name in sorted(names - wanted)]
    if problems:
        raise InputError(f"these weights are not those of {architecture}: " + _some(problems))
    ours = traverse_util.flatten_dict({key: target[key] for key in ("params", "batch_stats")})
    flat = {}
    for m in tensor_maps:
        path = (m.collection, *m.path)
        flat[path] = _permuted(m, state_dict[m.torch_name]) if m.torch_name in wanted else ours[path]
    _check_shapes(flat, tensor_maps, ours)
    report = _report(state_dict, tensor_maps, wanted)
    if prefix:
        report = dataclasses.replace(report, note=(f"the prefix {prefix!r} of all names was taken off",))
    return traverse_util.unflatten_dict(flat), report


def _permuted(m: TensorMap, tensor) -> np.ndarray:
    """float32, in our layout. Raises InputError where it cannot be."""
    array = _numbers(m.torch_name, np.asarray(tensor))
    if m.axes is None:
        return array
    if array.ndim != len(m.axes):
        raise InputError(f"tensor {m.torch_name} has shape {array.shape}; expected {len(m.axes)} dimensions.")
    return np.ascontiguousarray(array.transpose(m.axes))


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
    problems = {}
    for m in tensor_maps:
        path = (m.collection, *m.path)
        ours = tuple(wants[path].shape)
        theirs = flat[path].shape
        if ours != theirs:
            problems[path] = f"{m.torch_name}: {theirs} (in our layout) where the network has {ours}"
    if problems:
        is_of_head = all("head" in path for path in problems)
        hint = " All but the head fits: init_parts='all_but_head' takes that." if is_of_head else ""
        raise InputError(
            "the weights do not fit the network (its width, its backbone, its number of classes): "
            + _some(list(problems.values()))
            + hint
        )


def _report(state_dict: StateDict, tensor_maps: list[TensorMap], wanted: set[str]) -> LoadReport:
    def named(name: str) -> str:
        return f"{name} {list(np.shape(state_dict[name]))}"

    loaded = [f"{named(m.torch_name)} -> {_own_name(m)}" for m in tensor_maps if m.torch_name in wanted]
    fresh = [_own_name(m) for m in tensor_maps if m.torch_name not in wanted]
    return LoadReport(tuple(loaded), tuple(fresh), tuple(named(name) for name in sorted(set(state_dict) - wanted)))


def _some(problems: list[str], most: int = 8) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more + "."
