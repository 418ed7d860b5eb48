"""Two made-up runs whose pages are looked at."""

import pytest

from tests.made_runs import FIRST, SECOND, WRONG_MAP, write_run


@pytest.fixture
def first(tmp_path):
    return write_run(tmp_path / "first", FIRST, prediction=WRONG_MAP)


@pytest.fixture
def second(tmp_path):
    scores = {"mean_iou": 0.55, "pixel_accuracy": 0.7, "mean_accuracy": 0.6, "boundary_iou": 0.125}
    config = {"seed": 0, "optim": {"learning_rate": 0.5}}
    return write_run(tmp_path / "second", SECOND, peer="student", scores=scores, config=config)
