"""Where the time of a training step goes.

    python -m jaxseg.main --config=FILE --mode=profile [--workdir=DIR] [--config.field=value]

In: an experiment. Out: DIR/profile, a trace to open by `xprof` (pip install xprof; xprof --port 8791 DIR/profile), and a
summary, DIR/profile.json: time of the first step (tracing and compiling), of later ones, and the share of it in which the
device waited for input. Nothing is saved of the networks.
"""

import contextlib
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxseg.config_checks import check_batch_statistics, check_devices, validate
from jaxseg.console import PlainConsole
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.files import write_json
from jaxseg.models.pretrained import drop_unreachable, settle_pretrained
from jaxseg.provenance import provenance
from jaxseg.training import parallel
from jaxseg.training.failures import failures_as_errors
from jaxseg.training.peers import class_weights, create_peers, make_losses

WARM_UP_STEPS = 3  # after the first: buffers and reading threads fill
STEPS = 20  # that are timed
TRACED_STEPS = 5  # after them: a trace costs time itself, and grows by some MB a step


def profile(config: ConfigDict, workdir: Path) -> dict:
    """Times training steps and writes trace and summary. Raises InputError and ResourceError as training does."""
    validate(config)
    settle_pretrained(config)
    check_batch_statistics(config)
    check_devices(config, devices=jax.device_count())
    workdir.mkdir(parents=True, exist_ok=True)
    with failures_as_errors(config, workdir):
        prepared = prepare(config.data)
        say = PlainConsole(stderr=True).say
        drop_unreachable(config, stored=None, num_classes=prepared.labels.num_classes, say=say)
        peers, _ = create_peers(config, num_classes=prepared.labels.num_classes, steps=1)
        options = {
            "losses": make_losses(config, weights=class_weights(config, prepared)),
            "seed": config.seed,
            "accumulate_steps": config.train.accumulate_steps,
            "updates": config.mutual.updates,
        }
        train_step = parallel.compile_train_step(**options)
        batches = parallel.shard_ahead(pipeline.closing_iterator(pipeline.train_batches(prepared, config)))
        peers = parallel.replicate(peers)
        with contextlib.closing(batches):
            peers, first = timed(train_step, peers, batches, steps=1)
            peers, _ = timed(train_step, peers, batches, steps=WARM_UP_STEPS)
            peers, times = timed(train_step, peers, batches, steps=STEPS)
            with jax.profiler.trace(workdir / "profile"):
                timed(train_step, peers, batches, steps=TRACED_STEPS)
    results = (
        summary(first, times, config) | {"peak_memory_bytes": peak_memory()} | provenance(config, prepared.provenance)
    )
    write_json(workdir / "profile.json", results)
    return results


def timed(train_step, peers, batches, *, steps: int) -> tuple:
    """The peers after `steps`, and [steps, 2]: seconds of waiting for a batch, and of the step until it is done."""
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(batches)
        there = time.perf_counter()
        peers, measurements = train_step(peers, batch)
        jax.block_until_ready((peers, measurements))
        times.append((there - start, time.perf_counter() - there))
    return peers, np.array(times)


def summary(first: np.ndarray, times: np.ndarray, config: ConfigDict) -> dict:
    """Medians over the timed steps, in seconds; lowest and highest beside them."""
    whole = times.sum(1)
    return {
        "first_step_s": float(first[0, 1]),
        "step_s": float(np.median(whole)),
        "step_s_range": [float(whole.min()), float(whole.max())],
        "input_s": float(np.median(times[:, 0])),
        "input_share": float(times[:, 0].sum() / whole.sum()),
        "images_per_s": config.train.batch_size / float(np.median(whole)),
        "steps": len(times),
        "batch_size": config.train.batch_size,
    }


def peak_memory() -> int | None:
    """Bytes on the first device, where it counts them (CPUs do not)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def show_profile(results: dict, console: Console | None = None) -> None:
    """The summary as a table, and what it says of the input."""
    low, high = results["step_s_range"]
    rows = {
        "first step (tracing, compiling)": f"{results['first_step_s']:.1f} s",
        "step": f"{1e3 * results['step_s']:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})",
        "of it waiting for input": f"{1e3 * results['input_s']:.2f} ms, {100 * results['input_share']:.1f} %",
        "images/s": f"{results['images_per_s']:.1f}",
    }
    if results["peak_memory_bytes"] is not None:
        rows["peak memory"] = f"{results['peak_memory_bytes'] / 1e6:,.0f} MB"
    table = Table(title=f"{results['steps']} steps of {results['batch_size']} images", title_justify="left")
    table.add_column("")
    table.add_column("median", justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    (console or Console()).print(table)
    if results["input_share"] > 0.05:
        print("the device waits for input: raise config.data.threads, or read in processes, config.data.workers")
