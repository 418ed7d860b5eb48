"""Makes the runs of a study, one after the other, and keeps a JSON of each.

    python -m jaxseg.study --preset=NAME|--plan=FILE.toml
        [--source=camvid=FOLDER …] [--datasets=NAME,…] [--shard=i/n]
        [--dry_run] [--output=results/study]

A run that has its JSON in OUTPUT/PLAN is skipped, a half run goes on from its
last checkpoint, so the same command again finishes what is left. `--shard=0/2`
and `--shard=1/2`, on one machine or on two that share the folder, split the
plan; `--datasets=voc2012` makes its runs on that data set alone. The JSON holds
scores, confusion matrix, curves, command, commit, versions, device, wall time
and the data's fingerprint; `python -m jaxseg.report` makes tables and figures
of them. Data sets are prepared first, from --source or as prepared before. Exit status: 0 all done, 1 a run failed
(its log is named), 2 the plan or its data cannot be used, 130 interrupted.
"""

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.live import Live

from jaxseg import cli
from jaxseg.errors import InputError
from jaxseg.studies.dry_run import print_dry_run
from jaxseg.studies.plan import Run, find_plan, read_plan, shard_of, write_plan
from jaxseg.studies.runner import TRAINING_IMAGES, Progress, make_run, prepare_data


def define_flags() -> None:
    flags.DEFINE_string("preset", None, "A plan of configs/study, by name.")
    flags.DEFINE_string("plan", None, "A plan of your own, a TOML file.")
    flags.DEFINE_multi_string("source", [], "DATASET=FOLDER: raw data, once per data set.")
    flags.DEFINE_list("datasets", [], "Only the plan's runs on these data sets; default: on all.")
    flags.DEFINE_string("shard", "0/1", "I/N: make the I-th of N parts, from 0.")
    flags.DEFINE_string("output", "results/study", "Folder for the results.")
    flags.DEFINE_bool("dry_run", False, "Print the plan with estimated time and memory.")


def execute() -> int:
    values = flags.FLAGS
    if (values.preset is None) == (values.plan is None):
        raise InputError(f"one of --preset=NAME and --plan=FILE.toml is needed.\n{__doc__}")
    plan = read_plan(Path(values.plan) if values.plan else find_plan(values.preset))
    match = re.fullmatch(r"(\d+)/(\d+)", values.shard)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"--shard={values.shard}: expected I/N with 0 <= I < N, such as 0/2.")
    runs = shard_of(plan, int(match[1]), int(match[2]))
    if values.datasets:
        runs = runs_on(values.datasets, runs)
    output = Path(values.output) / plan.name
    if values.dry_run:
        print_dry_run(plan, runs)
        write_plan(plan, output)
        return 0
    prepare_data(runs, raw_folders(values.source))
    write_plan(plan, output)
    console = Console(markup=False)
    progress = Progress(plan, console)
    with contextlib.ExitStack() as stack:
        if console.is_terminal:
            stack.enter_context(Live(progress, console=console, refresh_per_second=2))
        made = [make_run(run, output, progress) for run in runs]
    if not console.is_terminal:
        console.print(progress)
    print(f"{sum(made)} of {len(runs)} runs done; tables and figures: python -m jaxseg.report")
    return 0 if all(made) else 1


def runs_on(datasets: list[str], runs: list[Run]) -> list[Run]:
    """Those of these data sets. Raises InputError where there are none of one of them."""
    there = sorted({run.dataset for run in runs})
    if unknown := [name for name in datasets if name not in there]:
        raise InputError(f"--datasets: {unknown[0]!r}; the plan has runs on {', '.join(there)}.")
    return [run for run in runs if run.dataset in datasets]


def raw_folders(sources: list[str]) -> dict[str, str]:
    """Data set -> folder, of what --source gives. Raises InputError."""
    folders = dict(source.split("=", 1) for source in sources if "=" in source)
    if len(folders) < len(sources) or folders.keys() - TRAINING_IMAGES:
        given = " ".join(sources)
        known = ", ".join(TRAINING_IMAGES)
        raise InputError(f"--source: got {given}; expected DATASET=FOLDER, once each, DATASET one of {known}.")
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags)


if __name__ == "__main__":
    sys.exit(main())
