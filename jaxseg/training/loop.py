"""The one training loop.

In: a checked config and a folder. Out: in that folder config.json, train.jsonl (a line per step), eval.jsonl,
tensorboard/, checkpoints/, results.json and predictions.png. Running it again goes on from the last checkpoint, to the
same numbers as if it had not stopped.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager

from jaxseg.config import is_frozen, load_config, peer_path, peer_sections
from jaxseg.config_checks import check_batch_statistics, check_devices, check_warmup, validate
from jaxseg.console import PlainConsole
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.data.records import Prepared
from jaxseg.errors import ResourceError, StoppedError
from jaxseg.files import write_json
from jaxseg.floor import check_jaxlib
from jaxseg.metrics import summarize_confusion
from jaxseg.models.pretrained import drop_unreachable, settle_pretrained
from jaxseg.provenance import provenance
from jaxseg.reporting.figures import prediction_figure
from jaxseg.training import checkpoint, parallel
from jaxseg.training.distributed import (
    broadcast_from_primary,
    is_primary_host,
    raise_on_all_hosts,
    run_on_primary,
)
from jaxseg.training.failures import failures_as_errors
from jaxseg.training.logger import Logger
from jaxseg.training.peers import class_weights, create_peers, make_losses, without_init
from jaxseg.training.preemption import PreemptionListener
from jaxseg.training.state import Peers
from jaxseg.training.validation import Evaluation, check_valid_pixels, evaluate, size_multiple_px
from jaxseg.training.workdir import (
    check_config_matches_primary,
    lock_workdir,
    write_load_reports,
    write_or_check_config,
)


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains and scores what `config` describes, in `workdir`.

    Args:
      config: see `jaxseg.config`.
      workdir: the run's folder.

    Returns:
      What results.json holds.

    Raises:
      InputError: before anything heavy, where config, data or folder do not fit or another process trains there.
      NonFiniteError: where a loss does not stay finite.
      StoppedError: after SIGTERM or SIGINT.
      ResourceError: where memory or disk do not suffice.
      HostLostError: where one of several hosts is gone.
    """
    started_at = time.monotonic()
    workdir = Path(workdir)
    check_jaxlib()
    validate(config)
    settle_pretrained(config, say=PlainConsole(quiet=not is_primary_host()).say)
    check_batch_statistics(config)
    check_devices(config, devices=jax.device_count())
    with failures_as_errors(config, workdir):
        prepared = raise_on_all_hosts(lambda: prepare(config.data))
        with lock_workdir(workdir):
            return train(config, workdir, prepared, started_at=started_at)


def train(
    config: ConfigDict,
    workdir: Path,
    prepared: Prepared,
    *,
    started_at: float,
    eval_steps: set[int] | None = None,
    should_stop: Callable[[Evaluation], bool] = lambda evaluation: False,
) -> dict:
    """The loop.

    Args:
      config: checked.
      workdir: locked by the caller.
      prepared: the data.
      started_at: when the run began, by `time.monotonic`.
      eval_steps: steps to evaluate at; default: as `config.eval` says.
      should_stop: called after an evaluation: whether to end.

    Returns:
      What results.json holds.
    """
    console = PlainConsole(quiet=not is_primary_host())
    raise_on_all_hosts(lambda: check_valid_pixels(prepared))
    stored = load_config(workdir) if (workdir / "config.json").exists() else None
    num_classes = prepared.labels.num_classes
    raise_on_all_hosts(lambda: drop_unreachable(config, stored=stored, num_classes=num_classes, say=console.say))
    weights = class_weights(config, prepared)
    schedule_steps = steps_of_epochs(config, prepared, config.train.epochs)
    check_warmup(config, steps=schedule_steps)
    pipeline.check_fits(prepared, config, multiple_px=size_multiple_px(config), processes=jax.process_count())
    run_on_primary(lambda: write_or_check_config(workdir, config, prepared))
    raise_on_all_hosts(lambda: check_config_matches_primary(workdir, config, prepared))
    last_step = min(config.train.max_steps or schedule_steps, schedule_steps)
    eval_steps = eval_steps or evaluation_steps(config, prepared, last_step)
    train_step = parallel.compile_train_step(
        losses=make_losses(config, weights=weights),
        seed=config.seed,
        accumulate_steps=config.train.accumulate_steps,
        updates=config.mutual.updates,
        skip_nonfinite=config.train.max_skipped_steps > 0,
    )
    eval_step = parallel.compile_eval_step(num_classes=num_classes)
    for name, of_class in weights.items():
        console.say(f"{name}: class weights {', '.join(f'{weight:.3g}' for weight in of_class)}")
    evaluation = None

    with checkpoint.open_manager(workdir, config.checkpoint, say=console.say) as manager:
        start, peers = begin(config, workdir, prepared, manager, console, steps=(schedule_steps, last_step))
        peers = parallel.replicate(peers)
        batches = pipeline.train_batches(
            prepared, config, start_step=start, process=jax.process_index(), processes=jax.process_count()
        )
        batches = parallel.shard_ahead(pipeline.closing_iterator(batches))
        logger = Logger(workdir, config, prepared, console, start=start, last_step=last_step, steps=schedule_steps)
        planned_step = last_step
        ended_early = logger.why_to_end(eval_steps)  # where the run had ended so, or was stopped just then
        last_step = start if ended_early else last_step
        with logger, PreemptionListener() as preemption:
            for step, batch in zip(range(start + 1, last_step + 1), batches, strict=False):
                peers, measurements = train_step(peers, batch)
                logger.add(step, measurements)
                is_eval = step in eval_steps
                is_save = config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0
                is_end = preemption.requested(step)
                if is_eval or is_save or is_end:
                    logger.flush()  # raises where a loss is not finite: such a state is never saved
                    ranking = None
                    if is_eval:
                        evaluation = evaluate(eval_step, peers, prepared, config)
                        ranking = logger.evaluated(step, evaluation)
                    checkpoint.save(manager, step, parallel.unreplicate(peers), ranking, say=console.say)
                if is_end and step < last_step:
                    saved = checkpoint.wait(manager, say=console.say) or "none"
                    message = f"step {saved} is saved in {workdir}; the same command goes on"
                    raise StoppedError(message, preemption.signal)
                ended_early = logger.why_to_end(eval_steps) if is_eval else None
                if ended_early or (is_eval and should_stop(evaluation)):
                    last_step = step
                    break
            logger.flush()
        step = max(start, last_step)
        if (saved := checkpoint.wait(manager, say=console.say)) != step:
            raise ResourceError(f"{workdir}: step {step:,}, the last, could not be saved; step {saved} is.")
        evaluation = evaluation or evaluate(eval_step, peers, prepared, config)
        results = results_of(config, prepared, step, evaluation, manager)
    results["ended_early"] = ended_early if step < planned_step else None
    if results["ended_early"]:
        console.say(f"ended at step {step:,} of {planned_step:,}: {ended_early}")
    results["wall_time_s"] = time.monotonic() - started_at
    results["images_per_s"] = logger.images_per_s
    results["skipped_steps"] = logger.skipped
    run_on_primary(lambda: write_results(workdir, results, evaluation, prepared))
    return results


def begin(
    config: ConfigDict,
    workdir: Path,
    prepared: Prepared,
    manager: CheckpointManager,
    console: PlainConsole,
    *,
    steps: tuple[int, int],
) -> tuple[int, Peers]:
    """The step to go on from, 0 for a new run, and the peers as they were then. Says what is to come.

    steps: of the learning rate schedules, and the last one of this run.
    """
    schedule_steps, last_step = steps
    start = broadcast_from_primary(manager.latest_step() or 0)
    peers, reports = raise_on_all_hosts(
        lambda: create_peers(
            without_init(config) if start else config, num_classes=prepared.labels.num_classes, steps=schedule_steps
        )
    )
    for sentence in description(config, prepared, peers, last_step, workdir):
        console.say(sentence)
    for sentence in run_on_primary(lambda: write_load_reports(workdir, reports)) or ():
        console.say(sentence)
    if start:
        start, peers = checkpoint.restore_newest(manager, peers, aside=workdir / "damaged", say=console.say)
        console.say(f"going on from step {start:,}")
    return start, peers


def steps_of_epochs(config: ConfigDict, prepared: Prepared, epochs: int) -> int:
    """Steps after which that many epochs are done."""
    return pipeline.steps_of_epochs(epochs, images=prepared.images("train"), batch_size=config.train.batch_size)


def evaluation_steps(config: ConfigDict, prepared: Prepared, last_step: int) -> set[int]:
    """Every `eval.every_epochs`, and the last step."""
    ends = range(config.eval.every_epochs, config.train.epochs + 1, config.eval.every_epochs)
    return {steps_of_epochs(config, prepared, epochs) for epochs in ends} | {last_step}


def description(config: ConfigDict, prepared: Prepared, peers: Peers, last_step: int, workdir: Path) -> list[str]:
    """What is about to happen, in a sentence per peer and two more; and where a warm-up does not end."""
    sentences = []
    for name, section in peer_sections(config).items():
        model = section.model
        count = sum(x.size for x in jax.tree.leaves(peers[name].params))
        network = model.name if model.name == "unet" else f"{model.name} {model.backbone}"
        held = ", held fixed" if is_frozen(config, name) else ""
        sentences.append(f"{name}: {network}, {count:,} parameters, {model.dtype}{held}")
    images = f"{prepared.images('train'):,} training and {prepared.images('val'):,} validation images"
    sentences.append(f"{prepared.name}: {images}, {prepared.labels.num_classes} classes")
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    sentences.append(f"{last_step:,} steps of {config.train.batch_size} images on {devices}; into {workdir}")
    for name, section in peer_sections(config).items():
        if not is_frozen(config, name) and section.optim.warmup_steps >= last_step:
            sentences.append(
                f"{name}: these {last_step:,} steps (config.train.max_steps) end before its learning rate has warmed up, at"
                f" {peer_path(config, name)}.optim.warmup_steps={section.optim.warmup_steps:,}"
            )
    return sentences


def results_of(
    config: ConfigDict, prepared: Prepared, step: int, evaluation: Evaluation, manager: CheckpointManager
) -> dict:
    """The scores of the last step beside the best checkpoint's, and where they come from."""
    best = manager.best_step()
    names = prepared.labels.names
    return {
        "reported_peer": config.peer,
        "step": step,
        "peers": {name: summarize_confusion(confusion, names) for name, confusion in evaluation.confusion.items()},
        "best": {
            "by": config.checkpoint.best,
            "step": best,
            "metrics": None if best is None else manager.metrics(best),
        },
        **provenance(config, prepared.provenance),
    }


def write_results(workdir: Path, results: Mapping, evaluation: Evaluation, prepared: Prepared) -> None:
    """predictions.png, where there are images to show, and results.json."""
    if len(evaluation.images):
        path = workdir / "predictions.png"
        prediction_figure(path, evaluation.images, evaluation.labels, evaluation.predictions, prepared.labels)
    write_json(workdir / "results.json", dict(results))
