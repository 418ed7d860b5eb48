"""What a run says of itself while it runs: bar, train.jsonl, eval.jsonl, TensorBoard.

In: measurements still on the devices, and evaluations. Out: lines and a bar; measurements are fetched together, checked
one by one, and written before anything of their step is saved, so that a log never lags behind a checkpoint.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TextIO

import numpy as np
from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jaxseg.config import is_frozen, peer_sections
from jaxseg.console import STATUS_EVERY_S, PlainConsole
from jaxseg.data import pipeline
from jaxseg.data.records import Prepared
from jaxseg.errors import InputError, NonFiniteError
from jaxseg.files import read_json_lines, write_json_lines
from jaxseg.metrics import summarize_confusion
from jaxseg.training import parallel
from jaxseg.training.distributed import is_primary_host, run_on_primary
from jaxseg.training.optimizers import make_schedule
from jaxseg.training.validation import Evaluation, plateau


class Logger:
    """Measurements on their way from the devices to bar, files and TensorBoard; fetched together, checked one by one.

    Args:
      workdir: the run's folder; what its logs hold of steps after `start` is dropped: they will be computed again.
      config: of the run.
      prepared: its data.
      console: where sentences go.
      start: the step that the run goes on from.
      last_step: where it ends.
      steps: what learning rate schedules are laid out over.
    """

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        prepared: Prepared,
        console: PlainConsole,
        *,
        start: int,
        last_step: int,
        steps: int,
    ):
        self.workdir = workdir
        self.config = config
        self.prepared = prepared
        self.console = console
        self.last_step = last_step
        self.schedules = {
            name: make_schedule(section.optim, steps=steps)
            for name, section in peer_sections(config).items()
            if not is_frozen(config, name)
        }
        self.pending = []
        self.rates = []
        self.flushed_step = start
        self.flushed_at = self.said_at = time.monotonic()
        earlier = drop_later_lines(workdir / "train.jsonl", start)
        self.evaluations = drop_later_lines(workdir / "eval.jsonl", start)
        since = self.evaluations[-1]["step"] if self.evaluations else 0
        self.skipped = sum(int(line.get("skipped", 0)) for line in earlier)
        done = [line for line in earlier if not line.get("skipped") and line["step"] > since]
        self.losses = [logged_loss(line, f"{config.peer}/loss", workdir / "train.jsonl") for line in done]
        self.train_file = open_log(workdir / "train.jsonl")
        self.eval_file = open_log(workdir / "eval.jsonl")
        folder = str(workdir / "tensorboard")
        self.board = SummaryWriter(folder, purge_step=start + 1, write_to_disk=is_primary_host())
        columns = (
            TextColumn("step"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=last_step, completed=start)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self.bar.stop()
        with contextlib.suppress(*([OSError] if kind else [])):  # of a full disk; an error is on its way already
            for file in (self.train_file, self.eval_file, self.board):
                file.close()

    @property
    def images_per_s(self) -> float | None:
        """Median over the intervals between flushes, the first (which compiles) left out."""
        return float(np.median(self.rates[1:] or self.rates)) if self.rates else None

    def add(self, step: int, measurements: dict) -> None:
        self.pending.append((step, measurements))
        if step % self.config.train.log_every_steps == 0:
            self.flush()

    def flush(self) -> None:
        """Fetches what is pending. Raises NonFiniteError naming step, term and images."""
        if not self.pending:
            return
        rows = [(step, parallel.unreplicate(m)) for step, m in self.pending]
        self.pending = []
        for step, row in rows:
            self.skipped += int(row.get("skipped", 0))
            self.check_finite(step, row)
            rates = {f"{name}/learning_rate": float(rate(step - 1)) for name, rate in self.schedules.items()}
            measured = {key: float(value) if np.isfinite(value) else None for key, value in row.items()}
            line = {"step": step} | rates | measured
            self.train_file.write(json.dumps(line) + "\n")
            if not line.get("skipped"):
                self.losses.append(line[f"{self.config.peer}/loss"])
        self.train_file.flush()
        for key in (k for k in line if k != "step" and line[k] is not None):
            self.board.add_scalar(f"train/{key}", line[key], step)
        now = time.monotonic()
        self.rates.append((step - self.flushed_step) * self.config.train.batch_size / (now - self.flushed_at))
        self.flushed_step, self.flushed_at = step, now
        self.show(step, [row for _, row in rows if not row.get("skipped")] or [rows[-1][1]])

    def check_finite(self, step: int, row: dict) -> None:
        """Raises NonFiniteError, or, where such updates are left out and there may be more of them, says so."""
        broken = [
            key for key in sorted(row, key=lambda key: ("/loss" in key, "_norm" in key)) if not np.isfinite(row[key])
        ]
        if not broken:
            return
        limit = self.config.train.max_skipped_steps
        what = (
            f"{broken[0]} became {float(row[broken[0]])} at step {step} (steps {self.flushed_step + 1} to {step} were"
            f" looked at; also not finite: {', '.join(broken[1:]) or 'nothing'}). Images of its batch:"
            f" {', '.join(pipeline.image_ids(self.prepared, self.config, step=step - 1))}."
        )
        if row.get("skipped") and self.skipped <= limit:
            self.console.say(f"{what} Its update is skipped ({self.skipped} of at most {limit}).")
            return
        tried = (
            f" {self.skipped} updates were to be skipped, config.train.max_skipped_steps is {limit}." if limit else ""
        )
        raise NonFiniteError(
            f"{what}{tried} {self.workdir / 'checkpoints'} holds what was saved before; try a lower"
            " config.optim.learning_rate, or config.model.dtype=float32, or leave such updates out by"
            " config.train.max_skipped_steps."
        )

    def show(self, step: int, rows: list[dict]) -> None:
        """In the bar, or now and then in a line of their own: the reported peer's terms, the other peers' losses."""
        own = f"{self.config.peer}/"
        keys = [key for key in rows[0] if key.startswith(own) and "_norm" not in key and key != f"{own}loss"]
        keys += [key for key in rows[0] if key.endswith("/loss") and not key.startswith(own)]
        means = {key.removeprefix(own).removesuffix("/loss"): np.mean([row[key] for row in rows]) for key in keys}
        text = "  ".join(f"{key} {mean:.3g}" for key, mean in means.items()) + f"  {self.rates[-1]:.1f} images/s"
        self.bar.update(self.task, completed=step, description=text)
        if not self.console.is_terminal and (
            time.monotonic() - self.said_at > STATUS_EVERY_S or step == self.last_step
        ):
            self.said_at = time.monotonic()
            self.console.say(f"step {step:,} of {self.last_step:,}  {text}")

    def evaluated(self, step: int, evaluation: Evaluation) -> dict[str, float]:
        """Writes the scores; returns what checkpoints are ranked by."""
        line = {"step": step}
        for name, confusion in evaluation.confusion.items():
            score = summarize_confusion(confusion, self.prepared.labels.names)
            line |= {f"{name}/{key}": score[key] for key in ("mean_iou", "pixel_accuracy", "iou")}
            for key in ("mean_iou", "pixel_accuracy"):
                if score[key] is not None:
                    self.board.add_scalar(f"val/{name}/{key}", score[key], step)
        self.evaluations.append(line)
        self.eval_file.write(json.dumps(line) + "\n")
        self.eval_file.flush()
        self.board.flush()
        reported = {key: line[f"{self.config.peer}/{key}"] for key in ("mean_iou", "pixel_accuracy")}
        shown = "  ".join("-" if value is None else f"{key} {value:.4f}" for key, value in reported.items())
        self.console.say(f"validation at step {step:,}:  {shown}")
        ranking = {"mean_iou": reported["mean_iou"], "train_loss": float(np.mean(self.losses)) if self.losses else None}
        self.losses = []
        self.flushed_at = time.monotonic()  # evaluation is no training time
        return {key: float("nan") if value is None else value for key, value in ranking.items()}

    def why_to_end(self, eval_steps: set[int]) -> str | None:
        """By the evaluations so far and `config.eval.patience`; None: go on. All hosts have the same evaluations.

        eval_steps: which of them count. A part of a run that ended elsewhere (`config.train.max_steps`) was scored there,
        too; a run in one part would not have been.
        """
        evaluations = [line for line in self.evaluations if line["step"] in eval_steps]
        key = f"{self.config.peer}/{self.config.checkpoint.best}"
        patience = self.config.eval.patience
        return plateau(evaluations, key=key, patience=patience) if patience else None


def logged_loss(line: dict, key: str, path: Path) -> float:
    """Of a line of the log. Raises InputError where it has none."""
    if not isinstance(line.get(key), int | float):
        raise InputError(f"{path}: step {line['step']} has no {key}, a number; put the file back as it was.")
    return line[key]


def drop_later_lines(path: Path, start: int) -> list[dict]:
    """The lines of a log up to step `start`; later ones are dropped from the file. Raises InputError, on all hosts."""

    def drop() -> None:
        write_json_lines(path, [line for line in read_json_lines(path) if line["step"] <= start])

    run_on_primary(drop)
    return read_json_lines(path)


def open_log(path: Path) -> TextIO:
    """For appending, on the first host; nothing is written on the others."""
    return (path if is_primary_host() else Path(os.devnull)).open("a", encoding="utf-8")
