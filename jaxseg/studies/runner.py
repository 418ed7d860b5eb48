"""Makes the runs of a study, one after the other, and keeps a JSON of each.

    python -m scripts.study --preset=demo|cpu|ablation|gpu [--plan=FILE.toml] [--source=camvid=FOLDER …] [--shard=i/n]
                            [--dry_run] [--output=results/study]

A run that has its JSON in OUTPUT/PLAN is skipped, a half run goes on from its last checkpoint, so the same command again
finishes what is left. `--shard=0/2` and `--shard=1/2`, on one machine or on two that share the folder, split the plan.
The JSON holds scores, confusion matrix, curves, command, commit, versions, device, wall time and the data's fingerprint;
`python -m jaxseg.report` makes tables and figures of them. Data sets are prepared first, from --source or as prepared
before. Exit status: 0 all done, 1 a run failed (its log is named), 2 the plan or its data cannot be used, 130
interrupted.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from jaxseg.data.pipeline import steps_of_epochs
from jaxseg.data.prepare import prepare
from jaxseg.errors import INTERRUPTED_STATUS, InputError, NonFiniteError
from jaxseg.files import read_json, write_json
from jaxseg.studies.estimate import DEVICES, estimate
from jaxseg.studies.plan import Plan, Run, read_plan

PLANS = Path(__file__).parents[1] / "configs" / "study"
CURVE_POINTS = 100  # of a training curve: means over as many stretches of steps
POLL_S = 0.5
TRAINING_IMAGES = {"cityscapes": 2975, "voc2012": 1464, "camvid": 367}  # as published
COMPILED = Path("runs") / "study" / "compiled"  # seeds share their programs; the numbers are the same, bit for bit


class Progress:
    """The table that grows: a row per model and data set, a column per seed."""

    def __init__(self, plan: Plan, console: Console):
        self.plan, self.console, self.cells = plan, console, {}

    def __rich__(self) -> Table:
        seeds = sorted({run.seed for run in self.plan.runs})
        table = Table(title=f"{self.plan.name}: mean IoU, seed by seed", title_justify="left")
        table.add_column("data set, protocol, arm", overflow="fold")
        for seed in seeds:
            table.add_column(str(seed), justify="right")
        for cell in dict.fromkeys(run.cell for run in self.plan.runs):
            table.add_row(cell.replace("-", ", ", 2), *(self.cells.get(f"{cell}-seed{seed}", "") for seed in seeds))
        return table

    def show(self, run: Run, text: str, *, line: bool = True) -> None:
        self.cells[run.name] = text
        if line and not self.console.is_terminal:
            self.console.print(f"{time.strftime('%H:%M:%S')} {run.name}: {text}", highlight=False, soft_wrap=True)


def shard_of(plan: Plan, index: int, count: int) -> list[Run]:
    """Every count-th run; one that starts from another's weights goes where that one is, after it."""
    first = [run for run in plan.runs if not run.starts_from]
    place = {run.name: position % count for position, run in enumerate(first)}
    later = [run for run in plan.runs if run.starts_from]
    place |= {run.name: place.get(Path(run.fields["model.init_from"]).name, 0) for run in later}
    return [run for run in first + later if place[run.name] == index]


def make(run: Run, output: Path, progress: Progress) -> bool:
    """Trains one run, or goes on with it, and writes its JSON. False where it failed."""
    target = output / f"{run.name}.json"
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    with the_only_one(run, progress) as lock:
        if target.exists():
            return skip(run, target, progress)
        resumed = (run.workdir / "config.json").exists()
        progress.show(run, "going on" if resumed else "begun")
        status, said = train(run, lock, progress)
        content = {"study": dataclasses.asdict(run), "resumed": resumed}
        if status == 0:
            results = read_json(run.workdir / "results.json")
            content |= {"curves": curves(run.workdir, results["reported_peer"])} | results
        elif status == NonFiniteError.status:  # as much a result as a score
            content |= {"failed": said, "peers": {}}
        else:
            progress.show(run, f"failed, exit status {status}; see {run.workdir}.log: {said}")
            return False
        write_json(target, content)
        progress.show(run, summary(content))
        return True


def train(run: Run, lock: int, progress: Progress) -> tuple[int, str]:
    """The run's own command; its exit status and the last line that it wrote. It holds `lock` as long as it lives."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(COMPILED.absolute()), **os.environ}
    command = [sys.executable, "-m", "jaxseg.main", *run.flags()]
    with Path(f"{run.workdir}.log").open("ab+") as log:
        began = log.seek(0, os.SEEK_END)
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, pass_fds=[lock])
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_S)
            log.seek(began)
            written = log.read().decode(errors="replace")
            progress.show(run, how_far(written), line=False)
    return child.returncode, (written.strip().splitlines() or [""])[-1]


def skip(run: Run, target: Path, progress: Progress) -> bool:
    """A run that is there already. Raises InputError where that is of another config."""
    content, now = read_json(target), dataclasses.asdict(run)
    there = content.get("study", {})
    if changed := [f"{key}: {there.get(key)} there, {now[key]} now" for key in now if there.get(key) != now[key]]:
        raise InputError(
            f"{target} is of another plan ({'; '.join(changed)}); move it away, or choose another --output."
        )
    progress.show(run, summary(content), line=False)
    return True


@contextlib.contextmanager
def the_only_one(run: Run, progress: Progress):
    """Waits while another process makes this run: its training holds the lock even when its study was killed."""
    with (run.workdir.parent / f"{run.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.show(run, "another process is at it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def summary(content: dict) -> str:
    if "failed" in content:
        return "not finite"
    value = content["peers"][content["reported_peer"]]["mean_iou"]
    return "-" if value is None else f"{value:.4f}"


def how_far(written: str) -> str:
    """From the lines that a run prints now and then."""
    steps = re.findall(r"^step ([\d,]+) of ([\d,]+)", written, re.MULTILINE)
    if not steps:
        return "begun"
    done, total = (int(number.replace(",", "")) for number in steps[-1])
    return f"{100 * done // total} %"


def curves(workdir: Path, peer: str) -> dict:
    """The reported peer's loss terms over the steps, thinned to means, and its scores at every evaluation."""
    lines = [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]
    lines = [line for line in lines if not line.get("skipped")]
    terms = [key for key in lines[0] if key.startswith(f"{peer}/") and not key.endswith(("_norm", "learning_rate"))]
    stretches = np.array_split(np.arange(len(lines)), min(CURVE_POINTS, len(lines)))
    train = {"step": [lines[stretch[-1]]["step"] for stretch in stretches]}
    for term in terms:
        train[term.removeprefix(f"{peer}/")] = [
            float(f"{np.mean([lines[i][term] for i in stretch]):.6g}") for stretch in stretches
        ]
    scored = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
    keys = ("mean_iou", "pixel_accuracy")
    return {
        "train": train,
        "val": {"step": [s["step"] for s in scored]} | {k: [s[f"{peer}/{k}"] for s in scored] for k in keys},
    }


def prepare_data(runs: list[Run], sources: dict[str, str]) -> None:
    """Every data set that the runs need, at every size, before the first of them. Raises InputError."""
    for data in {json.dumps(run.config().data.to_dict(), sort_keys=True): run.config().data for run in runs}.values():
        data.source_dir = sources.get(data.name, "")
        prepare(data)
        data.source_dir = ""
        prepare(data)  # as the runs will: their commands name no folder, so that the same command works elsewhere


def write_plan(plan: Plan, output: Path) -> None:
    """What was planned, beside the results: the report shows what is missing, too."""
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "plan": plan.name,
        "title": plan.title,
        "note": plan.note,
        "base": plan.base,
        "questions": plan.questions,
    }
    runs = [
        {"name": r.name, "arm": r.arm, "model": r.model, "dataset": r.dataset, "protocol": r.protocol, "seed": r.seed}
        for r in plan.runs
    ]
    write_json(output / "plan.json", content | {"runs": runs})


def dry_run(plan: Plan, runs: list[Run], output: Path) -> int:
    """The plan as a table, with what each run will take; writes plan.json, so that the report shows what is to come."""
    device, total = DEVICES[plan.device], 0.0
    table = Table(title=f"{plan.name}: {len(runs)} runs", title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("data set, protocol, arm", overflow="fold", min_width=28)
    for column in ("seeds", "batch", "steps", "GFLOP", "ms", "hours", "GB"):
        table.add_column(column, justify="right")
    for cell in dict.fromkeys(run.cell for run in runs):
        seeds = [run for run in runs if run.cell == cell]
        config = seeds[0].config()
        cost, steps = estimate(config), planned_steps(config)
        hours = steps * cost.seconds(device) / 3600
        total += hours * len(seeds)
        size = str(len(seeds)), str(config.train.batch_size), f"{steps:,}"
        needs = f"{cost.flops / 1e9:,.0f}", f"{1e3 * cost.seconds(device):,.0f}", f"{hours:.2f}"
        table.add_row(cell.replace("-", ", ", 2), *size, *needs, f"{cost.bytes_needed / 1e9:.1f}")
    console = Console(width=max(80, Console().width), highlight=False)
    console.print(table)
    console.print(
        f"GFLOP and ms: a step; hours: a run; {total:.1f} hours on {device.name} in all, training steps only. An estimate"
        f" before fusion, not a measurement: {device.flops / 1e12:g} TFLOP/s and {device.bytes / 1e9:g} GB/s are assumed."
        " GB: parameters, optimiser states and what the backward pass keeps. Image counts are those of the full data sets."
    )
    write_plan(plan, output)
    return 0


def planned_steps(config: ConfigDict) -> int:
    """Steps of a run whose data may not be here."""
    images = config.data.scenes * 5 // 6 if config.data.name == "synthetic" else TRAINING_IMAGES[config.data.name]
    steps = steps_of_epochs(config.train.epochs, images=images, batch_size=config.train.batch_size)
    return min(config.train.max_steps or steps, steps)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", help="a plan of configs/study, by name")
    which.add_argument("--plan", type=Path, help="a plan of your own, a TOML file")
    parser.add_argument(
        "--source", action="append", default=[], metavar="DATASET=FOLDER", help="raw data, once per data set"
    )
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="make the I-th of N parts, from 0")
    parser.add_argument("--output", type=Path, default=Path("results/study"))
    parser.add_argument("--dry_run", action="store_true", help="print the plan with estimated time and memory")
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    plan = read_plan(options.plan or PLANS / f"{options.preset}.toml")
    if not (match := re.fullmatch(r"(\d+)/(\d+)", options.shard)) or not int(match[1]) < int(match[2]):
        raise InputError(f"--shard={options.shard}: expected I/N with 0 <= I < N, such as 0/2.")
    sources = dict(source.split("=", 1) for source in options.source if "=" in source)
    runs, output = shard_of(plan, int(match[1]), int(match[2])), options.output / plan.name
    if options.dry_run:
        return dry_run(plan, runs, output)
    if len(sources) < len(options.source) or sources.keys() - TRAINING_IMAGES:
        given, known = " ".join(options.source), ", ".join(TRAINING_IMAGES)
        raise InputError(f"--source: got {given}; expected DATASET=FOLDER, once each, DATASET one of {known}.")
    prepare_data(runs, sources)
    write_plan(plan, output)
    console = Console(markup=False)
    progress = Progress(plan, console)
    with Live(progress, console=console, refresh_per_second=2) if console.is_terminal else contextlib.nullcontext():
        made = [make(run, output, progress) for run in runs]
    if not console.is_terminal:
        console.print(progress)
    print(f"{sum(made)} of {len(runs)} runs done; tables and figures: python -m jaxseg.report")
    return 0 if all(made) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(parse_options()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
