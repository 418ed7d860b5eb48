"""Time of one training step of the U-Net, jaxseg beside PyTorch, in one run on whatever device is there.

    python -m scripts.bench.step [--features=32] [--batch=8] [--size=224] [--rounds=5] [--steps=3] [--torch=all|eager]
                                 [--output=FILE.json]

Forward, cross-entropy, backward, Adam; batch already on the device. PyTorch in channels_last, eager; on a GPU and with
--torch=all also compiled and under bfloat16 autocast; jaxseg on a GPU in bfloat16, too. The contestants take turns,
`rounds` times; printed are median, minimum and maximum of the rounds, the ratio of medians to eager PyTorch in float32,
and the rate of the convolutions' arithmetic, counted from the network. Needs jaxseg[torch].
"""

import argparse
import functools

from ml_collections import ConfigDict

from jaxseg.config import default
from scripts.bench.timing import (
    CLASSES,
    drop_failing,
    dtypes,
    jaxseg_step,
    print_table,
    random_batch,
    take_turns,
    write_rows,
)
from scripts.bench.torch_step import REFERENCE, add_torch_option, torch_steps
from scripts.entry import result_options_of, run
from scripts.needs_torch import torch
from scripts.torch_reference.unet import TorchUNet


def unet_config(features: int, dtype: str) -> ConfigDict:
    """The study's U-Net with so many features."""
    config = default()
    config.model.update({"features": features, "dtype": dtype})
    return config


def multiply_adds(features: int, size: int) -> int:
    """Multiply-adds of all convolutions in one image's forward pass, layer by layer."""
    total = 0
    widths = [features * 2**level for level in range(5)]
    for level in range(5):
        pixels = (size >> level) ** 2
        inputs = 3 if level == 0 else widths[level - 1]
        total += 9 * pixels * widths[level] * (inputs + widths[level])
        if level < 4:
            total += 9 * pixels * widths[level] * (2 * widths[level] + widths[level])  # decoder
            total += pixels * widths[level + 1] * widths[level]  # transposed convolution: one tap per output pixel
    return total + size**2 * features * CLASSES


def main(options: argparse.Namespace) -> None:
    batch = random_batch(options.batch, options.size)
    loss_of = functools.partial(torch.nn.functional.cross_entropy, ignore_index=255)
    contestants = torch_steps(lambda: [TorchUNet(CLASSES, options.features)], loss_of, batch, which=options.torch)
    for dtype in dtypes():
        contestants[f"jaxseg {dtype}"] = jaxseg_step(unet_config(options.features, dtype), batch)
    contestants, failures = drop_failing(contestants, reference=REFERENCE)
    seconds = take_turns(contestants, rounds=options.rounds, steps=options.steps)
    flops = 2 * 3 * multiply_adds(options.features, options.size) * options.batch  # backward: twice the forward
    title = f"training step, {options.features} features, {options.batch} × {options.size}×{options.size}"
    rows = print_table(title, seconds, reference=REFERENCE, flops=flops, failures=failures)
    write_rows(options, "step", rows, convolution_flops=flops)


if __name__ == "__main__":
    run(main, add_torch_option(result_options_of(__doc__, features=32, batch=8, size=224, rounds=5, steps=3)))
