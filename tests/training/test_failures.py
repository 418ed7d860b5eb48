"""What a machine lacks and what numbers do: full disks, memory that does not suffice, steps that are not finite."""

import contextlib
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.data import pipeline
from jaxseg.errors import InputError, NonFiniteError, ResourceError
from jaxseg.training import checkpoint, parallel
from jaxseg.training.failures import failures_as_errors
from jaxseg.training.logger import Logger
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.state import TrainState
from jaxseg.training.step import skip_where_not_finite
from tests.runs import assert_same, lines, saved

# ---- Disk


@contextlib.contextmanager
def largest_file(bytes_: int):
    """As on a full disk, but for files as large as checkpoints only: writing more fails ("File too large")."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(monkeypatch):
    """disk["full"]: the steps whose checkpoints find no room."""
    disk, save, add = {"full": ()}, checkpoint.save, Logger.add

    def save_and_wait(manager, *arguments, say):
        with largest_file(50_000) if disk["now"] in disk["full"] else contextlib.nullcontext():
            save(manager, *arguments, say=say)
            checkpoint.wait(manager, say=say)

    def add_and_note(log, step, measurements):
        disk["now"] = step
        add(log, step, measurements)

    monkeypatch.setattr(checkpoint, "save", save_and_wait)
    monkeypatch.setattr(Logger, "add", add_and_note)
    return disk


def test_a_checkpoint_that_finds_no_room_is_told_and_training_goes_on(tiny, tmp_path, trained_run, capsys, disk):
    tiny.checkpoint.every_steps = 1
    disk["full"] = (2, 3, 4)
    capsys.readouterr()
    assert train_and_evaluate(tiny, tmp_path / "run")["step"] == 5
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoints: a checkpoint could not be written" in said
    assert "File too large" in said
    assert "Steps saved so far: 1. Training goes on" in said
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["1", "5"]
    assert_same(saved(tmp_path / "run", tiny), saved(trained_run, tiny))


def test_a_last_checkpoint_that_finds_no_room_is_no_success(tiny, tmp_path, trained_run, disk):
    whole = json.loads((trained_run / "results.json").read_text())
    disk["full"] = (5,)
    with pytest.raises(ResourceError, match=r"step 5, the last, could not be saved; step 3 is"):
        train_and_evaluate(tiny, tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists()
    disk["full"] = ()
    assert train_and_evaluate(tiny, tmp_path / "run")["peers"] == whole["peers"]
    assert (tmp_path / "run/train.jsonl").read_text() == (trained_run / "train.jsonl").read_text()


def test_a_log_that_finds_no_room_stops_the_run(tiny, tmp_path, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Logger, "evaluated", write)
    with pytest.raises(ResourceError, match=r"no room on a disk \(.*No space left on device\).*run and .* Make room"):
        train_and_evaluate(tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(13, "Permission denied"), False),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']"), True),
        (ValueError("NOT_FOUND: Error opening file [os_error_code='2']"), False),
        (RuntimeError("Failed to finalize writing of split: write() failed: No space left on device; writing x"), True),
        (InputError("x.png: cannot be read (No space left on device)"), False),
    ],
)
def test_full_disks_are_told_from_other_errors(tiny, tmp_path, error, full):
    with pytest.raises(ResourceError if full else type(error)), failures_as_errors(tiny, tmp_path):
        raise error


# ---- Memory


def test_out_of_memory_says_what_to_change(tiny_mutual, tmp_path, monkeypatch):
    def step(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nMore")

    monkeypatch.setattr(parallel, "compile_train_step", lambda **_: step)
    with pytest.raises(ResourceError) as caught:
        train_and_evaluate(tiny_mutual, tmp_path / "run")
    for words in (
        "out of memory (RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.)",
        "config.train.batch_size=4, config.train.accumulate_steps=1, config.model.dtype=float32, config.model.remat=False",
        "config.peers.teacher.model.dtype=float32, config.peers.teacher.model.remat=False, config.data.crop_px=32",
        "more accumulate_steps (the same batch in slices), remat=True, dtype=bfloat16",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(("error", "status"), [("ResourceError", 4), ("HostLostError", 5), ("NonFiniteError", 3)])
def test_statuses(error, status):
    program = (
        f"import sys\nfrom jaxseg import cli\ndef main(): raise cli.{error}('why')\nsys.exit(cli.run(main, usage=''))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "stopped: why\n")


# ---- Numbers


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(steps): the first image of these steps' batches has one pixel that is not a number."""

    def patch(steps):
        train_batches = pipeline.train_batches

        class Batches:
            def __init__(self, *arguments, start_step, **options):
                self.step, self.batches = start_step, train_batches(*arguments, start_step=start_step, **options)

            def __iter__(self):
                return self

            def __next__(self):
                batch, self.step = next(self.batches), self.step + 1
                batch["image"] = batch["image"] / np.float32(255)  # a byte is always a number
                if self.step in steps:
                    batch["image"][0, 0, 0] = np.nan
                return batch

            def close(self):
                self.batches.close()

        monkeypatch.setattr(pipeline, "train_batches", Batches)

    return patch


def test_an_update_that_is_not_finite_is_left_out_and_counted(tiny, tmp_path, capsys, poisoned):
    """After step 2 the state is that of step 1, but for the step; the next steps are finite again."""
    tiny.train.max_skipped_steps = 1
    tiny.checkpoint.update({"every_steps": 1, "keep_latest": 5})
    poisoned([2])
    results = train_and_evaluate(tiny, tmp_path / "run")
    assert results["skipped_steps"] == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "unet/pixel became nan at step 2" in said
    assert "Its update is skipped (1 of at most 1)." in said
    one, two, three = (saved(tmp_path / "run", tiny, step) for step in (1, 2, 3))
    for path in one:
        assert np.array_equal(one[path], two[path]) == (path != "['unet'].step"), path
    assert int(two["['unet'].step"]) == 2
    changed = [path for path in two if "params" in path and not np.array_equal(two[path], three[path])]
    assert len(changed) > 50
    log = lines(tmp_path / "run/train.jsonl")
    assert [line["skipped"] for line in log] == [0, 1, 0, 0, 0]
    assert log[1]["unet/loss"] is None
    assert log[1]["unet/learning_rate"] == 1e-3
    assert all(np.isfinite(log[step]["unet/loss"]) for step in (0, 2, 3, 4))


def test_one_more_than_the_limit_stops_also_after_a_restart(tiny, tmp_path, poisoned):
    tiny.train.update({"max_skipped_steps": 1, "max_steps": 3})
    poisoned([2, 4])
    train_and_evaluate(tiny, tmp_path / "run")
    tiny.train.max_steps = 5
    with pytest.raises(NonFiniteError) as caught:
        train_and_evaluate(tiny, tmp_path / "run")
    assert "unet/pixel became nan at step 4" in str(caught.value)
    assert "2 updates were to be skipped, config.train.max_skipped_steps is 1." in str(caught.value)
    tiny.train.max_skipped_steps = 2  # the same run goes on
    assert train_and_evaluate(tiny, tmp_path / "run")["skipped_steps"] == 2


def test_skipping_changes_no_finite_step(tiny, tmp_path, trained_run):
    tiny.train.max_skipped_steps = 3
    train_and_evaluate(tiny, tmp_path / "skipping")
    run, skipping = (lines(folder / "train.jsonl") for folder in (trained_run, tmp_path / "skipping"))
    for line, other in zip(run, skipping, strict=True):
        assert other.pop("skipped") == 0
        np.testing.assert_allclose(list(other.values()), list(line.values()), rtol=1e-5)


@pytest.mark.parametrize(("bad", "value"), [("a/loss", np.inf), ("a/grad_norm", np.nan), ("b/loss", -np.inf)])
def test_one_measurement_is_enough(bad, value):
    peer = TrainState.create(apply_fn=None, params={"w": jnp.zeros(2)}, tx=optax.sgd(1.0), batch_stats={})
    peers = {"a": peer, "b": peer}
    moved = {name: p.replace(step=1, params={"w": jnp.ones(2)}) for name, p in peers.items()}
    measurements = {key: jnp.float32(1) for key in ("a/loss", "a/grad_norm", "b/loss")}
    kept, measured = skip_where_not_finite(peers, moved, measurements)
    assert measured["skipped"] == 0
    assert all((p.params["w"] == 1).all() and p.step == 1 for p in kept.values())
    kept, measured = skip_where_not_finite(peers, moved, measurements | {bad: jnp.float32(value)})
    assert measured["skipped"] == 1
    assert all((p.params["w"] == 0).all() and p.step == 1 for p in kept.values())
