"""The one training loop.

In: a checked config and a folder. Out: in that folder config.json, train.jsonl (a line per step), eval.jsonl,
tensorboard/, checkpoints/, results.json and predictions.png. Running it again goes on from the last checkpoint, to the
same numbers as if it had not stopped.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager
from rich.console import Console

from jaxseg.config import is_frozen, peer_sections
from jaxseg.config_checks import check_devices, validate
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.data.records import Prepared
from jaxseg.errors import ResourceError, StoppedError
from jaxseg.files import write_json
from jaxseg.losses.objective import LossFn
from jaxseg.metrics import scores
from jaxseg.provenance import provenance
from jaxseg.reporting.figures import prediction_figure
from jaxseg.training import checkpoint, distributed, parallel
from jaxseg.training.failures import failures_as_errors
from jaxseg.training.logger import Log
from jaxseg.training.peers import create_peers, without_init
from jaxseg.training.preemption import Stop
from jaxseg.training.state import Peers
from jaxseg.training.validation import Evaluation, evaluate
from jaxseg.training.workdir import check_config_matches_primary, lock_workdir, write_or_check_config


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains and scores what `config` describes, in `workdir`; returns what results.json holds.

    Raises InputError before anything heavy where the config, the data or the folder do not fit or another process trains
    there, NonFiniteError where a loss does not stay finite, StoppedError after SIGTERM or SIGINT, ResourceError where
    memory or disk do not suffice, HostLostError where one of several hosts is gone.
    """
    started = time.monotonic()
    validate(config)
    check_devices(config, devices=jax.device_count())
    workdir, console = Path(workdir), Console(markup=False, highlight=False, quiet=not distributed.is_primary_host())
    with failures_as_errors(config, workdir):
        prepared = distributed.raise_on_all_hosts(lambda: prepare(config.data))
        with distributed.run_on_primary(lambda: lock_workdir(workdir)) or contextlib.nullcontext():
            return train(config, workdir, prepared, console, started)


def train(
    config: ConfigDict,
    workdir: Path,
    prepared: Prepared,
    console: Console,
    started: float,
    *,
    eval_steps: set[int] | None = None,
    enough: Callable[[Evaluation], bool] = lambda evaluation: False,
) -> dict:
    """The loop. eval_steps: other steps to score at than `config.eval` says; enough: after a scoring, whether to end."""
    say = functools.partial(console.print, soft_wrap=True)
    distributed.run_on_primary(lambda: write_or_check_config(workdir, config, prepared))
    distributed.raise_on_all_hosts(lambda: check_config_matches_primary(workdir, config, prepared))
    schedule_steps = pipeline.steps_of_epochs(
        config.train.epochs, images=prepared.images("train"), batch_size=config.train.batch_size
    )
    last_step = min(config.train.max_steps or schedule_steps, schedule_steps)

    with checkpoint.open_manager(workdir, config.checkpoint) as manager:
        start, peers, losses = begin(config, workdir, prepared, manager, schedule_steps, last_step, console)
        peers = parallel.replicate(peers)
        train_step = parallel.compile_train_step(
            losses=losses,
            seed=config.seed,
            accumulate_steps=config.train.accumulate_steps,
            skip_nonfinite=config.train.max_skipped_steps > 0,
        )
        eval_step = parallel.compile_eval_step(num_classes=prepared.labels.num_classes)
        evaluation = None
        batches = pipeline.train_batches(
            prepared, config, start_step=start, process=jax.process_index(), processes=jax.process_count()
        )
        eval_steps = eval_steps or evaluation_steps(config, prepared, last_step)
        with Log(workdir, config, prepared, schedule_steps, start, last_step, console) as log, Stop() as stop:
            for step, batch in zip(
                range(start + 1, last_step + 1), parallel.shard_ahead(pipeline.closing_iterator(batches)), strict=False
            ):
                peers, measurements = train_step(peers, batch)
                log.add(step, measurements)
                is_save = config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0
                is_end = stop.asked(step)
                if step in eval_steps or is_save or is_end:
                    log.flush()  # raises where a loss is not finite: such a state is never saved
                    ranking = None
                    if step in eval_steps:
                        evaluation = evaluate(eval_step, peers, prepared, config)
                        ranking = log.evaluated(step, evaluation)
                    checkpoint.save(manager, step, parallel.unreplicate(peers), ranking, say=say)
                if is_end and step < last_step:
                    saved = checkpoint.wait(manager, say=say) or "none"
                    raise StoppedError(f"step {saved} is saved in {workdir}; the same command goes on", stop.signal)
                if step in eval_steps and enough(evaluation):
                    last_step = step
                    break
            log.flush()
        step = max(start, last_step)
        if (saved := checkpoint.wait(manager, say=say)) != step:
            raise ResourceError(f"{workdir}: step {step:,}, the last, could not be saved; step {saved} is.")
        evaluation = evaluation or evaluate(eval_step, peers, prepared, config)
        results = finish(workdir, config, prepared, step, evaluation, manager)
    results["wall_time_s"] = time.monotonic() - started
    results["images_per_s"] = log.images_per_s
    results["skipped_steps"] = log.skipped
    distributed.run_on_primary(lambda: write_json(workdir / "results.json", results))
    return results


def begin(
    config: ConfigDict,
    workdir: Path,
    prepared: Prepared,
    manager: CheckpointManager,
    schedule_steps: int,
    last_step: int,
    console: Console,
) -> tuple[int, Peers, dict[str, LossFn]]:
    """The step to go on from, 0 for a new run, the peers as they were then, and their losses. Says what is to come."""
    say = functools.partial(console.print, soft_wrap=True)
    start, weights = distributed.broadcast_from_primary(manager.latest_step() or 0), {}
    peers, losses = distributed.raise_on_all_hosts(
        lambda: create_peers(
            without_init(config) if start else config,
            num_classes=prepared.labels.num_classes,
            steps=schedule_steps,
            report=lambda peer, line: weights.setdefault(peer, []).append(line),
        )
    )
    describe(console, config, prepared, peers, last_step, workdir)
    if distributed.is_primary_host():
        tell_weights(console, workdir, weights)
    if start:
        start, peers = checkpoint.restore_newest(manager, peers, aside=workdir / "damaged", say=say)
        say(f"going on from step {start:,}")
    return start, peers, losses


def evaluation_steps(config: ConfigDict, prepared: Prepared, last_step: int) -> set[int]:
    """Every `eval.every_epochs`, and the last step."""
    ends = range(config.eval.every_epochs, config.train.epochs + 1, config.eval.every_epochs)
    count = {"images": prepared.images("train"), "batch_size": config.train.batch_size}
    return {pipeline.steps_of_epochs(epochs, **count) for epochs in ends} | {last_step}


def tell_weights(console: Console, workdir: Path, weights: dict[str, list[str]]) -> None:
    """Of every peer that starts from other weights: how many tensors were loaded, left fresh, dropped; all by name in a
    file."""
    for name, lines in weights.items():
        path = workdir / f"init_{name}.txt"
        path.write_text("\n".join(lines) + "\n")
        counts = {kind: sum(line.startswith(kind) for line in lines) for kind in ("loaded", "fresh", "dropped")}
        counted = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        console.print(f"{name}: starts from other weights, tensors: {counted}; see {path}", soft_wrap=True)


def describe(
    console: Console, config: ConfigDict, prepared: Prepared, peers: dict, last_step: int, workdir: Path
) -> None:
    """Says what is about to happen, in three lines."""
    for name, section in peer_sections(config).items():
        count, model = sum(x.size for x in jax.tree.leaves(peers[name].params)), section.model
        network = model.name if model.name == "unet" else f"{model.name} {model.backbone}"
        held = ", held fixed" if is_frozen(config, name) else ""
        console.print(f"{name}: {network}, {count:,} parameters, {model.dtype}{held}", soft_wrap=True)
    console.print(
        f"{prepared.name}: {prepared.images('train'):,} training and {prepared.images('val'):,} validation images,"
        f" {prepared.labels.num_classes} classes",
        soft_wrap=True,
    )
    device = jax.devices()[0]
    console.print(
        f"{last_step:,} steps of {config.train.batch_size} images on {jax.device_count()} × {device.device_kind}; into {workdir}",
        soft_wrap=True,
    )


def finish(workdir: Path, config: ConfigDict, prepared: Prepared, step: int, evaluation: Evaluation, manager) -> dict:
    """The figure, and the results of the last step beside the best checkpoint's."""
    if distributed.is_primary_host():
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
