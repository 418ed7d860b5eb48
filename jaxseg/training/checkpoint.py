"""Saving and restoring the peers of a run, by orbax.

In: peers `{name: TrainState}` of NumPy arrays (one device's copy). Out: WORKDIR/checkpoints/STEP, written in the
background, renamed into place when whole; the latest k and the best one are kept. SUMS in it has the SHA-256 of every
file and is checked before any of them is read. A restored run goes on as if it had not stopped: the step number fixes
data order and randomness.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxseg.errors import InputError
from jaxseg.files import read_json, remove_own_folder
from jaxseg.models.torch_tensors import LoadReport, flatten
from jaxseg.schemas import CHECKSUMS
from jaxseg.training import distributed
from jaxseg.training.state import Peers, TrainState, averaged

SUMS = "sha256.json"  # in a checkpoint's folder: SHA-256 of every file below it, by path
HIGHER_IS_BETTER = {"mean_iou": True, "train_loss": False}


def open_manager(
    workdir: Path, checkpoint: ConfigDict, *, read_only: bool = False, say: Callable[[str], None] = print
) -> ocp.CheckpointManager:
    """The checkpoints of WORKDIR. Best by `config.checkpoint.best` (orbax's own max_to_keep would drop the latest).

    Orbax reads notes of every checkpoint first, and opens none where it fails at one: those are told and moved to
    WORKDIR/damaged. Raises InputError where nothing may be moved (read_only, or several hosts), or all would be.
    """
    folder = workdir / "checkpoints"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; move it away.")
    # orbax tells every step of every save; its errors come as exceptions, too
    absl.logging.set_verbosity(absl.logging.FATAL)
    _hear_no_closed_loops()
    higher = HIGHER_IS_BETTER[checkpoint.best]
    policies = ocp.checkpoint_managers
    rank = functools.partial(_metric, name=checkpoint.best)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(checkpoint.keep_latest),
                policies.BestN(get_metric_fn=rank, reverse=not higher, n=1, keep_checkpoints_without_metrics=False),
            ]
        ),
        best_fn=rank,
        best_mode="max" if higher else "min",
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        # Called when all is written, before the folder gets its name: no checkpoint is without its sums.
        async_options=ocp.options.AsyncOptions(post_finalization_callback=lambda: _write_sums(workdir / "checkpoints")),
    )
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except Exception as error:  # whatever comes of parsing the notes
        damaged = _unreadable(folder, options)
        if not damaged or damaged == _steps(folder) or read_only or jax.process_count() > 1:
            named = ", ".join(map(str, damaged)) or folder
            raise InputError(
                f"{named}: cannot be read ({type(error).__name__}: {str(error)[:300]}); move it away."
            ) from error
    for step in damaged:
        kept = _move(step, workdir / "damaged")
        say(f"{step}: what is noted of this checkpoint cannot be read. It is kept as {kept}; those before it are used.")
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _steps(checkpoints: Path) -> list[Path]:
    """The folders of checkpoints."""
    return sorted(path for path in checkpoints.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())


def _unreadable(checkpoints: Path, options: ocp.CheckpointManagerOptions) -> list[Path]:
    """The checkpoints that orbax cannot open, each tried alone."""
    alone = dataclasses.replace(options, read_only=True, cleanup_tmp_directories=False)
    found = []
    for step in _steps(checkpoints):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / step.name).symlink_to(step.absolute())
            try:
                ocp.CheckpointManager(folder, options=alone).close()
            except Exception:  # as above
                found.append(step)
    return found


@functools.cache
def _hear_no_closed_loops() -> None:
    """Where one file cannot be read or written, orbax closes its event loop, and what else was under way prints pages of
    "Event loop is closed" from tensorstore's threads. The error itself is raised; these are dropped."""
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _metric(metrics: dict, *, name: str) -> float:
    """What is no finite number (nothing was scored) is worse than any."""
    value = (
        metrics.get(name) if isinstance(metrics, dict) else None
    )  # of a damaged file; its sum is checked when it is used
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return value if is_number else (-math.inf if HIGHER_IS_BETTER[name] else math.inf)


def _sums(folder: Path) -> dict[str, str]:
    """Path below `folder` -> SHA-256, of what it holds in folders of its own: orbax still writes beside them."""
    sums = {}
    for path in sorted(path for path in folder.glob("*/**/*") if path.is_file()):
        with path.open("rb") as file:
            sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _write_sums(checkpoints: Path) -> None:
    """Of the one checkpoint that is being written."""
    if distributed.is_primary_host():
        for folder in checkpoints.glob("*.orbax-checkpoint-tmp*"):
            (folder / SUMS).write_text(json.dumps(_sums(folder), indent=1) + "\n", encoding="utf-8")


def _check_sums(manager: ocp.CheckpointManager, step: int, what: str) -> None:
    """Raises InputError naming the files that are not as they were written."""
    with _named_errors(manager, step, what):
        folder = Path(manager.directory) / str(step)
        written = read_json(folder / SUMS, CHECKSUMS)
        found = _sums(folder)
        wrong = [
            f"{name} is {'not what was written' if name in found else 'missing'}"
            for name, digest in written.items()
            if found.get(name) != digest
        ]
        if wrong:
            raise ValueError(f"of {len(written)} files, " + ", ".join(wrong[:3]) + (" …" if len(wrong) > 3 else ""))


def save(
    manager: ocp.CheckpointManager,
    step: int,
    peers: Peers,
    metrics: dict[str, float] | None,
    *,
    say: Callable[[str], None] = print,
) -> None:
    """Starts writing the checkpoint of `step`; returns before it is on disk (`wait`).

    metrics: what `config.checkpoint.best` ranks by, where the step was evaluated. What a full disk or another of its
    errors keeps from being written is told and given up: the checkpoints before it stay, the next one is tried.
    """
    wait(manager, say=say)
    items = {name: ocp.args.StandardSave(_saved(peer)) for name, peer in peers.items()}
    with _given_up(manager, say):
        manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)


def wait(manager: ocp.CheckpointManager, *, say: Callable[[str], None] = print) -> int | None:
    """Until what was begun is on disk, or given up as in `save`; the newest step that is there."""
    with _given_up(manager, say):
        manager.wait_until_finished()
    if jax.process_count() == 1:  # what is given up, also by threads that were still writing when it was
        for part in Path(manager.directory).glob("*.orbax-checkpoint-tmp*"):
            remove_own_folder(part, why="of a checkpoint", is_own=Path.is_dir)  # the name is orbax's own
    return manager.latest_step()


@contextlib.contextmanager
def _given_up(manager: ocp.CheckpointManager, say: Callable[[str], None]) -> Iterator[None]:
    """An error of the disk as a sentence. On several hosts it is raised: the others wait for this one's part."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore's are ValueErrors that quote the system's
        if jax.process_count() > 1 or not (isinstance(error, OSError) or "os_error_code" in str(error)):
            raise
        folder = Path(manager.directory)
        manager.reload()
        steps = ", ".join(map(str, sorted(manager.all_steps()))) or "none"
        say(
            f"{folder}: a checkpoint could not be written ({str(error)[-300:]}). Steps saved so far: {steps}. Training goes"
            " on, and the next checkpoint is tried again; make room."
        )


def restore(manager: ocp.CheckpointManager, step: int, peers: Peers) -> Peers:
    """The peers as saved at `step`; `peers` gives names and shapes. Raises InputError where the checkpoint has others."""
    items = {}
    for name, peer in peers.items():
        shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _saved(peer))
        items[name] = ocp.args.StandardRestore(shapes)
    what = f"peers {', '.join(peers)} of the run's config"
    distributed.run_on_primary(lambda: _check_sums(manager, step, what))
    with _named_errors(manager, step, what):
        restored = manager.restore(step, args=ocp.args.Composite(**items))
        restored = {name: peer.replace(**restored[name]) for name, peer in peers.items()}
        jax.tree.map_with_path(_check_leaf, restored, peers)  # orbax itself lets other shapes pass
    return restored


def restore_newest(
    manager: ocp.CheckpointManager, peers: Peers, *, aside: Path, say: Callable[[str], None]
) -> tuple[int, Peers]:
    """The newest checkpoint that can be read, and its step. Newer ones that cannot are told and moved to `aside`.

    Nothing is deleted, and nothing is moved where none can be read: then raises InputError about the newest.
    """
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            peers = restore(manager, step, peers)
        except InputError as error:
            damaged.append((step, error))
            continue
        for newer, why in damaged:
            kept = distributed.run_on_primary(functools.partial(_move, Path(manager.directory) / str(newer), aside))
            say(f"{why} It is kept as {kept}; the one before it, of step {step}, is used.")
        if damaged:
            manager.reload()
        return step, peers
    raise InputError(f"{damaged[0][1]} No other checkpoint can be read either; start in another folder.")


def _move(folder: Path, aside: Path) -> Path:
    """Into `aside`, under a name that is free there."""
    aside.mkdir(exist_ok=True)
    free = next(
        name for n in itertools.count() if not (name := aside / f"{folder.name}{f'-{n}' if n else ''}").exists()
    )
    return folder.rename(free)


def restore_networks(manager: ocp.CheckpointManager, step: int, peers: Peers) -> Peers:
    """The peers of `step` as they predict, by their averages where they have one. What optimizers held is not read, so it
    may be another version's."""
    what = f"peers {', '.join(peers)} of the run's config"
    targets = {name: _network(peer) for name, peer in peers.items()}
    restored = _restore_parts(manager, step, targets, what)
    others = {"step": np.asarray(step, np.int32), "opt_state": ()}
    return {name: averaged(peer.replace(**others, **restored[name])) for name, peer in peers.items()}


def restore_variables(workdir: Path, config: ConfigDict, target: dict) -> tuple[dict, LoadReport]:
    """Parameters and BatchNorm statistics of the reported peer at the best checkpoint of the run in `workdir`, else at
    its last, and what was loaded; `target` gives names and shapes. Raises InputError."""
    shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), target)
    step, restored = _restore_best(workdir, config, lambda _: shapes)
    named = jax.tree.leaves_with_path(restored)
    loaded = [f"step {step} {jax.tree_util.keystr(p, simple=True, separator='/')} {list(x.shape)}" for p, x in named]
    return restored, LoadReport(tuple(loaded))


def _restore_parts(manager: ocp.CheckpointManager, step: int, targets: dict[str, dict], what: str) -> dict[str, dict]:
    """Of each peer's item those parts that `targets` names, with their shapes. Raises InputError."""
    shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), targets)
    items = {name: ocp.args.PyTreeRestore(shape, partial_restore=True) for name, shape in shapes.items()}
    _check_sums(manager, step, what)
    with _named_errors(manager, step, what):
        restored = manager.restore(step, args=ocp.args.Composite(**items))
        restored = {name: restored[name] for name in targets}
        jax.tree.map_with_path(_check_leaf, restored, targets)
    return restored


def restore_arrays(workdir: Path, config: ConfigDict) -> dict[str, np.ndarray]:
    """The same by our own names ("params/encoder1/conv1/kernel"), whatever their shapes. Raises InputError."""

    def shapes_of_saved(saved: dict) -> dict:
        return {
            key: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved[key]) for key in ("params", "batch_stats")
        }

    return flatten(_restore_best(workdir, config, shapes_of_saved)[1])


def _restore_best(workdir: Path, config: ConfigDict, shapes_of: Callable[[dict], dict]) -> tuple[int, dict]:
    """Step and variables of the reported peer; shapes_of: from what is noted of it to the shapes that are wanted."""
    is_average = config.optim.ema_decay > 0
    with open_manager(workdir, config.checkpoint, read_only=True) as manager:
        step = find_step(manager, "last" if manager.best_step() is None else "best")
        what = f"peer {config.peer} of this network"
        _check_sums(manager, step, what)
        with _named_errors(manager, step, what):
            saved = ocp.PyTreeCheckpointHandler().metadata(Path(manager.directory) / str(step) / config.peer).tree
            shapes = shapes_of(saved["ema"] if is_average else saved)
        targets = {config.peer: {"ema": shapes} if is_average else shapes}
        restored = _restore_parts(manager, step, targets, what)[config.peer]
    return step, restored["ema"] if is_average else restored


@contextlib.contextmanager
def _named_errors(manager: ocp.CheckpointManager, step: int, what: str) -> Iterator[None]:
    """What orbax and `_check_leaf` raise, as an InputError naming the checkpoint."""
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{manager.directory / str(step)}: this checkpoint cannot be read as {what}"
            f" ({type(error).__name__}: {str(error)[:600]})."
        ) from error


def _check_leaf(path, saved: np.ndarray, wanted: np.ndarray) -> None:
    if saved.shape != wanted.shape or saved.dtype != wanted.dtype:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(
            f"{name} is {saved.dtype}{list(saved.shape)} there, {wanted.dtype}{list(wanted.shape)} in the config"
        )


def find_step(manager: ocp.CheckpointManager, which: str) -> int:
    """The step that "last", "best" or a number names. Raises InputError."""
    steps = sorted(manager.all_steps())
    if not steps:
        raise InputError(f"{manager.directory}: there is no checkpoint.")
    step = {"last": manager.latest_step, "best": manager.best_step}.get(which, lambda: None)()
    if step is None and len(which) < 20 and which.isdecimal() and int(which) in steps:
        step = int(which)
    if step is None:
        raise InputError(
            f"{manager.directory}: no checkpoint {which[:40]!r}; there are {', '.join(map(str, steps))}, last and best."
        )
    return step


def _saved(peer: TrainState) -> dict:
    """What of a peer is saved; functions and the optimiser's definition come from the config."""
    average = {} if peer.ema is None else {"ema": peer.ema}
    live = {"params": peer.params, "batch_stats": peer.batch_stats}
    return {"step": peer.step, "opt_state": peer.opt_state} | live | average


def _network(peer: TrainState) -> dict:
    """What of that makes predictions: the average where there is one."""
    return {"params": peer.params, "batch_stats": peer.batch_stats} if peer.ema is None else {"ema": peer.ema}
