"""The one training loop.

In: a checked config and a folder. Out: in that folder config.json, train.jsonl (a line per step), eval.jsonl,
tensorboard/, checkpoints/, results.json and predictions.png. Running it again goes on from the last checkpoint, to the
same numbers as if it had not stopped.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jaxseg import checkpoint, parallel
from jaxseg.cli import NonFiniteError
from jaxseg.config import InputError, all_fields, check_devices, field, validate
from jaxseg.data import pipeline
from jaxseg.data.prepare import Prepared, prepare
from jaxseg.evaluate import Evaluation, evaluate, load_config
from jaxseg.optim import make_schedule
from jaxseg.peers import create_peers
from jaxseg.report import prediction_figure
from jaxseg.results import provenance, scores, write_json

# Fields that may differ when a run is gone on with: none of them changes what has been computed so far.
MAY_CHANGE = (
    "data.source_dir",
    "data.dir",
    "data.download",
    "data.workers",
    "data.threads",
    "train.max_steps",
    "train.log_every_steps",
    "eval.",
    "checkpoint.",
)
STATUS_EVERY_S = 15  # between status lines where there is no terminal to draw a bar on


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains and scores what `config` describes, in `workdir`; returns what results.json holds.

    Raises InputError before anything heavy where the config, the data or the folder do not fit, NonFiniteError where a
    loss does not stay finite.
    """
    started = time.monotonic()
    validate(config)
    check_devices(config, devices=jax.device_count())
    workdir, console = Path(workdir), Console()
    prepared = prepare(config.data)
    claim(workdir, config, prepared)
    schedule_steps = pipeline.steps_of_epochs(
        config.train.epochs, images=prepared.images("train"), batch_size=config.train.batch_size
    )
    last_step = min(config.train.max_steps or schedule_steps, schedule_steps)
    peers, losses = create_peers(config, num_classes=prepared.labels.num_classes, steps=schedule_steps)
    describe(console, config, prepared, peers, last_step, workdir)

    with checkpoint.open_manager(workdir, config.checkpoint) as manager:
        start = manager.latest_step() or 0
        if start:
            peers = checkpoint.restore(manager, start, peers)
            console.print(f"going on from step {start:,}", highlight=False)
        peers = parallel.replicate(peers)
        train_step = parallel.compile_train_step(
            losses=losses, seed=config.seed, accumulate_steps=config.train.accumulate_steps
        )
        eval_step = parallel.compile_eval_step(num_classes=prepared.labels.num_classes)
        evaluation = None
        batches = pipeline.train_batches(
            prepared, config, start_step=start, process=jax.process_index(), processes=jax.process_count()
        )
        eval_steps = evaluation_steps(config, prepared, last_step)
        with Log(workdir, config, prepared, schedule_steps, start, last_step, console) as log:
            for step, batch in zip(
                range(start + 1, last_step + 1), parallel.shard_ahead(pipeline.closing(batches)), strict=False
            ):
                peers, measurements = train_step(peers, batch)
                log.add(step, measurements)
                is_save = config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0
                if step in eval_steps or is_save:
                    log.flush()  # raises where a loss is not finite: such a state is never saved
                    ranking = None
                    if step in eval_steps:
                        evaluation = evaluate(eval_step, peers, prepared, config)
                        ranking = log.evaluated(step, evaluation)
                    checkpoint.save(manager, step, parallel.unreplicate(peers), ranking)
            log.flush()
        manager.wait_until_finished()
        step = max(start, last_step)
        evaluation = evaluation or evaluate(eval_step, peers, prepared, config)
        results = finish(workdir, config, prepared, step, evaluation, manager)
    results["wall_time_s"] = time.monotonic() - started
    results["images_per_s"] = log.images_per_s
    write_json(workdir / "results.json", results)
    return results


def evaluation_steps(config: ConfigDict, prepared: Prepared, last_step: int) -> set[int]:
    """Every `eval.every_epochs`, and the last step."""
    ends = range(config.eval.every_epochs, config.train.epochs + 1, config.eval.every_epochs)
    count = {"images": prepared.images("train"), "batch_size": config.train.batch_size}
    return {pipeline.steps_of_epochs(epochs, **count) for epochs in ends} | {last_step}


def claim(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Writes config.json, or checks that the run in `workdir` is this one. Raises InputError showing the difference."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if path.exists():
        stored, data = load_config(workdir), json.loads(path.read_text()).get("data")
        differing = [
            f for f in all_fields(config) if not f.startswith(MAY_CHANGE) and field(stored, f) != field(config, f)
        ]
        if config.optim.schedule == "constant":
            differing = [f for f in differing if f != "train.epochs"]
        lines = [f"config.{f}: {field(stored, f)!r} there, {field(config, f)!r} now" for f in differing]
        if data != prepared.fingerprint:
            lines.append(f"the prepared data: fingerprint {data} there, {prepared.fingerprint} now")
        if lines:
            raise InputError(
                f"--workdir={workdir} holds a run of another config; use another folder, or go on with its own:\n  "
                + "\n  ".join(lines)
            )
    write_json(path, {"config": config.to_dict(), "data": prepared.fingerprint})


def describe(
    console: Console, config: ConfigDict, prepared: Prepared, peers: dict, last_step: int, workdir: Path
) -> None:
    """Says what is about to happen, in three lines."""
    for name, peer in peers.items():
        count = sum(x.size for x in jax.tree.leaves(peer.params))
        console.print(f"{name}: {config.model.name}, {count:,} parameters, {config.model.dtype}", highlight=False)
    console.print(
        f"{prepared.name}: {prepared.images('train'):,} training and {prepared.images('val'):,} validation images,"
        f" {prepared.labels.num_classes} classes",
        highlight=False,
    )
    device = jax.devices()[0]
    console.print(
        f"{last_step:,} steps of {config.train.batch_size} images on {jax.device_count()} × {device.device_kind}; into {workdir}",
        highlight=False,
    )


def finish(workdir: Path, config: ConfigDict, prepared: Prepared, step: int, evaluation: Evaluation, manager) -> dict:
    """The figure, and the results of the last step beside the best checkpoint's."""
    prediction_figure(
        workdir / "predictions.png", evaluation.images, evaluation.labels, evaluation.predictions, prepared.labels
    )
    best = manager.best_step()
    best_metrics = manager.metrics(best) if best is not None else None
    return {
        "reported_peer": config.peer,
        "step": step,
        "peers": {name: scores(confusion, prepared.labels.names) for name, confusion in evaluation.confusion.items()},
        "best": {"by": config.checkpoint.best, "step": best, "metrics": best_metrics},
        **provenance(config, prepared),
    }


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
        self.schedule = make_schedule(self.config.optim, steps=self.schedule_steps)
        self.train_file, earlier = reopen(self.workdir / "train.jsonl", self.start)
        self.eval_file, evaluated = reopen(self.workdir / "eval.jsonl", self.start)
        since = evaluated[-1]["step"] if evaluated else 0
        self.losses = [line[f"{self.config.peer}/loss"] for line in earlier if line["step"] > since]
        self.board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=self.start + 1)
        columns = (
            TextColumn("step"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=self.last_step, completed=self.start)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()
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
            self.check_finite(step, row)
            line = {"step": step, "learning_rate": float(self.schedule(step - 1))} | {
                k: float(v) for k, v in row.items()
            }
            self.train_file.write(json.dumps(line) + "\n")
            self.losses.append(line[f"{self.config.peer}/loss"])
        self.train_file.flush()
        for key in (k for k in line if k != "step"):
            self.board.add_scalar(f"train/{key}", line[key], step)
        now = time.monotonic()
        self.rates.append((step - self.flushed_step) * self.config.train.batch_size / (now - self.flushed_at))
        self.flushed_step, self.flushed_at = step, now
        self.show(step, [row for _, row in rows])

    def check_finite(self, step: int, row: dict) -> None:
        broken = [
            key for key in sorted(row, key=lambda key: ("/loss" in key, "_norm" in key)) if not np.isfinite(row[key])
        ]
        if broken:
            ids = pipeline.image_ids(self.prepared, self.config, step=step - 1)
            saved = f"{self.workdir / 'checkpoints'} holds what was saved before"
            raise NonFiniteError(
                f"{broken[0]} became {float(row[broken[0]])} at step {step} (steps {self.flushed_step + 1} to {step} were"
                f" looked at; also not finite: {', '.join(broken[1:]) or 'nothing'}). Images of its batch: {', '.join(ids)}."
                f" {saved}; try a lower config.optim.learning_rate, or config.model.dtype=float32."
            )

    def show(self, step: int, rows: list[dict]) -> None:
        """The bar's line, or now and then a line of its own."""
        keys = [key for key in rows[0] if "_norm" not in key and not (key.endswith("/loss") and len(rows[0]) == 5)]
        text = "  ".join(f"{key} {np.mean([row[key] for row in rows]):.4f}" for key in keys)
        text += f"  {self.rates[-1]:.1f} images/s"
        self.bar.update(self.task, completed=step, description=text)
        if not self.console.is_terminal and (
            time.monotonic() - self.said_at > STATUS_EVERY_S or step == self.last_step
        ):
            self.said_at = time.monotonic()
            self.console.print(f"step {step:,} of {self.last_step:,}  {text}", highlight=False, soft_wrap=True)

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
        self.console.print(f"validation at step {step:,}:  {shown}", highlight=False)
        ranking = {"mean_iou": reported["mean_iou"], "train_loss": float(np.mean(self.losses)) if self.losses else None}
        self.losses = []
        self.flushed_at = time.monotonic()  # evaluation is no training time
        return {key: float("nan") if value is None else value for key, value in ranking.items()}


def reopen(path: Path, start: int):
    """The log file with lines of steps after `start` dropped (they will be computed again), opened to append; its lines."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            kept.append(json.loads(line))
        except ValueError:  # the line a kill cut short; its step comes again
            continue
    kept = [line for line in kept if line["step"] <= start]
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in kept))
    part.rename(path)
    return path.open("a"), kept
