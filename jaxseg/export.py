"""A network as a file for other programs, verified by running it from that file.

    python -m jaxseg.export --workdir=RUN [--checkpoint=last|best|STEP] [--peer=NAME]
                            --format=stablehlo|onnx|safetensors|torch [--output=FILE] [--size_px=HEIGHTxWIDTH]
    python -m jaxseg.export --config=FILE --config.model.init_from=WEIGHTS --format=… --output=FILE

In: a checkpoint, or a file of weights. Out: RUN/export/PEER-STEP.stablehlo (.onnx, .safetensors; PyTorch's names go into
.torch.safetensors, or with --output into .npz or .pth) and FILE.json beside it, which says what it is. Programs map
image f32 [b, h, w, 3] in [0, 1] to logits f32 [b, h, w, c], normalisation included; files of weights hold arrays alone.
A file is read back and run on random images before it gets its name: where its logits are not the network's own, it is
removed and the status is 1. On several hosts or devices, one CPU does it all.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxseg import __version__, cli
from jaxseg.config import peer_path, peer_sections
from jaxseg.config_checks import validate
from jaxseg.errors import InputError, ResourceError
from jaxseg.files import make_parent, write_json
from jaxseg.labels import LABELS
from jaxseg.models.factory import NORMALIZE, SIZE_MULTIPLE_PX, make_model
from jaxseg.models.torch_weights import (
    deeplabv3_from_torch,
    deeplabv3_to_torch,
    flatten,
    from_own_names,
    unet_from_torch,
    unet_to_torch,
)
from jaxseg.models.weights_io import read_state_dict, write_state_dict
from jaxseg.provenance import command, commit
from jaxseg.training.failures import is_full_disk
from jaxseg.training.peers import restored_peers

Predict = Callable[[np.ndarray], np.ndarray]  # image -> logits

SUFFIXES = {  # the first one is the default's
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
# Largest difference of logits over their standard deviation, above what rounding was measured to do to the deepest network,
# DeepLabV3 of ResNet-50. In float32: four times the 5e-4 that it is from itself in float64 (scripts/checks/exports.py):
# fifty layers hand on and amplify what 2^-24 began. In bfloat16: three times the 7e-2 between its programs for one size
# and for all sizes, which XLA fuses otherwise and so rounds elsewhere. That is coarse: it is 3 from itself in float32.
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.2}
SIZES_PX = ((64, 96), (80, 48))  # of the images that are run: multiples of every network's step, not square
BATCHES = (2, 1)


class RefusedError(RuntimeError):
    """What was written does not compute what the network computes."""


@dataclasses.dataclass(frozen=True)
class Export:
    """One network on its way to a file. variables: {"params", "batch_stats"} of NumPy arrays. suffix: the file's. size_px:
    height and width that the file is for (ONNX), None: every multiple of `step_px`. about: what FILE.json says."""

    format: str
    suffix: str
    model: nn.Module
    variables: dict
    section: ConfigDict
    size_px: tuple[int, int] | None
    about: dict


def predictor(model: nn.Module, variables: dict) -> Predict:
    """The network in inference, without what is of training alone."""
    if getattr(model, "auxiliary", False):
        model = model.clone(auxiliary=False)
    return jax.jit(lambda image: model.apply(variables, image, train=False))


def step_px(section: ConfigDict) -> int:
    """Heights and widths in a StableHLO file are multiples of this: only so can sizes be followed as symbols."""
    return max(SIZE_MULTIPLE_PX[section.name], section.output_stride if section.name == "deeplabv3" else 1)


def write_stablehlo(export: Export, path: Path) -> None:
    """One program for all `PLATFORMS`, any batch and any multiple of `step_px`; the weights are constants in it."""
    step = step_px(export.section)
    shape = jax.export.symbolic_shape(f"b, {step}*h, {step}*w, 3")
    program = jax.export.export(predictor(export.model, export.variables), platforms=PLATFORMS)
    path.write_bytes(program(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())


def read_stablehlo(export: Export, path: Path) -> Predict:
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def write_onnx(export: Export, path: Path) -> None:
    """By jax2onnx, any batch at the one size `size_px`. Raises InputError where it is not installed."""
    jax2onnx = import_onnx("jax2onnx")
    inputs = [("b", *export.size_px, 3)]  # jax2onnx 0.17 cannot follow symbols like 16*h
    with silence():
        model = jax2onnx.to_onnx(
            predictor(export.model, export.variables), inputs, input_names=["image"], output_names=["logits"]
        )
    model.metadata_props.add(key="jaxseg", value=json.dumps(export.about))
    path.write_bytes(model.SerializeToString())


def read_onnx(export: Export, path: Path) -> Predict:
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


def read_safetensors(export: Export, path: Path) -> Predict:
    arrays = read_state_dict(path, suffix=".safetensors")
    return same_weights(export, from_own_names(arrays, target=export.variables))


def write_torch(export: Export, path: Path) -> None:
    """Every tensor by PyTorch's name and in its layout."""
    to_torch = unet_to_torch if export.section.name == "unet" else deeplabv3_to_torch
    metadata = {"jaxseg": json.dumps(export.about)}
    write_state_dict(path, to_torch(export.variables), suffix=export.suffix, metadata=metadata)


def read_torch(export: Export, path: Path) -> Predict:
    state_dict, target = read_state_dict(path, suffix=export.suffix), export.variables
    if export.section.name == "unet":
        return same_weights(export, unet_from_torch(state_dict, target=target))
    auxiliary = export.section.auxiliary
    return same_weights(export, deeplabv3_from_torch(state_dict, target=target, auxiliary=auxiliary))


def same_weights(export: Export, read: dict) -> Predict:
    """The network with the weights that were read. Raises RefusedError where they are not those written, bit for bit."""
    written, found = flatten(export.variables), flatten(read)
    differ = [name for name in written if not np.array_equal(written[name], found[name])]
    if differ:
        raise RefusedError(f"{len(differ)} of {len(written)} arrays are not as they were written, {differ[0]} first")
    return predictor(export.model, read)


WRITE = {"stablehlo": write_stablehlo, "onnx": write_onnx, "safetensors": write_safetensors, "torch": write_torch}
READ = {"stablehlo": read_stablehlo, "onnx": read_onnx, "safetensors": read_safetensors, "torch": read_torch}


def differences(export: Export, predict: Predict) -> dict:
    """Random images through the network and through `predict`: how far their logits are apart."""
    rng, own = np.random.default_rng(0), predictor(export.model, export.variables)
    sizes = SIZES_PX if export.size_px is None else (export.size_px,) * len(BATCHES)
    images = [rng.random((b, *size_px, 3), np.float32) for b, size_px in zip(BATCHES, sizes, strict=True)]
    largest, logits, same = 0.0, [], []
    for image in images:
        expected, found = np.asarray(own(image)), np.asarray(predict(image))
        if found.shape != expected.shape or found.dtype != np.float32:
            raise RefusedError(f"its logits are {found.dtype}{list(found.shape)}, not float32{list(expected.shape)}")
        largest = np.maximum(largest, np.abs(found - expected).max())  # NaN stays
        logits.append(expected.ravel())
        same.append((found.argmax(-1) == expected.argmax(-1)).ravel())
    spread = float(np.concatenate(logits).std())
    return {
        "images": [list(image.shape) for image in images],
        "max_difference": float(largest),
        "logits_std": spread,
        "max_difference_over_std": float(largest) / spread if spread else float(largest > 0),
        "tolerance_over_std": TOLERANCE[export.section.dtype],
        "same_class": float(np.concatenate(same).mean()),
    }


def verify(export: Export, path: Path) -> dict:
    """`differences` of the file at `path`. Raises RefusedError where they are beyond `TOLERANCE`, or not finite."""
    measured = differences(export, READ[export.format](export, path))
    if not measured["max_difference_over_std"] <= measured["tolerance_over_std"]:
        raise RefusedError(
            f"logits differ by up to {measured['max_difference']:.2g}, {measured['max_difference_over_std']:.2g} of their"
            f" standard deviation; rounding explains {measured['tolerance_over_std']:.0e}"
        )
    return measured


def write(export: Export, output: Path) -> dict:
    """Writes and verifies `output` and its JSON; returns what the JSON says. Raises RefusedError, InputError,
    ResourceError; then nothing new is left, and a file that was there before stays."""
    part = output.with_name(f"{output.name}.part")
    try:
        with on_cpu():
            WRITE[export.format](export, part)
            measured = verify(export, part)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content = {"file": output.name, "sha256": digest, **export.about, "verified": measured}
        write_json(sidecar(output), content)
        part.rename(output)
    except OSError as error:
        kind = ResourceError if is_full_disk(error) else InputError
        raise kind(f"{output}: cannot be written ({error.strerror or error}).") from error
    finally:
        part.unlink(missing_ok=True)
    return content


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


def sidecar(output: Path) -> Path:
    """unet-1200.onnx.json"""
    return output.with_name(f"{output.name}.json")


def load(config: ConfigDict, workdir: Path | None, which: str, peer: str) -> tuple[int | None, dict]:
    """Step and variables of one peer of a checkpoint. Raises InputError."""
    step, peers = restored_peers(config, workdir, which)
    return step, jax.device_get({"params": peers[peer].params, "batch_stats": peers[peer].batch_stats})


def prepare(
    config: ConfigDict,
    variables: dict,
    *,
    peer: str,
    step: int | None,
    format: str,
    suffix: str = "",
    size_px: tuple[int, int] | None = None,
) -> Export:
    """The network of `peer` with these variables, and what is to be said of it. suffix: default: the format's first."""
    section, labels = peer_sections(config)[peer].model, LABELS[config.data.name]
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
    return Export(format, suffix or SUFFIXES[format][0], model, variables, section, size_px, about)


def interface(section: ConfigDict, format: str, size_px: tuple[int, int] | None) -> dict:
    """What goes in, what comes out, and who normalises."""
    mean, std = NORMALIZE[section.normalize]
    multiple = SIZE_MULTIPLE_PX[section.name] if format in ("safetensors", "torch") else step_px(section)
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


def hints(export: Export, output: Path) -> list[str]:
    """How the file is loaded, and what its user must know."""
    if export.format == "stablehlo":
        return [f'logits = jax.export.deserialize(bytearray(open("{output}", "rb").read())).call(image)']
    if export.format == "onnx":
        return [f'logits = onnxruntime.InferenceSession("{output}").run(["logits"], {{"image": image}})[0]']
    if export.format == "safetensors":
        return [f"python -m jaxseg.main --config=… --config.model.init_from={output}"]
    return [torch_counterpart(export), torch_images(export.section)]


def torch_counterpart(export: Export) -> str:
    """Which network of PyTorch takes the tensors."""
    section, classes = export.section, len(export.about["classes"])
    if section.name == "unet":
        return (
            f"for the brain-segmentation U-Net: UNet(in_channels=3, out_channels={classes}, init_features="
            f"{section.features}).load_state_dict(…); its own forward ends in a sigmoid, which is no part of these logits"
        )
    names = {"backbone": ("resnet50", "resnet101"), "stem_features": (64,), "output_stride": (8,)}
    other = [f"{name}={section[name]}" for name, known in names.items() if section[name] not in known]
    if other:
        return f"torchvision builds no DeepLabV3 with {', '.join(other)}: names and layouts are its own, the network is not"
    return (
        f"for torchvision: deeplabv3_{section.backbone}(weights=None, weights_backbone=None, num_classes={classes},"
        f' aux_loss={section.auxiliary or None}).load_state_dict(…); logits are its output\'s "out"'
    )


def torch_images(section: ConfigDict) -> str:
    """What images must be, the network in PyTorch having no normalisation."""
    if section.normalize == "none":
        return "images in [0, 1], as they are: this network was trained without normalisation"
    mean, std = NORMALIZE[section.normalize]
    return f"images in [0, 1] must be normalised by you: (image - {list(mean)}) / {list(std)}"


def parse_size(text: str | None, config: ConfigDict, section: ConfigDict, format: str) -> tuple[int, int] | None:
    """Height and width of an ONNX file: --size_px, or the crops that the network was trained on. Raises InputError."""
    if format != "onnx":
        if text is not None:
            raise InputError(f"--size_px={text} is for --format=onnx; files of --format={format} are of no one size.")
        return None
    text = f"{config.data.crop_px}x{config.data.crop_px}" if text is None else text
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    step = SIZE_MULTIPLE_PX[section.name]
    if match is None or any(int(side) % step or int(side) == 0 for side in match.groups()):
        of = f", multiples of {step}" if step > 1 else ""
        raise InputError(f"--size_px={text}: expected HEIGHTxWIDTH in pixels{of}, such as 224x320.")
    return int(match[1]), int(match[2])


def file_suffix(output: str | None, workdir: Path | None, format: str) -> str:
    """What the file's name ends in, which for PyTorch's weights is the format itself. Raises InputError."""
    if output is None and workdir is None:
        raise InputError("without --workdir=RUN, --output=FILE is needed.")
    suffix, known = SUFFIXES[format][0] if output is None else Path(output).suffix, SUFFIXES[format]
    if suffix not in known:
        raise InputError(f"--output={output}: with --format={format}, expected a file ending in {' or '.join(known)}.")
    if output is not None and Path(output).is_dir():
        raise InputError(f"--output={output}: is a folder; expected a file.")
    return suffix


def default_output(export: Export, workdir: Path) -> Path:
    """RUN/export/unet-1200.onnx; PyTorch's names go into unet-1200.torch.safetensors, beside our own."""
    name = f"{export.about['peer']}-{export.about['step']}{'.torch' if export.format == 'torch' else ''}"
    return workdir / "export" / f"{name}{export.suffix}"


def refuse(config: ConfigDict, peer: str, format: str | None) -> None:
    """What can be told before anything is read. Raises InputError."""
    validate(config)
    if format is None:
        raise InputError(f"--format={'|'.join(SUFFIXES)} is needed.")
    if peer not in peer_sections(config):
        raise InputError(f"--peer={peer}: there is no such network; expected {' or '.join(peer_sections(config))}.")
    if format == "onnx":
        import_onnx("jax2onnx"), import_onnx("onnxruntime")
        if peer_sections(config)[peer].model.dtype != "float32":
            field = f"{peer_path(config, peer)}.model.dtype"
            raise InputError(
                f"{field}={peer_sections(config)[peer].model.dtype}: ONNX Runtime computes in float32; add"
                f" --{field}=float32 (parameters are float32 anyway)."
            )


def define_flags() -> None:
    cli.define_run()
    flags.DEFINE_enum("format", None, list(SUFFIXES), "Of the file.")
    flags.DEFINE_string("peer", None, "Which network; default: the reported one.")
    flags.DEFINE_string("output", None, "File to write; default: RUN/export/PEER-STEP and the format's suffix.")
    flags.DEFINE_string("size_px", None, "HEIGHTxWIDTH that an ONNX file is for; default: the training crops'.")


def execute() -> int:
    given, config = flags.FLAGS, flags.FLAGS.config
    workdir, peer, format = given.workdir and Path(given.workdir), given.peer or config.peer, given.format
    refuse(config, peer, format)
    size_px = parse_size(given.size_px, config, peer_sections(config)[peer].model, format)
    suffix = file_suffix(given.output, workdir, format)
    if given.output is not None:
        make_parent(Path(given.output))
    step, variables = load(config, workdir, given.checkpoint, peer)
    export = prepare(config, variables, peer=peer, step=step, format=format, suffix=suffix, size_px=size_px)
    output = default_output(export, workdir) if given.output is None else Path(given.output)
    make_parent(output)
    try:
        print_report(export, output, write(export, output)["verified"])
    except RefusedError as error:
        return cli.say(f"refused: {output}: {error}. Nothing was written; please report it.", 1)
    return 0


def print_report(export: Export, output: Path, measured: dict) -> None:
    sizes = " and ".join("×".join(map(str, shape)) for shape in measured["images"])
    print(f"written: {output} ({output.stat().st_size / 1e6:,.1f} MB) and {sidecar(output).name}")
    print(
        f"verified on random images {sizes}: logits differ by at most {measured['max_difference']:.1e},"
        f" {measured['max_difference_over_std']:.1e} of their standard deviation ({measured['tolerance_over_std']:.0e} is let"
        f" pass); same class in {measured['same_class']:.2%} of pixels"
    )
    for line in hints(export, output):
        print(f"use:     {line}")
    print(f"resize:  {export.about['resize']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags)


if __name__ == "__main__":
    sys.exit(main())
