"""A network as a file for other programs: StableHLO, ONNX, and weights by our names or PyTorch's.

In: an `Export`, one network with its variables and what is to be said of it. Out: a file, and a way to run what is in
it. Programs map image f32 [b, h, w, 3] in [0, 1] to logits f32 [b, h, w, c], normalisation included; files of weights
hold arrays alone.
"""

import contextlib
import dataclasses
import io
import json
import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxseg.config import ON_DILATED_RESNET, peer_sections
from jaxseg.config_checks import SIZE_MULTIPLE_PX
from jaxseg.errors import InputError
from jaxseg.labels import LABELS, Labels
from jaxseg.models.factory import NORMALIZE, make_model
from jaxseg.models.torch_tensors import flatten
from jaxseg.models.torch_weights import load_own_names, variables_from_torch, variables_to_torch
from jaxseg.models.weights_io import read_state_dict, write_state_dict
from jaxseg.provenance import command, commit
from jaxseg.version import __version__

PredictFn = Callable[[np.ndarray], np.ndarray]  # image -> logits

FILE_SUFFIXES = {  # the first one is the default's
    "stablehlo": (".stablehlo",),
    "onnx": (".onnx",),
    "safetensors": (".safetensors",),
    "torch": (".safetensors", ".npz", ".pth", ".pt"),
}
PACKAGES = {
    "stablehlo": (),
    "onnx": ("jax2onnx", "onnx", "onnxruntime"),
    "safetensors": ("safetensors",),
    "torch": ("torch",),
}
PLATFORMS = ("cpu", "cuda", "tpu")  # all of them in one StableHLO file


class RefusedError(RuntimeError):
    """What was written does not compute what the network computes."""


@dataclasses.dataclass(frozen=True)
class Export:
    """One network on its way to a file. variables: {"params", "batch_stats"} of NumPy arrays. suffix: the file's. size_px:
    height and width that the file is for (ONNX), None: every multiple of `symbolic_multiple_px`. about: what FILE.json says."""

    format: str
    suffix: str
    model: nn.Module
    variables: dict
    section: ConfigDict
    size_px: tuple[int, int] | None
    about: dict


def inference_fn(model: nn.Module, variables: dict) -> PredictFn:
    """The network in inference, without what is of training alone."""
    if getattr(model, "auxiliary", False):
        model = model.clone(auxiliary=False)
    return jax.jit(lambda image: model.apply(variables, image, train=False))


def symbolic_multiple_px(section: ConfigDict) -> int:
    """Heights and widths in a StableHLO file are multiples of this: only so can sizes be followed as symbols."""
    dilated = section.output_stride if section.name in ON_DILATED_RESNET else 1
    return max(SIZE_MULTIPLE_PX[section.name], dilated)


def write_stablehlo(export: Export, path: Path) -> None:
    """One program for all `PLATFORMS`, any batch and any multiple of `symbolic_multiple_px`; the weights are constants in it."""
    step = symbolic_multiple_px(export.section)
    shape = jax.export.symbolic_shape(f"b, {step}*h, {step}*w, 3")
    program = jax.export.export(inference_fn(export.model, export.variables), platforms=PLATFORMS)
    path.write_bytes(program(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())


def read_stablehlo(export: Export, path: Path) -> PredictFn:
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def write_onnx(export: Export, path: Path) -> None:
    """By jax2onnx, any batch at the one size `size_px`. Raises InputError where it is not installed."""
    jax2onnx = import_onnx("jax2onnx")
    inputs = [("b", *export.size_px, 3)]  # type: ignore[misc]  # jax2onnx 0.17 cannot follow symbols like 16*h
    program = inference_fn(export.model, export.variables)
    try:
        with silence():
            model = jax2onnx.to_onnx(program, inputs, input_names=["image"], output_names=["logits"])
    except Exception as error:  # whatever it meets in a program of another JAX than its own
        raise InputError(
            f"--format=onnx: jax2onnx {metadata.version('jax2onnx')} cannot follow this network's program in jax"
            f" {jax.__version__} ({type(error).__name__}: {str(error)[:200]}). pip install 'jaxseg[onnx]' in an environment of"
            " its own brings releases that fit each other."
        ) from error
    model.metadata_props.add(key="jaxseg", value=json.dumps(export.about))
    path.write_bytes(model.SerializeToString())


def read_onnx(export: Export, path: Path) -> PredictFn:
    session = import_onnx("onnxruntime").InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda image: session.run(["logits"], {"image": image})[0]


def import_onnx(name: str):
    try:
        with silence():
            return __import__(name)
    except ImportError as error:
        raise InputError(f"--format=onnx needs {error.name}; pip install 'jaxseg[onnx]'.") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """jax2onnx prints and logs its own tracing; what it made is verified, and its errors are exceptions."""
    before = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def write_safetensors(export: Export, path: Path) -> None:
    """Every array by our own name; `config.model.init_from` reads it."""
    arrays = {name: np.ascontiguousarray(array) for name, array in flatten(export.variables).items()}
    write_state_dict(path, arrays, suffix=".safetensors", metadata={"jaxseg": json.dumps(export.about)})


def read_safetensors(export: Export, path: Path) -> PredictFn:
    arrays = read_state_dict(path, suffix=".safetensors")
    return same_weights(export, load_own_names(arrays, target=export.variables)[0])


def write_torch(export: Export, path: Path) -> None:
    """Every tensor by PyTorch's name and in its layout."""
    metadata = {"jaxseg": json.dumps(export.about)}
    state_dict = variables_to_torch(export.model, export.variables)
    write_state_dict(path, state_dict, suffix=export.suffix, metadata=metadata)


def read_torch(export: Export, path: Path) -> PredictFn:
    state_dict = read_state_dict(path, suffix=export.suffix)
    return same_weights(export, variables_from_torch(export.model, state_dict, target=export.variables))


def same_weights(export: Export, read: dict) -> PredictFn:
    """The network with the weights that were read. Raises RefusedError where they are not those written, bit for bit."""
    written, found = flatten(export.variables), flatten(read)
    differ = [name for name in written if not np.array_equal(written[name], found[name])]
    if differ:
        raise RefusedError(f"{len(differ)} of {len(written)} arrays are not as they were written, {differ[0]} first")
    return inference_fn(export.model, read)


WRITE = {"stablehlo": write_stablehlo, "onnx": write_onnx, "safetensors": write_safetensors, "torch": write_torch}
READ = {"stablehlo": read_stablehlo, "onnx": read_onnx, "safetensors": read_safetensors, "torch": read_torch}


def make_export(
    config: ConfigDict,
    variables: dict,
    *,
    peer: str,
    step: int | None,
    format: str,
    suffix: str = "",
    size_px: tuple[int, int] | None = None,
    labels: Labels | None = None,
) -> Export:
    """The network of `peer` with these variables, and what is to be said of it.

    suffix: default: the format's first. labels: default: those of `config.data.name`.
    """
    section = peer_sections(config)[peer].model
    labels = labels or LABELS[config.data.name]
    model = make_model(section, num_classes=labels.num_classes, axis_name=None)
    about = {
        "peer": peer,
        "step": step,
        "data": config.data.name,
        "classes": {str(i): name for i, name in enumerate(labels.names)},
    }
    about |= {"format": format, **interface(section, format, size_px), "model": section.to_dict()}
    about["resize"] = resize_of(config)
    about |= {"versions": versions(format), "command": command(), "commit": commit()}
    return Export(format, suffix or FILE_SUFFIXES[format][0], model, variables, section, size_px, about)


def interface(section: ConfigDict, format: str, size_px: tuple[int, int] | None) -> dict:
    """What goes in, what comes out, and who normalises."""
    mean, std = NORMALIZE[section.normalize]
    multiple = SIZE_MULTIPLE_PX[section.name] if format in ("safetensors", "torch") else symbolic_multiple_px(section)
    sizes = f"h and w multiples of {multiple}" if size_px is None else f"h = {size_px[0]}, w = {size_px[1]}"
    shape = "[b, 3, h, w]" if format == "torch" else "[b, h, w, 3]"
    values = "red, green, blue in [0, 1]"
    by_user = format == "torch" and section.normalize != "none"
    return {
        "input": {"name": "image", "dtype": "float32", "shape": shape, "values": values, "sizes": sizes},
        "output": {
            "name": "logits",
            "dtype": "float32",
            "shape": "[b, c, h, w]" if format == "torch" else "[b, h, w, c]",
            "class": "the argmax over c",
        },
        "normalize": {
            "name": section.normalize,
            "mean": list(mean),
            "std": list(std),
            "by": "the user" if by_user else "the network",
        },
    }


def resize_of(config: ConfigDict) -> str:
    """What is no part of a file: how its user brings images to the size that the network was trained at."""
    size_px = config.data.size_px
    sizes = {"square": f"to {size_px}×{size_px} pixels", "shorter_side": f"to {size_px} pixels on the shorter side"}
    if config.data.resize == "none":
        return "not: it was trained on images at their own pixels"
    return f"images first, {sizes[config.data.resize]}, as in training, and the logits back; the file does neither"


def versions(format: str) -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "numpy", *PACKAGES[format])
    found = {name: metadata.version(name) for name in names if is_installed(name)}
    return {"python": platform.python_version(), "jaxseg": __version__, **found}


def is_installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Everything in full float32 on a CPU, which every file is also for: GPUs and TPUs multiply in fewer bits."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise InputError(
            f"files are verified on the CPU, which JAX_PLATFORMS={jax.config.jax_platforms} leaves out; add cpu to it."
        ) from error
    with jax.default_device(device):
        yield
