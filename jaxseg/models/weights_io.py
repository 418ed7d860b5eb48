"""Files of weights: arrays by name from and to .npz, .safetensors and PyTorch's .pth.

In: a path. Out: `{name: array}`, or an `InputError` that names the file.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxseg.errors import InputError
from jaxseg.files import user_path

StateDict = Mapping[str, np.ndarray]


def read_state_dict(path: str | Path, *, suffix: str = "") -> dict[str, np.ndarray]:
    """Arrays by name from .npz, .safetensors, or a .pth/.pt of tensors (needs PyTorch; unpickles weights only).

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
    except ImportError as error:
        raise InputError(f"{path}: reading it needs {error.name}; install jaxseg[torch].") from error
    except InputError:
        raise
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
        raise InputError(f"{path}: not a NumPy .npz archive.")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch  # an extra: never needed to train or predict

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not a state dict of tensors by name.")
    return {name: tensor.float().numpy() for name, tensor in loaded.items()}
