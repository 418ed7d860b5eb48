"""Device memory of the training step that an experiment file describes, by the compiler's own account, and what fits.

    python -m scripts.bench.memory [--config=configs/mutual_cityscapes.py] [--batches=4,8] [--output=FILE.json]

Compiles the step, without running it, at two batch sizes for float32 and, but on a CPU, bfloat16, with and without
`model.remat`, and reads `memory_analysis()`: arguments (parameters, optimiser states, batch), temporaries and outputs,
less what is donated. Between and beyond the two sizes memory is taken as linear in the batch. It is the plan for the
device it runs on: a CPU computes bfloat16 convolutions in float32, so its plan for them says nothing; a GPU's libraries
take workspaces on top.
"""

import argparse
import sys
import time

import jax
from rich.console import Console

from jaxseg.config import find_config_file, peer_sections, run_config_file
from jaxseg.studies.estimate import abstract_peers
from jaxseg.training import parallel
from scripts.bench.timing import dtypes
from scripts.entry import make_table, result_options_of, run, write_result

DEVICES_GB = (16, 24, 80)  # of 10^9 bytes
IN_USE = 0.9  # share of a device's memory taken as usable: contexts, workspaces and fragmentation have the rest


def needed_bytes(config, batch_size: int) -> int:
    """Peak memory of one step on one device."""
    config = config.copy_and_resolve_references()
    config.train.batch_size = batch_size
    peers, losses, batch = abstract_peers(config)
    step = parallel.compile_train_step(losses=losses, seed=0, accumulate_steps=1)
    devices = jax.local_device_count()
    shards = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), batch)
    memory = step.func.lower(*step.args, peers, shards).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return total - memory.alias_size_in_bytes


def main(options: argparse.Namespace) -> None:
    config = run_config_file(find_config_file(options.config))
    small, large = map(int, options.batches.split(","))
    device = jax.devices()[0].device_kind
    title = f"{options.config}, {config.data.crop_px} pixels, compiled for {device}"
    sizes = (f"batch {small}", f"batch {large}", "an image", *(f"fit {gb} GB" for gb in DEVICES_GB))
    table = make_table(title, ("dtype", "remat", *sizes))
    rows = []
    for dtype in dtypes():
        for remat in (False, True):
            for section in peer_sections(config).values():
                section.model.dtype, section.model.remat = dtype, remat
            start = time.monotonic()
            low = needed_bytes(config, small)
            high = needed_bytes(config, large)
            each = (high - low) / (large - small)
            fit = {gb: int((IN_USE * gb * 1e9 - low) / each + small) for gb in DEVICES_GB}
            rows.append({"dtype": dtype, "remat": remat, "bytes": {small: low, large: high}, "images_that_fit_gb": fit})
            mega = (f"{value / 1e6:,.0f} MB" for value in (low, high, each))
            table.add_row(dtype, "yes" if remat else "no", *mega, *map(str, fit.values()))
            print(f"{dtype}, remat={remat}: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr)
    Console(width=100).print(table)
    print(f"Fit: images a device in {IN_USE:.0%} of its memory.")
    write_result(options.output, {"benchmark": "memory", "config": options.config, "results": rows})


if __name__ == "__main__":
    parser = result_options_of(__doc__)
    parser.add_argument("--config", default="configs/mutual_cityscapes.py")
    parser.add_argument("--batches", default="4,8", help="two sizes, per device")
    run(main, parser)
