"""What a run says of itself while it runs: bar, train.jsonl, eval.jsonl, TensorBoard.

In: measurements still on the devices, and evaluations. Out: lines and a bar; measurements are fetched together, checked
one by one, and written before anything of their step is saved, so that a log never lags behind a checkpoint.
"""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jaxseg.config import is_frozen, peer_sections
from jaxseg.console import STATUS_EVERY_S
from jaxseg.data import pipeline
from jaxseg.data.records import Prepared
from jaxseg.errors import InputError, NonFiniteError
from jaxseg.metrics import scores
from jaxseg.training import distributed, parallel
from jaxseg.training.optimizers import make_schedule
from jaxseg.training.validation import Evaluation


@dataclasses.dataclass
class Log:
    """Measurements on their way from the devices to bar, files and TensorBoard; fetched together, checked one by one."""

    workdir: Path
    config: ConfigDict
    prepared: Prepared
    schedule_steps: int
    start: int
    last_step: int
    console: Console

    def __post_init__(self):
        self.pending, self.losses, self.rates = [], [], []
        self.flushed_step, self.flushed_at = self.start, time.monotonic()
        self.said_at = self.flushed_at
        self.schedules = {
            name: make_schedule(section.optim, steps=self.schedule_steps)
            for name, section in peer_sections(self.config).items()
            if not is_frozen(self.config, name)
        }
        names = ("train.jsonl", "eval.jsonl")
        earlier, evaluated = (trimmed(self.workdir / name, self.start) for name in names)
        self.train_file, self.eval_file = (
            (self.workdir / name if distributed.is_primary_host() else Path(os.devnull)).open("a") for name in names
        )
        since = evaluated[-1]["step"] if evaluated else 0
        self.skipped = sum(int(line.get("skipped", 0)) for line in earlier)
        finite = [line for line in earlier if not line.get("skipped")]
        self.losses = [line[f"{self.config.peer}/loss"] for line in finite if line["step"] > since]
        self.board = SummaryWriter(
            str(self.workdir / "tensorboard"), purge_step=self.start + 1, write_to_disk=distributed.is_primary_host()
        )
        columns = (
            TextColumn("step"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=self.last_step, completed=self.start)

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
            self.console.print(f"{what} Its update is skipped ({self.skipped} of at most {limit}).", soft_wrap=True)
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
            self.console.print(f"step {step:,} of {self.last_step:,}  {text}", soft_wrap=True)

    def evaluated(self, step: int, evaluation: Evaluation) -> dict[str, float]:
        """Writes the scores; returns what checkpoints are ranked by."""
        line = {"step": step}
        for name, confusion in evaluation.confusion.items():
            score = scores(confusion, self.prepared.labels.names)
            line |= {f"{name}/{key}": score[key] for key in ("mean_iou", "pixel_accuracy", "iou")}
            for key in ("mean_iou", "pixel_accuracy"):
                if score[key] is not None:
                    self.board.add_scalar(f"val/{name}/{key}", score[key], step)
        self.eval_file.write(json.dumps(line) + "\n")
        self.eval_file.flush()
        self.board.flush()
        reported = {key: line[f"{self.config.peer}/{key}"] for key in ("mean_iou", "pixel_accuracy")}
        shown = "  ".join("-" if value is None else f"{key} {value:.4f}" for key, value in reported.items())
        self.console.print(f"validation at step {step:,}:  {shown}", soft_wrap=True)
        ranking = {"mean_iou": reported["mean_iou"], "train_loss": float(np.mean(self.losses)) if self.losses else None}
        self.losses = []
        self.flushed_at = time.monotonic()  # evaluation is no training time
        return {key: float("nan") if value is None else value for key, value in ranking.items()}


def trimmed(path: Path, start: int) -> list[dict]:
    """The lines of a log; those of steps after `start` (they will be computed again) are dropped from the file."""
    distributed.run_on_primary(lambda: trim(path, start))
    return [json.loads(line) for line in path.read_text().splitlines()]


def trim(path: Path, start: int) -> None:
    """Raises InputError for a line that no run wrote."""
    text = path.read_text(errors="replace") if path.exists() else ""
    kept = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # without the end that a kill cut short
        try:
            content = json.loads(line)
            if content["step"] <= start:
                kept.append(content)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {number}: not a line of a run's log ({line[:60]!r}). Put the file back as it was, or move it"
                " away: the run goes on, and its log begins there."
            ) from error
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in kept))
    part.rename(path)
