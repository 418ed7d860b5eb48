"""What `torch.save` wrote, read without PyTorch and without executing anything of the file.

In: a path. Out: what was saved, tensors as arrays. Such a file is a pickle, a program that may call whatever Python can
import; here it may make ordered dicts and tensors, and every other name is an error. Both formats of
torch/serialization.py: the zip archive of PyTorch 1.6 and later, and the stream of pickles before it (0.1.10 to 1.5).
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxseg.errors import InputError

STORAGES = {
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "BoolStorage": np.dtype(np.bool),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "ShortStorage": np.dtype(np.int16),
}
# torch/serialization.py: MAGIC_NUMBER and PROTOCOL_VERSION, each a pickle by itself
STREAM_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
STREAM_VERSION = 1001

Storages = Callable[[np.dtype, str, int], np.ndarray]  # type, key and number of elements -> elements, one-dimensional


class TensorUnpickler(pickle.Unpickler):
    """Makes dicts, lists, texts, numbers and arrays, whose elements `storage_of` gives; refuses everything else."""

    def __init__(self, file: io.BufferedIOBase, storage_of: Storages):
        super().__init__(file)
        self.storage_of = storage_of

    def find_class(self, module: str, name: str):
        """What the file may name. Functions are new ones each time, so that no file can change what the next one calls."""
        if module == "torch" and name in STORAGES:
            return name  # a text: it cannot be called
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: view(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        raise InputError(
            f"it holds {module}.{name}; nothing but tensors of real numbers is unpickled. Save the state dict alone, by"
            " torch.save(model.state_dict(), FILE), or as .safetensors."
        )

    def persistent_load(self, pid: tuple) -> np.ndarray:
        """A tensor's storage: ("storage", its type, its key, its device, elements), in a stream with a sixth entry."""
        kind, storage_type, key, _, count = pid[:5]
        if kind != "storage" or pid[5:] not in ((), (None,)) or not isinstance(count, int) or count < 0:
            raise InputError("it holds a tensor in a form that is not known here.")
        return self.storage_of(STORAGES[storage_type], key, count)


def view(storage: object, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A tensor's elements among those of its storage, all counted in elements. Raises where they are not all there."""
    if not isinstance(storage, np.ndarray) or math.prod(shape) > storage.size:
        raise InputError(f"it holds a tensor {list(shape)} with fewer elements than that.")
    width = storage.itemsize  # numpy refuses what would reach beyond the storage
    return np.ndarray(shape, storage.dtype, storage, offset * width, [stride * width for stride in strides])


def load_torch_file(path: Path) -> object:
    """What was saved, tensors as arrays, some of them views of one storage. Raises InputError, or what a damaged file
    makes zipfile, pickle and numpy raise."""
    with path.open("rb") as file:
        if file.read(len(STREAM_START)) == STREAM_START:
            return _load_stream(file, size=path.stat().st_size)
        if zipfile.is_zipfile(file):
            return _load_archive(file)
    raise InputError(
        "it is no whole file of torch.save; one from before PyTorch 0.1.10 must be loaded and saved again by PyTorch."
    )


def _load_archive(file: io.BufferedIOBase) -> object:
    """ROOT/data.pkl, and of every storage ROOT/data/KEY."""
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if f"/{name}".endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError("it is a zip archive, but none that torch.save wrote: it has no data.pkl.")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            _check_byte_order(is_little=archive.read(f"{root}byteorder") == b"little")
        read = {}

        def storage_of(dtype: np.dtype, key: str, count: int) -> np.ndarray:
            if (dtype, key) not in read:
                info = archive.getinfo(f"{root}data/{key}")
                if info.file_size != count * dtype.itemsize:
                    raise InputError(f"its storage {key} has {info.file_size} bytes, not {count * dtype.itemsize}.")
                read[dtype, key] = np.frombuffer(archive.read(info), dtype)
            return read[dtype, key]

        return TensorUnpickler(io.BytesIO(archive.read(pickles[0])), storage_of).load()


def _load_stream(file: io.BufferedIOBase, *, size: int) -> object:
    """Behind the magic number pickles of the version, the machine, what was saved and its storages' keys; then, of each
    key, the number of elements in 8 bytes, and the elements."""
    waiting = {}

    def storage_of(dtype: np.dtype, key: str, count: int) -> np.ndarray:
        if count * dtype.itemsize > size:
            raise InputError(f"its storage {key} would have {count * dtype.itemsize} bytes; the file has {size}.")
        return waiting.setdefault((dtype, key), np.zeros(count, dtype))

    version, machine, saved, keys = (TensorUnpickler(file, storage_of).load() for _ in range(4))
    if version != STREAM_VERSION:
        raise InputError(f"its version is {version}; expected {STREAM_VERSION}.")
    _check_byte_order(is_little=machine["little_endian"])
    for key in keys:
        (elements,) = (array for (_, own), array in waiting.items() if own == key)
        if (
            int.from_bytes(file.read(8), "little") != elements.size
            or file.readinto(elements.view(np.uint8)) < elements.nbytes
        ):
            raise InputError(f"its storage {key} is not whole; fetch the file again.")
    return saved


def _check_byte_order(*, is_little: bool) -> None:
    if not is_little:
        raise InputError("it is of a big-endian machine; load and save it again by PyTorch on another.")
