"""Signals: the step is saved, and the run goes on the same."""

import os
import signal

import pytest

from jaxseg.errors import StoppedError
from jaxseg.training.logger import Logger
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.preemption import PreemptionListener
from tests.runs import assert_same, lines, saved


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 3)])  # 3: an evaluation, too
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
