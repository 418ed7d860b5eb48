"""Time of one training step of the U-Net, jaxseg beside PyTorch, in one run on whatever device is there.

    python scripts/bench/step.py [--features=32] [--batch=8] [--size=224] [--rounds=5] [--output=FILE.json]

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

from jaxseg.training.peers import make_losses

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads must not spin while it is jaxseg's turn
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share the GPU's memory
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from jaxseg.config import default
from jaxseg.files import write_json
from jaxseg.provenance import commit
from jaxseg.training import parallel
from jaxseg.training.peers import create_peers
from scripts.torch_reference.unet import TorchUNet

CLASSES = 21


def jaxseg_step(options, batch, dtype: str):
    """A function that does one step and waits for it."""
    config = default()
    config.model.update({"features": options.features, "dtype": dtype})
    return step_of(config, batch)


def step_of(config, batch):
    """A function that does one step of the peers of `config` and waits for it."""
    peers, _ = create_peers(config, num_classes=CLASSES, steps=1)
    step = parallel.compile_train_step(losses=make_losses(config), seed=0, accumulate_steps=1)
    state, sharded = [parallel.replicate(peers)], parallel.shard(batch)

    def run():
        state[0], measured = step(state[0], sharded)
        return jax.block_until_ready(measured)

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
    batch = random_batch(options.batch, options.size)
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
    seconds = take_turns(contestants, rounds=options.rounds, steps=options.steps)
    flops = 2 * 3 * multiply_adds(options.features, options.size) * options.batch  # backward: twice the forward
    title = f"training step, {options.features} features, {options.batch} × {options.size}×{options.size}"
    rows = print_table(title, seconds, reference="PyTorch eager float32", flops=flops)
    write_results(options, "step", rows, convolution_flops=flops)


def random_batch(size: int, size_px: int) -> dict[str, np.ndarray]:
    """Noise: what a step costs does not depend on what is in the images."""
    rng, shape = np.random.default_rng(0), (size, size_px, size_px)
    label = np.where(rng.random(shape) < 0.05, 255, rng.integers(CLASSES, size=shape)).astype(np.int32)
    return {"image": rng.random((*shape, 3), dtype=np.float32), "label": label, "valid": label != 255}


def take_turns(contestants: dict, *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step of every contestant, by round, after two steps to compile and warm up."""
    for run in contestants.values():
        run()
        run()
    seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            for _ in range(steps):
                run()
            seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def device_name() -> str:
    return f"{jax.devices()[0].device_kind} ({os.cpu_count()} CPU cores)"


def print_table(title: str, seconds: dict[str, list[float]], *, reference: str, flops: int | None = None) -> dict:
    """Prints median, minimum, maximum and speed against `reference`; returns them by contestant."""
    table, base, rows = (
        Table(title=f"{title}, {device_name()}", title_justify="left"),
        np.median(seconds[reference]),
        {},
    )
    for column in ("", "median s", "min", "max", "speed against eager", *(["GFLOP/s"] if flops else [])):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in seconds.items():
        median = float(np.median(values))
        rows[name] = {"median_s": median, "min_s": min(values), "max_s": max(values), "speed": float(base / median)}
        rate = [f"{flops / median / 1e9:.0f}"] if flops else []
        table.add_row(name, *(f"{v:.4f}" for v in (median, min(values), max(values))), f"{base / median:.2f}x", *rate)
    Console(width=110).print(table)
    return rows


def write_results(options, benchmark: str, rows: dict, **more) -> None:
    """The JSON, with what it needs to be made again, where --output asks for it."""
    if options.output:
        settings = {key: value for key, value in vars(options).items() if key != "output"}
        versions = {"jax": jax.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
        command = " ".join(["python", *sys.argv])
        where = {"command": command, "commit": commit(), "device": device_name(), "versions": versions}
        write_json(options.output, {"benchmark": benchmark, **where, **settings, **more, "results": rows})


if __name__ == "__main__":
    main()
