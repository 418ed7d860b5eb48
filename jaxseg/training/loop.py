"""The one training loop.

In: a checked config and a folder. Out: in that folder config.json, train.jsonl (a line per step), eval.jsonl,
tensorboard/, checkpoints/, results.json and predictions.png. Running it again goes on from the last checkpoint, to the
same numbers as if it had not stopped.
"""

import contextlib
import fcntl
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import jax
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager
from rich.console import Console

from jaxseg.cli import ResourceError, StoppedError
from jaxseg.config import InputError, all_fields, check_devices, field, is_frozen, load_config, peer_sections, validate
from jaxseg.data import pipeline
from jaxseg.data.prepare import Prepared, prepare
from jaxseg.losses import LossFn
from jaxseg.provenance import provenance, scores, write_json
from jaxseg.reporting.terminal import prediction_figure
from jaxseg.training import checkpoint, distributed, parallel
from jaxseg.training.failures import explained
from jaxseg.training.logger import Log
from jaxseg.training.peers import create_peers, without_init
from jaxseg.training.preemption import Stop
from jaxseg.training.step import Peers
from jaxseg.training.validation import Evaluation, evaluate

# Fields that may differ when a run is gone on with: none of them changes what has been computed so far.
MAY_CHANGE = (
    "data.source_dir",
    "data.dir",
    "data.download",
    "data.workers",
    "data.threads",
    "train.max_steps",
    "train.max_skipped_steps",
    "train.log_every_steps",
    "eval.",
    "checkpoint.",
)


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains and scores what `config` describes, in `workdir`; returns what results.json holds.

    Raises InputError before anything heavy where the config, the data or the folder do not fit or another process trains
    there, NonFiniteError where a loss does not stay finite, StoppedError after SIGTERM or SIGINT, ResourceError where
    memory or disk do not suffice, HostLostError where one of several hosts is gone.
    """
    started = time.monotonic()
    validate(config)
    check_devices(config, devices=jax.device_count())
    workdir, console = Path(workdir), Console(markup=False, highlight=False, quiet=not distributed.is_first())
    with explained(config, workdir):
        prepared = distributed.together(lambda: prepare(config.data))
        with distributed.on_first(lambda: only_here(workdir)) or contextlib.nullcontext():
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
    distributed.on_first(lambda: claim(workdir, config, prepared))
    distributed.together(lambda: check_same(workdir, config, prepared))
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
                range(start + 1, last_step + 1), parallel.shard_ahead(pipeline.closing(batches)), strict=False
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
    distributed.on_first(lambda: write_json(workdir / "results.json", results))
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
    start, weights = distributed.of_first(manager.latest_step() or 0), {}
    peers, losses = distributed.together(
        lambda: create_peers(
            without_init(config) if start else config,
            num_classes=prepared.labels.num_classes,
            steps=schedule_steps,
            report=lambda peer, line: weights.setdefault(peer, []).append(line),
        )
    )
    describe(console, config, prepared, peers, last_step, workdir)
    if distributed.is_first():
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


def only_here(workdir: Path) -> TextIO:
    """Takes `workdir` until the file returned is closed; a killed process lets go. Raises InputError for a second one."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("w")
    except OSError as error:
        raise InputError(
            f"--workdir={workdir}: no folder that can be written ({error.strerror}); use another."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"--workdir={workdir}: another process is training there; wait for it, or use another folder. (Processes that"
            " are to train together need --distributed.)"
        ) from error
    return file


def claim(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """Writes config.json, or checks that the run in `workdir` is this one. Raises InputError showing the difference."""
    path = workdir / "config.json"
    if path.exists():
        stored, data = load_config(workdir), json.loads(path.read_text()).get("data")
        changed = differences(stored, config)
        if not any((workdir / "checkpoints").glob("[0-9]*")):  # a start from weights that could not be read
            changed = {
                f: line for f, line in changed.items() if not f.endswith(("model.init_from", "model.init_parts"))
            }
        lines = list(changed.values())
        if data != prepared.fingerprint:
            lines.append(f"the prepared data: fingerprint {data} there, {prepared.fingerprint} now")
        if lines:
            raise InputError(
                f"--workdir={workdir} holds a run of another config; use another folder, or go on with its own:\n  "
                + "\n  ".join(lines)
            )
    write_json(path, {"config": config.to_dict(), "data": prepared.fingerprint})


def check_same(workdir: Path, config: ConfigDict, prepared: Prepared) -> None:
    """That this host sees what the first one wrote, and has the same config and data. Raises InputError."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"--workdir={workdir}: the first host's {path.name} is not there; it must be a folder of all hosts."
        )
    stored = json.loads(path.read_text())
    if lines := list(differences(load_config(workdir), config).values()):
        raise InputError("another config than on the first host:\n  " + "\n  ".join(lines))
    if stored["data"] != prepared.fingerprint:
        raise InputError(f"other data: fingerprint {stored['data']} on the first host, {prepared.fingerprint} here.")


def differences(stored: ConfigDict, config: ConfigDict) -> dict[str, str]:
    """Of every field that would make it another run, a line that shows both values."""
    there, now = ({f: repr(field(c, f)) for f in all_fields(c)} for c in (stored, config))
    may_change = MAY_CHANGE
    if all(section.optim.schedule == "constant" for section in peer_sections(config).values()):
        may_change += ("train.epochs",)
    return {
        f: f"config.{f}: {there.get(f, 'no such peer')} there, {now.get(f, 'no such peer')} now"
        for f in there | now
        if not f.startswith(may_change) and there.get(f) != now.get(f)
    }


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
    if distributed.is_first():
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
