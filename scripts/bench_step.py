"""Time of one training step of the U-Net, jaxseg beside PyTorch, in one run on whatever device is there.

    python scripts/bench_step.py [--features=32] [--batch=8] [--size=224] [--rounds=5] [--output=FILE.json]

Forward, cross-entropy, backward, Adam; batch already on the device. PyTorch in channels_last, eager; on a GPU also
compiled and under bfloat16 autocast, and jaxseg in bfloat16. The contestants take turns, `rounds` times; printed are
median, minimum and maximum of the rounds, the ratio of medians to eager PyTorch in float32, and the rate of the
convolutions' arithmetic, counted from the network. Needs jaxseg[torch].
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads must not spin while it is jaxseg's turn
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share the GPU's memory
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from jaxseg import parallel
from jaxseg.config import default
from jaxseg.losses import make_loss
from jaxseg.models import initial_variables, make_model
from jaxseg.optim import make_optimizer
from jaxseg.results import commit, write_json
from jaxseg.step import create_peer
from scripts.torch_unet import TorchUNet

CLASSES = 21


def jaxseg_step(options, batch, dtype: str):
    """A function that does one step and waits for it."""
    config = default()
    config.model.update({"features": options.features, "dtype": dtype})
    model = make_model(config.model, num_classes=CLASSES, axis_name=parallel.AXIS)
    variables = initial_variables(model, config.model, seed=0)
    peers = parallel.replicate({"unet": create_peer(model, make_optimizer(config.optim, steps=1), variables)})
    step = parallel.compile_train_step(
        losses={"unet": make_loss(config.loss, config.mutual)}, seed=0, accumulate_steps=1
    )
    sharded = parallel.shard(batch)
    state = [peers]

    def run():
        state[0], measured = step(state[0], sharded)
        return float(np.asarray(measured["unet/loss"])[0])

    return run


def torch_step(options, batch, device: str, *, compiled: bool = False, autocast: bool = False):
    """A function that does one step and waits for it."""
    model = TorchUNet(CLASSES, options.features).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    image = torch.tensor(batch["image"]).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
    label = torch.tensor(batch["label"]).long().to(device)
    forward = torch.compile(model) if compiled else model

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = forward(image)
        loss = torch.nn.functional.cross_entropy(logits.float(), label, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def multiply_adds(features: int, size: int) -> int:
    """Multiply-adds of all convolutions in one image's forward pass, layer by layer."""
    total, widths = 0, [features * 2**level for level in range(5)]
    for level in range(5):
        pixels = (size >> level) ** 2
        inputs = 3 if level == 0 else widths[level - 1]
        total += 9 * pixels * widths[level] * (inputs + widths[level])
        if level < 4:
            total += 9 * pixels * widths[level] * (2 * widths[level] + widths[level])  # decoder
            total += pixels * widths[level + 1] * widths[level]  # transposed convolution: one tap per output pixel
    return total + size**2 * features * CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("features", 32), ("batch", 8), ("size", 224), ("rounds", 5), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size)
    label = np.where(rng.random(shape) < 0.05, 255, rng.integers(CLASSES, size=shape)).astype(np.int32)
    batch = {"image": rng.random((*shape, 3), dtype=np.float32), "label": label, "valid": label != 255}

    gpu = jax.default_backend() == "gpu"
    device = "cuda" if gpu else "cpu"
    contestants = {
        "PyTorch eager float32": torch_step(options, batch, device),
        "jaxseg float32": jaxseg_step(options, batch, "float32"),
    }
    if gpu:
        contestants |= {
            "PyTorch compiled float32": torch_step(options, batch, device, compiled=True),
            "PyTorch compiled bfloat16": torch_step(options, batch, device, compiled=True, autocast=True),
            "jaxseg bfloat16": jaxseg_step(options, batch, "bfloat16"),
        }
    for run in contestants.values():  # compiles and warms up
        run()
        run()
    seconds = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                run()
            seconds[name].append((time.perf_counter() - start) / options.steps)
    report(options, seconds)


def report(options, seconds: dict[str, list[float]]) -> None:
    """Prints the table and writes the JSON."""
    flops = 2 * 3 * multiply_adds(options.features, options.size) * options.batch  # backward: twice the forward
    reference = np.median(seconds["PyTorch eager float32"])
    device = f"{jax.devices()[0].device_kind} ({os.cpu_count()} CPU cores)"
    title = f"training step, {options.features} features, {options.batch} × {options.size}×{options.size}, {device}"
    table = Table(title=title, title_justify="left")
    for column in ("", "median s", "min", "max", "speed against eager", "GFLOP/s"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {}
    for name, values in seconds.items():
        median = float(np.median(values))
        rows[name] = {"median_s": median, "min_s": min(values), "max_s": max(values), "speed": reference / median}
        cells = (
            f"{median:.4f}",
            f"{min(values):.4f}",
            f"{max(values):.4f}",
            f"{reference / median:.2f}x",
            f"{flops / median / 1e9:.0f}",
        )
        table.add_row(name, *cells)
    Console(width=110).print(table)
    if options.output:
        settings = {key: value for key, value in vars(options).items() if key != "output"}
        versions = {"jax": jax.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
        where = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "device": device, "versions": versions}
        write_json(
            options.output, {"benchmark": "step", **where, **settings, "convolution_flops": flops, "results": rows}
        )


if __name__ == "__main__":
    main()
