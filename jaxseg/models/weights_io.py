"""Files of weights: arrays by name from and to .npz, .safetensors and PyTorch's .pth.

In: a path. Out: `{name: array}`, or an `InputError` that names the file. Reading needs no PyTorch, writing a .pth does.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxseg.errors import InputError
from jaxseg.files import user_path
from jaxseg.models.torch_files import load_torch_file

StateDict = Mapping[str, np.ndarray]

# Where checkpoints keep the state dict: PyTorch Lightning; PyTorch's tutorials; torchvision's reference training
WRAPPERS = ("state_dict", "model_state_dict", "model")
# What stands before every name: of (Distributed)DataParallel, of torch.compile, and of a network that is kept as `model`
PREFIXES = ("module.", "_orig_mod.", "model.")


def read_state_dict(path: str | Path, *, suffix: str = "") -> dict[str, np.ndarray]:
    """Arrays by name from .npz, .safetensors, or a .pth/.pt, of which tensors alone are unpickled.

    suffix: which of them it is, where the file's name does not say. Raises InputError where the file is missing, damaged
    or holds anything but tensors by name.
    """
    path = user_path(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: there is no such file.")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    suffix = suffix or path.suffix
    if suffix not in readers:
        raise InputError(f"{path}: expected a file ending in {', '.join(readers)}.")
    try:
        state_dict = readers[suffix](path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # each format raises its own kinds for damaged bytes
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {str(error)[:300]}).") from error
    return state_dict


def write_state_dict(
    path: Path, state_dict: StateDict, *, suffix: str, metadata: Mapping[str, str] | None = None
) -> None:
    """What `read_state_dict` reads, in the format that `suffix` names; metadata: of a .safetensors file, text by name.

    Raises InputError for .pth and .pt without PyTorch.
    """
    if suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, **state_dict)
    elif suffix == ".safetensors":
        path.write_bytes(safetensors.numpy.save(dict(state_dict), metadata=metadata))  # save_file's are private (0600)
    else:
        _write_torch(path, state_dict)


def _write_torch(path: Path, state_dict: StateDict) -> None:
    try:
        import torch  # an extra: never needed to train or predict
    except ImportError as error:
        raise InputError(
            "a .pth file is PyTorch's own and needs it: install jaxseg[torch], or write .safetensors or .npz, which hold the"
            " same tensors."
        ) from error
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state_dict.items()}, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise InputError("not a NumPy .npz archive.")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    loaded = load_torch_file(path)
    inside = [loaded[key] for key in WRAPPERS if key in loaded] if isinstance(loaded, Mapping) else []
    state_dict = next(filter(_is_state_dict, [loaded, *inside]), None)
    if state_dict is None:
        raise InputError(f"holds a {type(loaded).__name__}, not a state dict of tensors by name.")
    return {name: np.array(tensor, order="C") for name, tensor in state_dict.items()}


def _is_state_dict(loaded: object) -> bool:
    return isinstance(loaded, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in loaded.items()
    )


def strip_prefix(state_dict: StateDict) -> tuple[StateDict, str]:
    """The state dict without what wrappers put before every name, and that prefix.

    >>> stripped, prefix = strip_prefix({"module._orig_mod.conv.weight": np.zeros(2)})
    >>> list(stripped), prefix
    (['conv.weight'], 'module._orig_mod.')
    """
    prefix = ""
    names = list(state_dict)
    while found := next((p for p in PREFIXES if names and all(name.startswith(prefix + p) for name in names)), ""):
        prefix += found
    return {name.removeprefix(prefix): array for name, array in state_dict.items()}, prefix
