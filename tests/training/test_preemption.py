"""Signals: the step is saved, and the run goes on the same."""

import os
import pty
import signal
import subprocess
import sys
import time

import jax
import pytest

from jaxseg.errors import StoppedError
from jaxseg.training.logger import Logger
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.preemption import PreemptionListener
from tests.runs import assert_same, lines, run_environment, saved, tiny_arguments

# Makes standard input the terminal that the process hangs up with, then becomes `python` with the other words.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@pytest.fixture(autouse=True)
def hang_ups_are_heard():
    """Also where the tests were started by nohup, which their processes would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGTERM, 2), (signal.SIGINT, 3), (signal.SIGHUP, 2), (signal.SIGUSR1, 2)],  # 3: an evaluation, too
)
def test_a_signal_saves_the_step_and_the_run_goes_on_the_same(tiny, tmp_path, monkeypatch, trained_run, number, step):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    add = Logger.add

    def add_and_kill(log, now, measurements):
        add(log, now, measurements)
        if now == step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Logger, "add", add_and_kill)
        with pytest.raises(StoppedError, match=f"step {step} is saved") as caught:
            train_and_evaluate(tiny, tmp_path / "run")
    assert caught.value.status == 128 + number
    assert [line["step"] for line in lines(tmp_path / "run/train.jsonl")] == list(range(1, step + 1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    train_and_evaluate(tiny, tmp_path / "run")
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (trained_run / name).read_text()
    assert_same(saved(tmp_path / "run", tiny), saved(trained_run, tiny))


def test_the_second_signal_is_not_waited_for():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    try:
        with PreemptionListener() as preemption:
            signal.raise_signal(signal.SIGINT)
            assert preemption.requested(1)
            assert preemption.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_kernel_shell_and_slurm_send_twice_is_one_request(number):
    before = signal.getsignal(number)
    with PreemptionListener() as preemption:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert preemption.signal == number
    assert signal.getsignal(number) == before


def test_below_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with PreemptionListener() as preemption:
            signal.raise_signal(signal.SIGHUP)
            assert not preemption.requested(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_on_several_hosts_other_signals_are_passed_on_as_the_one_that_jax_hears(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with PreemptionListener():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM, signal.SIGTERM]


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_the_run_with_its_step_saved(camvid_dir, tmp_path):
    """Slow: a process of its own, with a terminal. What it writes there afterwards is an error of the system's."""
    main, side = pty.openpty()
    more = [f"--workdir={tmp_path / 'run'}", "--config.train.epochs=10000", "--config.train.log_every_steps=1"]
    more.append("--config.eval.every_epochs=10000")
    command = [sys.executable, "-c", TAKE_TERMINAL, "-m", "jaxseg.main", *tiny_arguments(camvid_dir, tmp_path), *more]
    child = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, env=run_environment(), start_new_session=True
    )
    os.close(side)
    log = tmp_path / "run/train.jsonl"
    until = time.monotonic() + 120
    os.set_blocking(main, False)
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert time.monotonic() < until
        assert child.poll() is None
        try:
            os.read(main, 65536)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(main)
    assert child.wait(60) == 128 + signal.SIGHUP
    steps = [line["step"] for line in lines(log)]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [str(steps[-1])]
