"""A plan as a table, with what each run will take, before any is started.

In: a plan's runs. Out: the table on the console.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxseg.data.pipeline import steps_of_epochs
from jaxseg.studies.estimate import DEVICES, estimate
from jaxseg.studies.plan import Plan, Run
from jaxseg.studies.runner import TRAINING_IMAGES


def print_dry_run(plan: Plan, runs: Sequence[Run]) -> None:
    """Steps, arithmetic, hours and memory of every cell of the plan, estimated."""
    device = DEVICES[plan.device]
    total = 0.0
    table = Table(title=f"{plan.name}: {len(runs)} runs", title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("data set, protocol, arm", overflow="fold", min_width=28)
    for column in ("seeds", "batch", "steps", "GFLOP", "ms", "hours", "GB"):
        table.add_column(column, justify="right")
    for cell in dict.fromkeys(run.cell for run in runs):
        seeds = [run for run in runs if run.cell == cell]
        config = seeds[0].config()
        cost = estimate(config)
        steps = planned_steps(config)
        seconds = cost.seconds(device)
        hours = steps * seconds / 3600
        total += hours * len(seeds)
        size = str(len(seeds)), str(config.train.batch_size), f"{steps:,}"
        needs = f"{cost.flops / 1e9:,.0f}", f"{1e3 * seconds:,.0f}", f"{hours:.2f}", f"{cost.bytes_needed / 1e9:.1f}"
        table.add_row(cell.replace("-", ", ", 2), *size, *needs)
    console = Console(width=max(80, Console().width), highlight=False)
    console.print(table)
    console.print(
        f"GFLOP and ms: a step; hours: a run; {total:.1f} hours on {device.name} in all, training steps only. An estimate"
        f" before fusion, not a measurement: {device.flops / 1e12:g} TFLOP/s and {device.bytes / 1e9:g} GB/s are assumed."
        " GB: parameters, optimizer states and what the backward pass keeps. Image counts are those of the full data sets."
    )


def planned_steps(config: ConfigDict) -> int:
    """Steps of a run whose data may not be here."""
    images = config.data.scenes * 5 // 6 if config.data.name == "synthetic" else TRAINING_IMAGES[config.data.name]
    steps = steps_of_epochs(config.train.epochs, images=images, batch_size=config.train.batch_size)
    return min(config.train.max_steps or steps, steps)
