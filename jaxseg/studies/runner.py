"""The runs of a study: each one command in a process of its own, its JSON kept when it is done.

In: the runs of a plan. Out: OUTPUT/PLAN/RUN.json of each, with scores, curves and where they come from.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxseg.data.prepare import prepare
from jaxseg.errors import InputError, NonFiniteError
from jaxseg.files import file_lock, read_json, read_json_lines, write_json
from jaxseg.reporting.comparison import load_study_run
from jaxseg.schemas import RESULT
from jaxseg.studies.plan import Plan, Run

CURVE_POINTS = 100  # of a training curve: means over as many stretches of steps
POLL_S = 0.5
TRAINING_IMAGES = {"cityscapes": 2975, "voc2012": 1464, "camvid": 367}  # as published
COMPILED = Path("runs") / "study" / "compiled"  # seeds share their programs; the numbers are the same, bit for bit


class Progress:
    """The table that grows: a row per model and data set, a column per seed."""

    def __init__(self, plan: Plan, console: Console):
        self.plan = plan
        self.console = console
        self.cells = {}

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
        """In the run's cell, and without a terminal as a line."""
        self.cells[run.name] = text
        if line and not self.console.is_terminal:
            self.console.print(f"{time.strftime('%H:%M:%S')} {run.name}: {text}", highlight=False, soft_wrap=True)


def prepare_data(runs: Sequence[Run], folders: Mapping[str, str]) -> None:
    """Every data set that the runs need, at every size, before the first of them.

    Args:
      runs: of the plan.
      folders: data set -> folder of its raw files; of those that are not there, what was prepared before.

    Raises:
      InputError: where data are not there, or not whole.
    """
    for data in {json.dumps(run.config().data.to_dict(), sort_keys=True): run.config().data for run in runs}.values():
        data.source_dir = folders.get(data.name, "")
        prepare(data)
        data.source_dir = ""
        prepare(data)  # as the runs will: their commands name no folder, so that the same command works elsewhere


def make_run(run: Run, output: Path, progress: Progress) -> bool:
    """Trains one run, or goes on with it, and writes its JSON. False where it failed."""
    target = output / f"{run.name}.json"
    run.workdir.parent.mkdir(parents=True, exist_ok=True)

    def say() -> None:
        progress.show(run, "another process is at it; waiting")

    # Its training holds the lock, too, even when its study was killed.
    with file_lock(run.workdir.parent / f"{run.name}.lock", if_held=say) as lock:
        if target.exists():
            check_same_run(run, target)
            progress.show(run, summary(load_study_run(target)), line=False)
            return True
        resumed = (run.workdir / "config.json").exists()
        progress.show(run, "going on" if resumed else "begun")
        status, last_line = train(run, lock.fileno(), progress)
        content = {"study": dataclasses.asdict(run), "resumed": resumed}
        if status == 0:
            results = read_json(run.workdir / "results.json", RESULT)
            content |= {"curves": curves(run.workdir, results["reported_peer"])} | results
        elif status == NonFiniteError.status:  # as much a result as a score
            content |= {"failed": last_line, "peers": {}}
        else:
            progress.show(run, f"failed, exit status {status}; see {run.workdir}.log: {last_line}")
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
            progress.show(run, steps_done(run.workdir), line=False)
        log.seek(began)
        written = log.read().decode(errors="replace")
    return child.returncode, (written.strip().splitlines() or [""])[-1]


def steps_done(workdir: Path) -> str:
    """How far a run is, by its log."""
    try:
        lines = read_json_lines(workdir / "train.jsonl")
    except InputError:  # the run itself tells of it
        lines = []
    return f"step {lines[-1]['step']:,}" if lines else "begun"


def check_same_run(run: Run, target: Path) -> None:
    """Raises InputError where the JSON that is there is of another config."""
    now = dataclasses.asdict(run)
    there = load_study_run(target)["study"]
    if changed := [f"{key}: {there.get(key)} there, {now[key]} now" for key in now if there.get(key) != now[key]]:
        raise InputError(
            f"{target} is of another plan ({'; '.join(changed)}); move it away, or choose another --output."
        )


def summary(content: dict) -> str:
    if "failed" in content:
        return "not finite"
    value = content["peers"][content["reported_peer"]]["mean_iou"]
    return "-" if value is None else f"{value:.4f}"


def curves(workdir: Path, peer: str) -> dict:
    """The reported peer's loss terms over the steps, thinned to means, and its scores at every evaluation."""
    lines = [line for line in read_json_lines(workdir / "train.jsonl") if not line.get("skipped")]
    terms = [key for key in lines[0] if key.startswith(f"{peer}/") and not key.endswith(("_norm", "learning_rate"))]
    stretches = np.array_split(np.arange(len(lines)), min(CURVE_POINTS, len(lines)))
    train = {"step": [lines[stretch[-1]]["step"] for stretch in stretches]}
    for term in terms:
        means = [np.mean([lines[i][term] for i in stretch]) for stretch in stretches]
        train[term.removeprefix(f"{peer}/")] = [float(f"{mean:.6g}") for mean in means]
    scored = read_json_lines(workdir / "eval.jsonl")
    val = {key: [line[f"{peer}/{key}"] for line in scored] for key in ("mean_iou", "pixel_accuracy")}
    return {"train": train, "val": {"step": [line["step"] for line in scored]} | val}
