"""Files as `torch.save` writes them, made without PyTorch: pickles put together by hand, so that they can name anything.

In: values, dicts, arrays and what is to be called. Out: bytes of the zip archive of PyTorch 1.6 and later, or of the
stream of pickles before it (torch/serialization.py). Opcodes: pickletools of the standard library.
"""

import dataclasses
import io
import pickle
import zipfile

import numpy as np

from jaxseg.models.torch_files import STORAGES, STREAM_START

STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}


@dataclasses.dataclass(frozen=True)
class Global:
    """Something of a module, by its name."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """What a call of it gives."""

    function: Global
    arguments: tuple


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A part of a storage. key: of the storage; elements: its one-dimensional array; shape, strides, offset: in elements."""

    key: str
    elements: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    claimed: int | None = None  # elements that the file says the storage has, where that is a lie


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as contiguous tensors, each with a storage of its own."""
    return {
        name: Tensor(str(i), array.ravel(), array.shape, tuple(n // array.itemsize for n in array.strides))
        for i, (name, array) in enumerate((name, np.array(array, order="C")) for name, array in arrays.items())
    }


def archive(value: object, *, byte_order: bytes | None = b"little", root: str = "weights") -> bytes:
    """The zip archive of `value`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(f"{root}/data.pkl", pickled(value))
        if byte_order:
            file.writestr(f"{root}/byteorder", byte_order)
        for key, elements in storages(value).items():
            file.writestr(f"{root}/data/{key}", elements.tobytes())
    return out.getvalue()


def stream(value: object, *, little_endian: bool = True, version: int = 1001) -> bytes:
    """The stream of `value`."""
    machine = {"protocol_version": version, "little_endian": little_endian, "type_sizes": {"short": 2}}
    found = storages(value)
    start = [STREAM_START, *(pickle.dumps(part, 2) for part in (version, machine)), pickled(value, is_stream=True)]
    contents = [elements.size.to_bytes(8, "little") + elements.tobytes() for elements in found.values()]
    return b"".join([*start, pickle.dumps(list(found), 2), *contents])


def storages(value: object) -> dict[str, np.ndarray]:
    if isinstance(value, Tensor):
        return {value.key: value.elements}
    parts = value.values() if isinstance(value, dict) else value.arguments if isinstance(value, Call) else ()
    return {key: elements for part in parts for key, elements in storages(part).items()}


def pickled(value: object, *, is_stream: bool = False) -> bytes:
    """bytes: a pickle already."""
    if isinstance(value, bytes):
        return value
    return b"\x80\x02" + opcodes(value, is_stream=is_stream) + b"."


def opcodes(value: object, *, is_stream: bool) -> bytes:
    def of(part: object) -> bytes:
        return opcodes(part, is_stream=is_stream)

    match value:
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return of(function) + of(arguments) + b"R"
        case Tensor():
            count = value.elements.size if value.claimed is None else value.claimed
            storage = Global("torch", STORAGE_OF[value.elements.dtype])
            pid = of(("storage", storage, value.key, "cpu", count, *([None] if is_stream else [])))
            facts = b"".join(of(part) for part in (value.offset, value.shape, value.strides, False, {}))
            return of(Global("torch._utils", "_rebuild_tensor_v2")) + b"(" + pid + b"Q" + facts + b"tR"
        case dict():
            return b"}(" + b"".join(of(key) + of(part) for key, part in value.items()) + b"u"
        case tuple():
            return b"(" + b"".join(map(of, value)) + b"t"
    return pickle.dumps(value, 2)[2:-1]  # numbers, texts: without the version and the end
