"""PyTorch state dicts to variables of our networks, tensor by tensor, with nothing left over and nothing missing.

In: a state dict, `{name: array}` with PyTorch's layouts (convolutions [out, in, h, w], transposed ones
[in, out, h, w]). Out: {"params": …, "batch_stats": …}, float32. Raises InputError naming every tensor that is missing,
left over or of another shape.
"""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import traverse_util

from jaxseg.config import InputError
from jaxseg.models.unet import LEVELS

STATISTICS = {"running_mean": "mean", "running_var": "var"}


@dataclasses.dataclass(frozen=True)
class Move:
    """One tensor's way: its PyTorch name, our collection and path, and the permutation of its axes (None: as it is)."""

    torch_name: str
    collection: str
    path: tuple[str, ...]
    axes: tuple[int, ...] | None = None


def norm_moves(torch_name: str, path: tuple[str, ...]) -> list[Move]:
    """The four tensors of a BatchNorm2d."""
    return [
        Move(f"{torch_name}.weight", "params", (*path, "scale")),
        Move(f"{torch_name}.bias", "params", (*path, "bias")),
        *(Move(f"{torch_name}.{theirs}", "batch_stats", (*path, ours)) for theirs, ours in STATISTICS.items()),
    ]


def unet_moves() -> list[Move]:
    """Every tensor of the study's U-Net (the brain-segmentation U-Net's names)."""
    moves = []
    blocks = [(f"{kind}{i}", f"{kind[:3]}{i}") for kind in ("encoder", "decoder") for i in range(1, LEVELS + 1)]
    for block, short in [*blocks, ("bottleneck", "bottleneck")]:
        for i in (1, 2):
            moves.append(Move(f"{block}.{short}conv{i}.weight", "params", (block, f"conv{i}", "kernel"), (2, 3, 1, 0)))
            moves += norm_moves(f"{block}.{short}norm{i}", (block, f"norm{i}"))
    for i in range(1, LEVELS + 1):
        moves.append(Move(f"upconv{i}.weight", "params", (f"upconv{i}", "kernel"), (2, 3, 0, 1)))
        moves.append(Move(f"upconv{i}.bias", "params", (f"upconv{i}", "bias")))
    moves.append(Move("conv.weight", "params", ("head", "kernel"), (2, 3, 1, 0)))
    moves.append(Move("conv.bias", "params", ("head", "bias")))
    return moves


def unet_from_torch(state_dict: Mapping[str, np.ndarray] | str | Path, *, target: Mapping | None = None) -> dict:
    """Variables of `UNet` from the state dict of the study's released U-Net.

    Args: state_dict, arrays or CPU tensors by name, or a file as in `read_state_dict`; target, variables (or their
    shapes) that the result must match.
    Returns {"params": …, "batch_stats": …}. Raises InputError naming leftover, missing and misshapen tensors.
    """
    if isinstance(state_dict, str | Path):
        state_dict = read_state_dict(state_dict)
    return move(state_dict, unet_moves(), target=target, architecture="the study's U-Net")


def move(state_dict: Mapping, moves: list[Move], *, target: Mapping | None, architecture: str) -> dict:
    """Applies `moves`; PyTorch's counters `num_batches_tracked` have no counterpart and are dropped."""
    names = {name for name in state_dict if not name.endswith("num_batches_tracked")}
    wanted = {m.torch_name for m in moves}
    problems = [f"missing: {name}" for name in sorted(wanted - names)] + [
        f"left over: {name}" for name in sorted(names - wanted)
    ]
    if problems:
        raise InputError(f"these weights are not those of {architecture}: " + _some(problems))
    flat = {}
    for m in moves:
        array = np.asarray(state_dict[m.torch_name]).astype(np.float32)
        if m.axes and array.ndim != len(m.axes):
            raise InputError(f"tensor {m.torch_name} has shape {array.shape}; expected {len(m.axes)} dimensions.")
        flat[m.collection, *m.path] = np.ascontiguousarray(array.transpose(m.axes)) if m.axes else array
    if target is not None:
        _check_shapes(flat, moves, target)
    return traverse_util.unflatten_dict(flat)


def _check_shapes(flat: Mapping, moves: list[Move], target: Mapping) -> None:
    shapes = {path: tuple(leaf.shape) for path, leaf in traverse_util.flatten_dict(dict(target)).items()}
    problems = []
    for m in moves:
        ours, theirs = shapes[m.collection, *m.path], flat[m.collection, *m.path].shape
        if ours != theirs:
            problems.append(f"{m.torch_name}: {theirs} (in our layout) where the network has {ours}")
    if problems:
        raise InputError(
            "the weights do not fit the network (config.model.features, number of classes): " + _some(problems)
        )


def _some(problems: list[str], most: int = 8) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more + "."


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name from .npz, .safetensors, or a .pth/.pt of tensors (needs PyTorch; unpickles weights only).

    Raises InputError where the file is missing, damaged or holds anything but tensors by name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a file ending in {', '.join(readers)}.")
    try:
        state_dict = readers[path.suffix](path)
    except ImportError as error:
        raise InputError(f"{path}: reading it needs {error.name}; install jaxseg[torch].") from error
    except InputError:
        raise
    except Exception as error:  # each format raises its own kinds for damaged bytes
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {str(error)[:300]}).") from error
    return state_dict


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a NumPy .npz archive.")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors.numpy  # an extra: only weight import needs it

    return safetensors.numpy.load_file(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch  # an extra: only weight import needs it

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not a state dict of tensors by name.")
    return {name: tensor.float().numpy() for name, tensor in loaded.items()}
