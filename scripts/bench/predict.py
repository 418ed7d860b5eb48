"""Images predicted in a second, jaxseg beside the same network in PyTorch, in one run on whatever device is there.

    python -m scripts.bench.predict [--network=unet|deeplabv3] [--batch=8] [--size=234] [--images=16] [--rounds=5]
                                    [--output=FILE.json]

From images uint8 in memory, all of one size and seen at it, to their label maps uint8 in memory: what `jaxseg.predict`
does between reading and writing. Both networks have the same weights, and the share of pixels with the same class is
printed. PyTorch in channels_last under inference_mode, eager. Needs jaxseg[torch].
"""

import argparse

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
from scripts.bench.timing import print_table, take_turns, torch_device, write_rows
from scripts.entry import result_options_of, run
from scripts.needs_torch import torch
from scripts.torch_reference.deeplabv3 import TorchDeepLabV3
from scripts.torch_reference.unet import TorchUNet

CLASSES = 19
TORCH = {"unet": (TorchUNet, unet_from_torch), "deeplabv3": (TorchDeepLabV3, deeplabv3_from_torch)}


def jaxseg_network(name: str, variables: dict) -> Predictor:
    config = default()
    config.model.name = name
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


@torch.inference_mode()
def torch_labels(network: torch.nn.Module, images: list[np.ndarray], batch: int, *, multiple: int) -> list[np.ndarray]:
    """uint8 [h, w] of each, by the usual few lines."""
    device = next(network.parameters()).device
    labels = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        h, w = part[0].shape[:2]
        padded = np.stack(
            [pad_by_edge(image, -(-h // multiple) * multiple, -(-w // multiple) * multiple) for image in part]
        )
        x = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2).float().div(255)
        logits = network(x.contiguous(memory_format=torch.channels_last))
        labels += list(logits[..., :h, :w].argmax(1).to(torch.uint8).cpu().numpy())
    return labels


def main(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    module, convert = TORCH[options.network]
    theirs = module(CLASSES).eval()
    variables = convert({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    images = list(np.random.default_rng(0).integers(0, 256, (options.images, options.size, options.size, 3), np.uint8))
    ours = jaxseg_network(options.network, variables)
    contestants = {
        "PyTorch eager": lambda: torch_labels(theirs, images, options.batch, multiple=ours.multiple_px),
        "jaxseg": lambda: list(predict_labels(ours, images, options=InferenceOptions("none", batch=options.batch))),
    }
    theirs.to(torch_device(), memory_format=torch.channels_last)
    predicted = [contestant() for contestant in contestants.values()]
    same = np.mean([a == b for a, b in zip(*predicted, strict=True)])
    seconds = take_turns(contestants, rounds=options.rounds, steps=options.steps)
    title = f"{options.images} images {options.size}×{options.size} to label maps, {options.network}, batches of {options.batch}"
    rows = print_table(title, seconds, reference="PyTorch eager")
    for name, row in rows.items():
        row["images_per_s"] = options.images / row["median_s"]
        print(f"{name}: {row['images_per_s']:.2f} images/s")
    print(f"the same class at {100 * same:.4f} % of the pixels")
    write_rows(options, "predict", rows, same_class=float(same))


if __name__ == "__main__":
    parser = result_options_of(__doc__, batch=8, size=234, images=16, rounds=5, steps=1)
    parser.add_argument("--network", choices=TORCH, default="unet")
    run(main, parser)
