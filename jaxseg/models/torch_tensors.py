"""Tensors of PyTorch to variables of ours and back, one by one, nothing left over and nothing missing.

In: a state dict, `{name: array}` with PyTorch's layouts (convolutions [out, in, h, w], transposed ones
[in, out, h, w]), and where each of its tensors goes. Out: {"params": …, "batch_stats": …}, float32, and a `LoadReport`
of every tensor. Raises InputError naming every tensor that is missing, left over or of another shape.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from jaxseg.errors import InputError
from jaxseg.models.weights_io import StateDict, read_state_dict

START_PX = 32  # side of the image that variables are made with: the smallest that every network takes
STATISTICS = {"running_mean": "mean", "running_var": "var"}
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


def to_mapping(state_dict: StateDict | str | Path) -> StateDict:
    return read_state_dict(state_dict) if isinstance(state_dict, str | Path) else state_dict


def fresh_names(parts: str, known: Mapping, target: Mapping | None) -> tuple[str, ...]:
    """What names of tensors that stay fresh begin with. Raises InputError."""
    if parts not in known:
        raise InputError(f"parts={parts!r}; expected {' or '.join(known)}.")
    if parts != "all" and target is None:
        raise InputError(f"parts={parts!r} leaves tensors to be taken from target; give it.")
    return known[parts]


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
