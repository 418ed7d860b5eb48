"""Time and memory of the RMI loss and its gradient, jaxseg beside PyTorch, in one run on whatever device is there.

    python -m scripts.bench.rmi [--rounds=5] [--small|--case=0..5] [--divide=1] [--torch=all|eager]
                                [--output=FILE.json]

Region mutual information alone, radius 3, from logits to the gradient of logits, at [8, 224, 224, 21] and
[4, 512, 1024, 19], with max pooling 3 and without. PyTorch computes in float64 as published
(`scripts/torch_reference/rmi.py`), eager and, on a GPU and with --torch=all, compiled; jaxseg in float32. Labels are
rendered scenes, which show 9 of the classes; or squares of every class ("dense"), because on a CPU jaxseg skips the
classes that an image does not show. Both with 2 % void. The contestants take turns, `rounds` times, after two calls of
each; printed are median, minimum and maximum, the ratio of medians, and the peak memory above what lay there before the
call (in a process of its own: resident memory on a CPU, the allocator's peak on a GPU). --divide=4 makes heights and
widths a quarter, to try it out.

The floor is what any implementation must do: read logits and write their gradient (bytes), and the multiply-adds of
three Gram matrices and two products with d × d matrices over n regions (operations), at the rates that this script
measures on the device by a copy and a large matrix product. On a GPU the share of a training step of the U-Net (8 ×
224², float32) is printed too. Needs jaxseg[torch].
"""

import argparse
import ctypes
import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console

from jaxseg.config import default
from jaxseg.data.synthetic import render_scene
from jaxseg.labels import CITYSCAPES
from jaxseg.losses.rmi import rmi_loss
from jaxseg.losses.rmi_maps import pooled_size
from scripts.bench.timing import drop_failing, jaxseg_step, random_batch, take_turns, torch_device
from scripts.bench.torch_step import add_torch_option, variants
from scripts.entry import device_name, make_table, result_options_of, run, write_result
from scripts.needs_torch import torch
from scripts.torch_reference.rmi import TorchRMI

CASES = [
    ((8, 224, 224, 21), "max", "scenes"),
    ((8, 224, 224, 21), "none", "scenes"),
    ((8, 224, 224, 21), "max", "dense"),
    ((8, 224, 224, 21), "none", "dense"),
    ((4, 512, 1024, 19), "max", "scenes"),
    ((4, 512, 1024, 19), "none", "scenes"),
]
RADIUS, POOL_SIZE = 3, 3


def inputs(shape, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits f32, unsure but right, and labels int, 2 % of them void."""
    rng = np.random.default_rng(0)
    b, h, w, c = shape
    if labels == "scenes":
        scenes = [CITYSCAPES.train_id_of_raw[render_scene(number)[1]].astype(np.uint8) for number in range(b)]
        label = np.stack([np.asarray(Image.fromarray(s).resize((w, h), Image.NEAREST)) for s in scenes]).astype(int)
    else:
        label = np.kron(rng.integers(c, size=(b, -(-h // 16), -(-w // 16))), np.ones((1, 16, 16), int))[:, :h, :w]
    logits = rng.standard_normal(shape, dtype=np.float32)
    np.put_along_axis(logits, np.minimum(label, c - 1)[..., None], 2.0, axis=-1)
    return logits, np.where(rng.random(label.shape) < 0.02, 255, label)


def jaxseg_call(shape, pool: str, labels: str):
    """A function that does it once and waits."""
    logits, label = inputs(shape, labels)
    logits, label = jnp.asarray(logits), jnp.asarray(label, jnp.int32)
    function = jax.jit(jax.value_and_grad(lambda x, y: rmi_loss(x, y, radius=RADIUS, pool=pool, pool_size=POOL_SIZE)))
    function = function.lower(logits, label).compile()
    return lambda: jax.block_until_ready(function(logits, label))


def torch_call(shape, pool: str, labels: str, *, compiled: bool = False):
    device = torch_device()
    logits, label = inputs(shape, labels)
    logits = torch.tensor(logits).permute(0, 3, 1, 2).contiguous().to(device)
    label = torch.tensor(label).to(device)
    rmi = TorchRMI(radius=RADIUS, pool=pool, pool_size=POOL_SIZE).rmi
    rmi = torch.compile(rmi) if compiled else rmi

    def call():
        x = logits.detach().requires_grad_()
        rmi(x, label).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


REFERENCE = "PyTorch float64"
COMPILED = "PyTorch compiled float64"
CALLS = {
    REFERENCE: torch_call,
    COMPILED: functools.partial(torch_call, compiled=True),
    "jaxseg float32": jaxseg_call,
}


def peak_bytes(name: str, shape, pool: str, labels: str) -> int:
    """Above what lay there before the call, inputs and compiled code among it."""
    call = CALLS[name](shape, pool, labels)
    if jax.default_backend() == "gpu":
        call()
        if name.startswith("jaxseg"):
            return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
        return torch.cuda.max_memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmHWM")
    call()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_in_own_process(name: str, *case) -> int | None:
    """None where the kernel killed the process: out of memory. Raises RuntimeError where it failed otherwise."""
    arguments = [sys.executable, "-m", "scripts.bench.rmi", "--peak_of", json.dumps([name, *case])]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{name} at {case} ended with {done.returncode}: {done.stderr[-1000:]}")
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def rates() -> tuple[float, float]:
    """Bytes/s of a copy (read and written) and float32 multiply-adds/s of a large matrix product, on this device."""
    x = jnp.zeros(2**26, jnp.float32)
    a = jnp.ones((2048, 2048), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    calls = {"copy": lambda: copy(x).block_until_ready(), "product": lambda: product(a).block_until_ready()}
    seconds = take_turns(calls, rounds=5)
    return 2 * x.nbytes / min(seconds["copy"]), 2048**3 / min(seconds["product"])


def floor_seconds(shape, pool: str, rate: tuple[float, float]) -> float:
    """The larger of bytes and operations over their rates; see the top."""
    b, h, w, c = shape
    n = np.prod([pooled_size(size, pool=pool, pool_size=POOL_SIZE) - RADIUS + 1 for size in (h, w)])
    d = RADIUS**2
    triangles = 2 * d * (d + 1) // 2 + d * d  # Σpp and RRᵀ are symmetric, Σyp is not
    return max(2 * 4 * b * h * w * c / rate[0], float(b * c * n * (triangles + 2 * d * d)) / rate[1])


def unet_step_seconds(rounds: int) -> list[float]:
    """A training step of the U-Net by softmax cross-entropy, for RMI's share of it."""
    return take_turns({"step": jaxseg_step(default(), random_batch(8, 224))}, rounds=rounds)["step"]


def report(options, rows: list[dict], rate: tuple[float, float], step: list[float] | None) -> None:
    """Prints the table and writes the JSON."""
    columns = ("logits, pool, labels", "median s", "min", "max", "speed", "peak MB", "floor s")
    table = make_table(f"RMI and its gradient, radius 3, {device_name()}", columns)
    for row in rows:
        where = f"{'×'.join(map(str, row['shape']))} {row['pool']} {row['labels']}"
        table.add_row(where)
        torch_times = row["seconds"].get(REFERENCE)
        for name, peak in row["peak_bytes"].items():
            values = row["seconds"].get(name)
            times = [f"{f(values):.3f}" for f in (np.median, min, max)] if values else ["", "", ""]
            speed = f"{np.median(torch_times) / np.median(values):.1f}x" if values and torch_times else ""
            memory = f"{peak / 1e6:,.0f}" if peak is not None else "out of memory"
            floor = f"{row['floor_s']:.3f}" if name.startswith("jaxseg") else ""
            table.add_row(f"  {name}", *times, speed, memory, floor)
        table.add_section()
    Console().print(table)
    print(f"floor at {rate[0] / 1e9:.0f} GB/s and {rate[1] / 1e9:.0f} G multiply-adds/s")
    share = None
    if step:
        share = float(np.median(rows[0]["seconds"]["jaxseg float32"]) / np.median(step))
        print(f"of a U-Net step ({np.median(step):.4f} s): {share:.1%}")
    measured = {"copy_bytes_per_s": rate[0], "multiply_adds_per_s": rate[1], "unet_step_s": step, "share": share}
    write_result(options.output, {"benchmark": "rmi", **measured, "results": rows}, packages=["torch"])


def chosen_cases(options: argparse.Namespace) -> list[tuple]:
    chosen = [CASES[options.case]] if options.case is not None else CASES[:4] if options.small else CASES
    by = options.divide
    return [((b, h // by, w // by, c), pool, labels) for (b, h, w, c), pool, labels in chosen]


def main(options: argparse.Namespace) -> None:
    if options.peak_of:
        print(peak_bytes(*json.loads(options.peak_of)))
        return
    rate = rates()
    rows = []
    names = [name for name in CALLS if name != COMPILED or "compiled float32" in variants(options.torch)]
    for case in chosen_cases(options):
        peak = {name: peak_in_own_process(name, *case) for name in names if name != COMPILED}
        calls = {name: CALLS[name](*case) for name in names if peak.get(name, 0) is not None}
        calls, failures = drop_failing(calls, reference=REFERENCE)
        peak |= {name: peak_in_own_process(name, *case) for name in calls if name == COMPILED}
        seconds = take_turns(calls, rounds=options.rounds)
        shape, pool, labels = case
        rows.append({"shape": shape, "pool": pool, "labels": labels, "seconds": seconds, "peak_bytes": peak})
        rows[-1]["failed"] = failures
        rows[-1]["floor_s"] = floor_seconds(shape, pool, rate)
        print(f"{case}: done", file=sys.stderr)
    step = unet_step_seconds(options.rounds) if jax.default_backend() == "gpu" else None
    report(options, rows, rate, step)


if __name__ == "__main__":
    parser = result_options_of(__doc__, rounds=5, divide=1)
    parser.add_argument("--small", action="store_true", help="the first shape only")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="one of the cases, by its number")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    run(main, add_torch_option(parser))
