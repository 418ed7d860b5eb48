"""Images predicted in a second, jaxseg beside the same network in PyTorch, in one run on whatever device is there.

    python -m scripts.bench.predict [--network=unet|deeplabv3] [--batch=8] [--size=234] [--images=16] [--rounds=5]
                                    [--torch=all|eager] [--output=FILE.json]

From images uint8 in memory, all of one size and seen at it, to their label maps uint8 in memory: what `jaxseg.predict`
does between reading and writing. All networks have the same weights, and the share of pixels with the same class as
eager PyTorch's in float32 is printed. PyTorch in channels_last under inference_mode, eager; on a GPU and with --torch=all
also compiled and under bfloat16 autocast; jaxseg on a GPU in bfloat16, too. Needs jaxseg[torch].
"""

import argparse
import functools

import numpy as np
import optax

from jaxseg.config import default
from jaxseg.config_checks import SIZE_MULTIPLE_PX
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.predictor import Predictor, predict_labels
from jaxseg.inference.tiling import pad_by_edge
from jaxseg.labels import LABELS
from jaxseg.models.factory import make_model
from jaxseg.models.torch_weights import deeplabv3_from_torch, unet_from_torch
from jaxseg.training import parallel
from jaxseg.training.state import create_peer
from scripts.bench.timing import (
    Contestants,
    drop_failing,
    dtypes,
    print_table,
    take_turns,
    torch_device,
    write_rows,
)
from scripts.bench.torch_step import REFERENCE, add_torch_option, variants
from scripts.entry import result_options_of, run
from scripts.needs_torch import torch
from scripts.torch_reference.deeplabv3 import TorchDeepLabV3
from scripts.torch_reference.unet import TorchUNet

CLASSES = 19
TORCH = {"unet": (TorchUNet, unet_from_torch), "deeplabv3": (TorchDeepLabV3, deeplabv3_from_torch)}


def jaxseg_network(name: str, variables: dict, dtype: str) -> Predictor:
    config = default()
    config.model.update({"name": name, "dtype": dtype})
    model = make_model(config.model, num_classes=CLASSES, axis_name=parallel.AXIS)
    peer = create_peer(model, optax.identity(), variables)
    forward = parallel.compile_predict()
    labels = LABELS["cityscapes"]
    return Predictor(
        name=name,
        step=None,
        peer=parallel.replicate(peer),
        forward=forward,
        forward_labels=parallel.compile_predict_labels(),
        labels=labels,
        data=config.data,
        multiple_px=SIZE_MULTIPLE_PX[name],
        activation="softmax",
    )


def jaxseg_labels(network: Predictor, images: list[np.ndarray], options: InferenceOptions) -> list[np.ndarray]:
    return list(predict_labels(network, images, options=options))


@torch.inference_mode()
def torch_labels(
    network: torch.nn.Module, images: list[np.ndarray], batch: int, *, multiple: int, autocast: bool
) -> list[np.ndarray]:
    """uint8 [h, w] of each, by the usual few lines."""
    device = torch_device()
    labels = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        h, w = part[0].shape[:2]
        padded = np.stack(
            [pad_by_edge(image, -(-h // multiple) * multiple, -(-w // multiple) * multiple) for image in part]
        )
        x = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2).float().div(255)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        labels += list(logits[..., :h, :w].argmax(1).to(torch.uint8).cpu().numpy())
    return labels


def torch_contestants(network: torch.nn.Module, images: list[np.ndarray], options: argparse.Namespace) -> Contestants:
    """PyTorch's, by name."""
    contestants = {}
    multiple = SIZE_MULTIPLE_PX[options.network]
    for name, how in variants(options.torch).items():
        forward = torch.compile(network) if how.get("compiled") else network
        settings = {"multiple": multiple, "autocast": how.get("autocast", False)}
        contestants[f"PyTorch {name}"] = functools.partial(torch_labels, forward, images, options.batch, **settings)
    return contestants


def main(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    module, convert = TORCH[options.network]
    theirs = module(CLASSES).eval()
    variables = convert({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    images = list(np.random.default_rng(0).integers(0, 256, (options.images, options.size, options.size, 3), np.uint8))
    theirs.to(torch_device(), memory_format=torch.channels_last)
    contestants = torch_contestants(theirs, images, options)
    for dtype in dtypes():
        ours = jaxseg_network(options.network, variables, dtype)
        view = InferenceOptions("none", batch=options.batch)
        contestants[f"jaxseg {dtype}"] = functools.partial(jaxseg_labels, ours, images, view)
    contestants, failures = drop_failing(contestants, reference=REFERENCE)
    predicted = {name: contestant() for name, contestant in contestants.items()}
    seconds = take_turns(contestants, rounds=options.rounds, steps=options.steps)
    title = f"{options.images} images {options.size}×{options.size} to label maps, {options.network}, batches of {options.batch}"
    rows = print_table(title, seconds, reference=REFERENCE, failures=failures)
    for name, labels in predicted.items():
        row = rows[name]
        row["images_per_s"] = options.images / row["median_s"]
        row["same_class"] = float(np.mean([a == b for a, b in zip(labels, predicted[REFERENCE], strict=True)]))
        print(
            f"{name}: {row['images_per_s']:.2f} images/s, the same class at {100 * row['same_class']:.4f} % of the pixels"
        )
    write_rows(options, "predict", rows)


if __name__ == "__main__":
    parser = result_options_of(__doc__, batch=8, size=234, images=16, rounds=5, steps=1)
    parser.add_argument("--network", choices=TORCH, default="unet")
    run(main, add_torch_option(parser))
