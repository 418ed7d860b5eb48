"""Processes that read for a run end with it, and not before."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxseg.data import pipeline
from jaxseg.errors import ResourceError
from jaxseg.training.failures import failures_as_errors
from jaxseg.training.loop import train_and_evaluate
from tests.runs import lines, run_environment, tiny_arguments

LIMIT_S = 120


def until(condition, what: str):
    """What `condition()` returns as soon as that is true."""
    end = time.monotonic() + LIMIT_S
    while not (result := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return result


def command_line(number: int) -> str:
    """Of a process; "" where it is gone, or only its status is left."""
    try:
        return Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def workers_of(number: int) -> list[int]:
    """The processes that Python has spawned for the process `number`."""
    children = [
        child for task in Path(f"/proc/{number}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [int(child) for child in children if "spawn_main" in command_line(int(child))]


@pytest.fixture
def run_with_workers(camvid_dir, tmp_path):
    """A run in a process group of its own, with two workers, some steps done."""
    more = ["data.workers=2", "train.epochs=100000", "train.log_every_steps=1", "eval.every_epochs=100000"]
    fields = [f"--config.{field}" for field in more]
    arguments = [*tiny_arguments(camvid_dir, tmp_path), f"--workdir={tmp_path / 'run'}", *fields]
    command = [sys.executable, "-m", "jaxseg.main", *arguments]
    child = subprocess.Popen(
        command, env=run_environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log = tmp_path / "run/train.jsonl"
    until(lambda: child.poll() is not None or (log.exists() and log.read_text().count("\n") > 2), "no step was made")
    assert child.poll() is None, child.stderr.read()
    yield child
    if child.poll() is None:
        child.kill()
    child.wait()
    child.stderr.close()


@pytest.mark.slow
def test_workers_of_a_run_that_is_killed_end(run_with_workers):
    """Slow: a real run with two workers, which import all that it does."""
    workers = workers_of(run_with_workers.pid)
    assert len(workers) == 2
    os.kill(run_with_workers.pid, signal.SIGKILL)
    run_with_workers.wait()
    until(lambda: not any("spawn_main" in command_line(worker) for worker in workers), f"{workers} live on")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_a_run_and_its_workers_saves_the_step(run_with_workers, tmp_path, number):
    """As terminals and SLURM send it. Slow: a real run with two workers."""
    workers = workers_of(run_with_workers.pid)
    os.killpg(run_with_workers.pid, number)
    _, said = run_with_workers.communicate(timeout=LIMIT_S)
    assert run_with_workers.returncode == 128 + number, said
    last = lines(tmp_path / "run/train.jsonl")[-1]["step"]
    assert (tmp_path / "run/checkpoints" / str(last)).is_dir()
    until(lambda: not any("spawn_main" in command_line(worker) for worker in workers), f"{workers} live on")


@pytest.mark.parametrize("code", [-7, -9])
def test_a_worker_that_is_gone_is_a_lack_of_memory(tiny, tmp_path, code):
    told = f"Worker process was terminated unexpectedly with exit code {code}. Search the logs above"
    with pytest.raises(ResourceError, match=f"exit code {code}.*/dev/shm is full.*config.data.workers=0"):  # noqa: SIM117
        with failures_as_errors(tiny, tmp_path):
            raise RuntimeError(told)


def test_what_workers_cannot_share_is_refused_before_a_step(tiny, tmp_path, monkeypatch):
    tiny.data.workers = 2
    monkeypatch.setattr(pipeline, "check_shared_memory", lambda *_, **__: (_ for _ in ()).throw(ResourceError("full")))
    with pytest.raises(ResourceError, match="full"):
        train_and_evaluate(tiny, tmp_path / "run")
    assert not (tmp_path / "run/train.jsonl").exists()
