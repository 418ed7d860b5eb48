"""Every export format of networks at their real sizes: how far a file's logits are from the network's own.

    python -m scripts.checks.exports [--size=224] [--networks=unet,deeplabv3] [--output=FILE.json]

Networks with 21 classes, by their `model.name`: a U-Net of 32 features, and all others on a ResNet-50, with fresh weights
and, as after training, statistics of BatchNorm that are those of images. Each format is written, read back and run on
random images, as `python -m jaxseg.export` does it; ONNX files are for --size pixels. PyTorch's files of U-Net and
DeepLabV3 are also loaded, strictly, into networks written in PyTorch and run there. What the networks themselves differ
by from float64 says what rounding is: the source of `jaxseg.inference.export_check.TOLERANCE`. What needs jaxseg[onnx] or
jaxseg[torch] is an empty cell where that is not installed. Status 1 where a file is refused.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxseg.config import default
from jaxseg.errors import InputError
from jaxseg.inference.export_check import TOLERANCE, logit_differences, write_verified
from jaxseg.inference.export_formats import Export, RefusedError, inference_fn, make_export, on_cpu
from jaxseg.models.factory import fresh_variables, make_model
from jaxseg.models.layers import BatchNorm
from jaxseg.models.torch_weights import flatten, load_own_names
from scripts.entry import make_table, result_options_of, run, write_result

CLASSES = 21
IN_PYTORCH = ("unet", "deeplabv3")  # written in PyTorch in scripts/torch_reference
PACKAGES = ("flax", "numpy", "jax2onnx", "onnx", "onnxruntime", "safetensors", "torch")
FILES = {  # what is written: format and suffix
    "StableHLO": ("stablehlo", ".stablehlo"),
    "safetensors": ("safetensors", ".safetensors"),
    "PyTorch, .safetensors": ("torch", ".safetensors"),
    "PyTorch, .npz": ("torch", ".npz"),
    "PyTorch, .pth": ("torch", ".pth"),
    "ONNX": ("onnx", ".onnx"),
}


def config_of(network: str):
    config = default()
    config.data.name = "voc2012"
    config.model.name = config.peer = network
    return config


def trained_variables(section) -> dict:
    """Fresh weights, BatchNorm's scales uniform in [0.5, 1.5], its biases normal(0, 0.1), and as its statistics those of
    eight random images, layer after layer: no layer's share in the logits dies out, as it would with means 0 and
    variances 1."""
    rng = np.random.default_rng(0)
    model = make_model(section, num_classes=CLASSES, axis_name=None)
    fresh = jax.device_get(fresh_variables(model, seed=0))
    arrays = flatten(fresh)
    for name, array in arrays.items():
        *_, layer, kind = name.split("/")
        if layer.startswith("norm") and kind in ("scale", "bias"):
            drawn = rng.uniform(0.5, 1.5, array.shape) if kind == "scale" else rng.normal(0, 0.1, array.shape)
            arrays[name] = drawn.astype(np.float32)
    variables = load_own_names(arrays, target=fresh)[0]
    variables["batch_stats"] = jax.tree.map(np.zeros_like, variables["batch_stats"])
    image = rng.random((8, 64, 96, 3), np.float32)
    rngs = {"dropout": jax.random.key(0)}
    _, updated = jax.jit(lambda v: model.apply(v, image, train=True, mutable=["batch_stats"], rngs=rngs))(variables)
    moments = jax.tree.map(lambda x: np.asarray(x) / BatchNorm.momentum, updated["batch_stats"])
    return variables | {"batch_stats": moments}


def in_pytorch(export: Export, path: Path):
    """The network in PyTorch with the file's tensors, every one of them: image [b, h, w, 3] -> logits [b, h, w, c]."""
    import torch

    from scripts.torch_reference.deeplabv3 import TorchDeepLabV3
    from scripts.torch_reference.unet import TorchUNet

    if export.section.name == "unet":
        network = TorchUNet(CLASSES, export.section.features)
    else:
        section = export.section
        network = TorchDeepLabV3(CLASSES, section.backbone, section.stem_features, section.output_stride)
    if export.suffix == ".pth":
        state_dict = torch.load(path, weights_only=True)
    else:
        from safetensors.torch import load_file

        state_dict = load_file(path)
    network.load_state_dict(state_dict, strict=True)
    network.eval()

    def predict(image):
        with torch.no_grad():
            return network(torch.from_numpy(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous().numpy()

    return predict


def in_float64(export: Export):
    """The network itself in float64, whose distance from float32 is what rounding does."""
    model = export.model.clone(dtype=jnp.dtype("float64"))

    def predict(image):
        with jax.enable_x64(True):
            return np.asarray(inference_fn(model, export.variables)(image.astype(np.float64)), np.float32)

    return predict


def rounding(network: str, size_px: int) -> list[dict]:
    """Rows of the network itself in float64, at the sizes of the check and at that of ONNX files."""
    config = config_of(network)
    rows = []
    variables = trained_variables(config.model)
    for size in (None, (size_px, size_px)):
        export = make_export(config, variables, peer=network, step=None, format="onnx", size_px=size)
        with on_cpu():
            measured = logit_differences(export, in_float64(export))
        name = f"itself in float64, {size_px} pixels" if size else "itself in float64"
        rows.append({"network": network, "file": name} | measured)
    return rows


def check(network: str, name: str, folder: Path, size_px: int) -> list[dict]:
    """A row for the file, and for PyTorch's one more of the network in PyTorch; without numbers where something lacks."""
    format, suffix = FILES[name]
    config = config_of(network)
    size = (size_px, size_px) if format == "onnx" else None
    variables = trained_variables(config.model)
    export = make_export(config, variables, peer=network, step=None, format=format, suffix=suffix, size_px=size)
    row = {"network": network, "file": name}
    output = folder / f"{network}{suffix}"
    start = time.monotonic()
    try:
        measured = write_verified(export, output)["verified"]
    except (InputError, RefusedError) as error:
        return [row | {"refused" if isinstance(error, RefusedError) else "left_out": str(error)}]
    rows = [row | measured | {"bytes": output.stat().st_size, "seconds": time.monotonic() - start}]
    if format == "torch" and suffix != ".npz" and network in IN_PYTORCH:
        row = {"network": network, "file": f"{name}, run in PyTorch"}
        try:
            with on_cpu():
                measured = logit_differences(export, in_pytorch(export, output))
            within = measured["max_difference_over_std"] <= TOLERANCE["float32"]
            rows.append(row | measured | ({} if within else {"refused": "PyTorch's logits are others"}))
        except ImportError:
            rows.append(row | {"left_out": "PyTorch is not installed"})
    return rows


def print_table(rows: list[dict], title: str) -> None:
    columns = ("network", "file", "MB", "largest difference", "over logits' std", "same class", "s")
    table = make_table(title, columns, left=2)
    for row in rows:
        cells = [""] * 5
        if "max_difference" in row:
            cells[1:3] = [f"{row[key]:.1e}" for key in ("max_difference", "max_difference_over_std")]
            cells[3] = f"{row['same_class']:.3%}"
        if "bytes" in row:
            cells[0] = f"{row['bytes'] / 1e6:.1f}"
            cells[4] = f"{row['seconds']:.0f}"
        table.add_row(row["network"], row["file"], *cells, style="bold red" if "refused" in row else None)
    Console(width=120).print(table)
    for row in rows:
        for what in ("refused", "left_out"):
            if what in row:
                print(f"{row['network']}, {row['file']}: {what.replace('_', ' ')}: {row[what]}")


def main(options: argparse.Namespace) -> int:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks.split(","):
            rows += rounding(network, options.size)
            for name in FILES:
                rows += check(network, name, Path(folder), options.size)
                print(f"{network}, {name}: done", file=sys.stderr)
    print_table(rows, f"files against the networks they are of, jax {jax.__version__}")
    write_result(options.output, {"check": "exports", "tolerance": TOLERANCE, "results": rows}, packages=PACKAGES)
    return 1 if any("refused" in row for row in rows) else 0


if __name__ == "__main__":
    parser = result_options_of(__doc__, size=224)
    parser.add_argument("--networks", default="unet,deeplabv3")
    run(main, parser)
