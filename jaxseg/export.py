"""A network as a file for other programs, verified by running it from that file.

    python -m jaxseg.export --workdir=RUN [--checkpoint=last|best|STEP]
        [--peer=NAME] --format=stablehlo|onnx|safetensors|torch [--output=FILE]
        [--size_px=HEIGHTxWIDTH]
    python -m jaxseg.export --config=FILE --config.model.init_from=WEIGHTS
        --format=… --output=FILE

Out: RUN/export/PEER-STEP.stablehlo (.onnx, .safetensors; PyTorch's names go
into .torch.safetensors, or with --output into .npz or .pth) and FILE.json
beside it, which says what it is. Programs map image f32 [b, h, w, 3] in [0, 1]
to logits f32 [b, h, w, c], normalisation included; files of weights hold arrays
alone. A file is read back and run on random images before it gets its name:
where its logits are not the network's own, it is removed and the status is 1.
On several hosts or devices, one CPU does it all.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from jaxseg import cli
from jaxseg.config import ON_DILATED_RESNET, peer_path, peer_sections
from jaxseg.config_checks import SIZE_MULTIPLE_PX, validate
from jaxseg.errors import InputError
from jaxseg.files import make_parent, user_path
from jaxseg.inference.export_check import sidecar, write_verified
from jaxseg.inference.export_formats import FILE_SUFFIXES, Export, RefusedError, import_onnx, make_export
from jaxseg.models.factory import NORMALIZE
from jaxseg.training.peers import labels_of_run, restore_peers


def load(config: ConfigDict, workdir: Path | None, which: str, peer: str) -> tuple[int | None, dict]:
    """Step and variables of one peer of a checkpoint. Raises InputError."""
    step, peers = restore_peers(config, workdir, which)
    return step, jax.device_get({"params": peers[peer].params, "batch_stats": peers[peer].batch_stats})


def hints(export: Export, output: Path) -> list[str]:
    """How the file is loaded, and what its user must know."""
    if export.format == "stablehlo":
        return [f'logits = jax.export.deserialize(bytearray(open({str(output)!r}, "rb").read())).call(image)']
    if export.format == "onnx":
        return [f'logits = onnxruntime.InferenceSession({str(output)!r}).run(["logits"], {{"image": image}})[0]']
    if export.format == "safetensors":
        return [f"python -m jaxseg.main --config=… --config.model.init_from={shlex.quote(str(output))}"]
    return [torch_counterpart(export), torch_images(export.section)]


def torch_counterpart(export: Export) -> str:
    """Which network of PyTorch takes the tensors."""
    section = export.section
    classes = len(export.about["classes"])
    if section.name == "unet":
        return (
            f"for the brain-segmentation U-Net: UNet(in_channels=3, out_channels={classes}, init_features="
            f"{section.features}).load_state_dict(…); its own forward ends in a sigmoid, which is no part of these logits"
        )
    is_torchvision = section.name in ON_DILATED_RESNET
    library = "torchvision" if is_torchvision else "segmentation_models_pytorch"
    names = {"backbone": ("resnet50", "resnet101"), "stem_features": (64,), "output_stride": (8,)}
    if not is_torchvision:
        names["backbone"] = ("resnet34", "resnet50", "resnet101")
    other = [f"{name}={section[name]}" for name, known in names.items() if section[name] not in known]
    if other:
        title = "DeepLabV3" if section.name == "deeplabv3" else type(export.model).__name__
        return f"{library} builds no {title} with {', '.join(other)}: names and layouts are its own, the network is not"
    if not is_torchvision:
        kind = {"ResNetUNet": "Unet"}.get(type(export.model).__name__, type(export.model).__name__)
        return (
            f'for {library}: {kind}("{section.backbone}", encoder_weights=None, classes={classes}).load_state_dict(…)'
        )
    return (
        f"for torchvision: {section.name}_{section.backbone}(weights=None, weights_backbone=None, num_classes={classes},"
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
    suffix = FILE_SUFFIXES[format][0] if output is None else Path(output).suffix
    known = FILE_SUFFIXES[format]
    if suffix not in known:
        raise InputError(f"--output={output}: with --format={format}, expected a file ending in {' or '.join(known)}.")
    if output is not None and user_path(output, what="--output=").is_dir():
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
        raise InputError(f"--format={'|'.join(FILE_SUFFIXES)} is needed.")
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
    flags.DEFINE_enum("format", None, list(FILE_SUFFIXES), "Of the file.")
    flags.DEFINE_string("peer", None, "Which network; default: the reported one.")
    flags.DEFINE_string("output", None, "File to write; default: RUN/export/PEER-STEP and the format's suffix.")
    flags.DEFINE_string("size_px", None, "HEIGHTxWIDTH that an ONNX file is for; default: the training crops'.")


def execute() -> int:
    given = flags.FLAGS
    config = given.config
    format = given.format
    workdir = user_path(given.workdir, what="--workdir=") if given.workdir else None
    peer = given.peer or config.peer
    refuse(config, peer, format)
    size_px = parse_size(given.size_px, config, peer_sections(config)[peer].model, format)
    suffix = file_suffix(given.output, workdir, format)
    named = None if given.output is None else user_path(given.output, what="--output=")
    if named is not None:
        make_parent(named)
    step, variables = load(config, workdir, given.checkpoint, peer)
    labels = labels_of_run(config, workdir)
    export = make_export(
        config, variables, peer=peer, step=step, format=format, suffix=suffix, size_px=size_px, labels=labels
    )
    output = named or default_output(export, workdir)
    make_parent(output)
    try:
        print_report(export, output, write_verified(export, output)["verified"])
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
