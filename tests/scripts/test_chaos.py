"""Killed with SIGKILL and started again, a run ends bit for bit the same; three kills of `scripts/checks/chaos.py`."""

import random

import pytest

from scripts.checks import chaos


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("plain", "checkpoint"), ("rmi", "evaluation"), ("mutual", "step")])
def test_killed_and_started_again_it_ends_the_same(tmp_path, name, kind):
    """Slow: three real runs, each killed, started again and compared with an undisturbed one."""
    result = chaos.compare(name, tmp_path, steps=20, kinds=[kind], rng=random.Random(0))
    assert result["differs"] == []
    assert result["steps"] == 20
    assert result["arrays"] > 200  # parameters, statistics and Adam's two moments of a U-Net's 100 tensors
    assert len(result["kills"]) == 1

    whole, disturbed = (chaos.Case(name, tmp_path / f"{name}-{how}", 20) for how in ("whole", "disturbed"))
    log = disturbed.workdir / "train.jsonl"
    log.write_text(log.read_text().replace('{"step": 3,', '{"step": 3, "more": 1,'))
    assert chaos.differences(whole, disturbed) == ["train.jsonl"]
