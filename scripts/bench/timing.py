"""What the benchmarks share: noise to compute on, jaxseg's training step, taking turns, the table and the JSON.

In: contestants, functions that do a thing once and wait for it. Out: seconds by contestant and round.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from jaxseg.training import parallel
from jaxseg.training.peers import create_peers, make_losses
from scripts.entry import device_name, make_table, write_result

Contestants = dict[str, Callable[[], object]]
Failures = dict[str, str]  # contestant -> why it has no time
CLASSES = 21


def random_batch(size: int, size_px: int, *, classes: int = CLASSES) -> dict[str, np.ndarray]:
    """Noise, 5 % of it void: what a step costs does not depend on what is in the images."""
    rng = np.random.default_rng(0)
    shape = (size, size_px, size_px)
    label = np.where(rng.random(shape) < 0.05, 255, rng.integers(classes, size=shape)).astype(np.int32)
    return {"image": rng.random((*shape, 3), dtype=np.float32), "label": label, "valid": label != 255}


def jaxseg_step(config: ConfigDict, batch: dict[str, np.ndarray], *, classes: int = CLASSES) -> Callable[[], object]:
    """A function that does one training step of the peers of `config` over all devices, and waits for it."""
    peers, _ = create_peers(config, num_classes=classes, steps=1)
    step = parallel.compile_train_step(losses=make_losses(config), seed=0, accumulate_steps=1)
    state = parallel.replicate(peers)
    sharded = parallel.shard(batch)

    def run():
        nonlocal state
        state, measured = step(state, sharded)
        return jax.block_until_ready(measured)

    return run


def dtypes() -> tuple[str, ...]:
    """What is measured here; a CPU computes bfloat16 in float32."""
    return ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16")


def torch_device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def drop_failing(contestants: Contestants, *, reference: str) -> tuple[Contestants, Failures]:
    """Those that run, and why each other one does not: what cannot be compiled here, or has no memory, keeps an empty cell.

    Raises what `reference` raises.
    """
    running, failures = {}, {}
    for name, run in contestants.items():
        try:
            run()
            running[name] = run
        except Exception as error:  # PyTorch's compiler raises of many kinds
            if name == reference or name.startswith("jaxseg"):
                raise
            failures[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            print(f"{name} does not run here: {failures[name]}")
    return running, failures


def take_turns(contestants: Contestants, *, rounds: int, steps: int = 1) -> dict[str, list[float]]:
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


def print_table(
    title: str,
    seconds: dict[str, list[float]],
    *,
    reference: str,
    flops: int | None = None,
    failures: Failures | None = None,
) -> dict:
    """Prints median, minimum, maximum and speed against `reference`; returns them by contestant, or why there are none."""
    columns = ["", "median s", "min", "max", "speed against eager"] + (["GFLOP/s"] if flops else [])
    table = make_table(f"{title}, {device_name()}", columns)
    base = np.median(seconds[reference])
    rows = {}
    for name, values in seconds.items():
        median = float(np.median(values))
        rows[name] = {"median_s": median, "min_s": min(values), "max_s": max(values), "speed": float(base / median)}
        rate = [f"{flops / median / 1e9:.0f}"] if flops else []
        table.add_row(name, *(f"{v:.4f}" for v in (median, min(values), max(values))), f"{base / median:.2f}x", *rate)
    for name, why in (failures or {}).items():
        rows[name] = {"failed": why}
        table.add_row(name)
    Console(width=110).print(table)
    return rows


def write_rows(options: argparse.Namespace, benchmark: str, rows: dict, **more: object) -> None:
    """The JSON, with the options that made it, where --output asks for it."""
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    write_result(options.output, {"benchmark": benchmark, **settings, **more, "results": rows}, packages=["torch"])
