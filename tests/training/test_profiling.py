"""The times of steps."""

import json

import numpy as np
import pytest

from jaxseg.config import default
from jaxseg.training import profiling


def test_times_are_summed_up_by_hand():
    config = default()
    config.train.batch_size = 6
    times = np.array([[0.1, 0.9], [0.0, 1.0], [0.5, 1.5]])
    assert profiling.summary(np.array([[0.2, 30.0]]), times, config) == {
        "first_step_s": 30.0,
        "step_s": 1.0,
        "step_s_range": [1.0, 2.0],
        "input_s": 0.1,
        "input_share": pytest.approx(0.6 / 4),
        "images_per_s": 6.0,
        "steps": 3,
        "batch_size": 6,
    }


def test_a_profile_holds_a_trace_and_a_summary(tiny, tmp_path, capsys):
    results = profiling.profile(tiny, tmp_path / "run")
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    stored = json.loads((tmp_path / "run/profile.json").read_text())
    assert stored["step_s"] == results["step_s"] > 0
    assert stored["first_step_s"] > 10 * stored["step_s"]  # it compiles
    assert not (tmp_path / "run/checkpoints").exists()
    profiling.show_profile(results | {"input_share": 0.2, "peak_memory_bytes": 5_000_000})
    said = capsys.readouterr().out
    assert "5 MB" in said
    assert "the device waits for input: raise config.data.threads" in said
