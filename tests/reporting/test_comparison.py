"""Means, spreads and paired intervals, against scipy's own paired test and hand counts."""

import functools
import json
import math
import operator

import numpy as np
import pytest
from scipy import stats

from jaxseg.errors import InputError
from jaxseg.reporting.comparison import (
    Difference,
    load_single_runs,
    load_studies,
    paired_difference,
    score,
    summarize,
)
from tests.study_results import run, write_study

UNET, RMI = (0.41, 0.43, 0.40), (0.44, 0.45, 0.46)


def runs_of(arm, values):
    return {
        f"camvid-text-{arm}-seed{seed}": run(f"camvid-text-{arm}-seed{seed}", iou=v) for seed, v in enumerate(values)
    }


@pytest.fixture
def study(tmp_path):
    write_study(tmp_path / "p", runs_of("unet", UNET) | runs_of("rmi", RMI), planned=("voc2012-text-unet-seed0",))
    return load_studies(tmp_path)[0]


def test_summary_by_hand():
    """Mean 2, deviations -1 0 1: standard deviation 1 with n - 1. A NaN is no value."""
    assert summarize([1.0, 2.0, math.nan, 3.0]) == summarize([1.0, 2.0, 3.0])
    summary = summarize([1.0, 2.0, 3.0])
    assert (summary.mean, summary.std, summary.count) == (2.0, 1.0, 3)
    assert summarize([]).count == 0
    assert math.isnan(summarize([0.5]).std)


def test_paired_interval_is_scipys(study):
    ours, theirs = study.runs_by_seed("camvid", "text", "rmi"), study.runs_by_seed("camvid", "text", "unet")
    difference = paired_difference(ours, theirs, "mean_iou")
    expected = stats.ttest_rel(RMI, UNET).confidence_interval(0.95)
    assert difference.mean == pytest.approx(np.mean(RMI) - np.mean(UNET), rel=1e-12)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert difference.count == 3


def test_only_seeds_that_both_have_are_paired_difference(study):
    theirs = study.runs_by_seed("camvid", "text", "unet")
    del theirs[1]
    difference = paired_difference(study.runs_by_seed("camvid", "text", "rmi"), theirs, "mean_iou")
    assert difference.count == 2
    assert difference.mean == pytest.approx((0.03 + 0.06) / 2, rel=1e-12)


def test_one_pair_decides_nothing():
    one = {0: run("camvid-text-unet-seed0", iou=0.1)}, {0: run("camvid-text-rmi-seed0", iou=0.3)}
    difference = paired_difference(*one, "mean_iou")
    assert difference.mean == pytest.approx(-0.2)
    assert (difference.low, difference.high, difference.verdict) == (-math.inf, math.inf, "open")


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.1, 0.3, "higher"), (-0.3, -0.1, "lower"), (-0.1, 0.3, "open")])
def test_verdicts(low, high, verdict):
    assert Difference(0.0, low, high, 3).verdict == verdict


def test_what_is_planned_and_what_was_run(study):
    assert study.settings == [("camvid", "text"), ("voc2012", "text")]
    assert study.model_settings == [("voc2012", "text"), ("camvid", "text")]  # the paper's first
    assert ("voc2012", "text", "unet") in study.cells
    assert study.runs_by_seed("voc2012", "text", "unet") == {}
    assert list(study.runs_by_seed("camvid", "text", "rmi")) == [0, 1, 2]
    assert study.questions == [("U-Net with RMI against U-Net", "camvid", "text", "rmi", "unet")]


def test_a_plan_sees_the_runs_of_its_base(tmp_path):
    write_study(tmp_path / "base", runs_of("unet", UNET))
    asked = [{"ask": "Does it help?", "of": "rmi", "against": "unet"}]
    write_study(tmp_path / "more", runs_of("rmi", RMI), questions=asked, base="base")
    more = load_studies(tmp_path)[1]
    assert more.questions == [("Does it help?", "camvid", "text", "rmi", "unet")]
    assert more.plan["plan"] == "more"
    assert len(more.plan["runs"]) == 3  # the base's are not its own


def test_a_star_pools_pairs_of_several_arms(tmp_path):
    """Of fcn and fpn with RMI against the same without: +0.03 +0.02 +0.06 and +0.1; psp has no pair."""
    arms = {"fcn": UNET, "fcn_rmi": RMI, "fpn": (0.3,), "fpn_rmi": (0.4,), "psp": (0.9,), "fcn_rmi_late": (0.8,)}
    runs = functools.reduce(operator.or_, (runs_of(arm, values) for arm, values in arms.items()))
    write_study(tmp_path / "p", runs, questions=[{"ask": "In all?", "of": "*_rmi", "against": "*"}])
    study = load_studies(tmp_path)[0]
    of, against = study.runs_compared(study.questions[0])
    assert list(of) == [("fcn", 0), ("fcn", 1), ("fcn", 2), ("fpn", 0)]
    difference = paired_difference(of, against, "mean_iou")
    assert difference.count == 4
    assert difference.mean == pytest.approx((0.03 + 0.02 + 0.06 + 0.1) / 4, rel=1e-12)


def test_a_run_that_failed_has_no_score():
    failed = {"study": {}, "failed": "unet/loss became nan at step 7", "peers": {}}
    assert math.isnan(score(failed, "mean_iou"))


def test_runs_outside_of_studies(tmp_path):
    write_study(tmp_path / "p", runs_of("unet", UNET))
    (tmp_path / "demo").mkdir()
    alone = {key: value for key, value in run("camvid-text-unet-seed0", iou=0.5).items() if key != "study"}
    (tmp_path / "demo" / "results.json").write_text(json.dumps(alone))
    (tmp_path / "bench.json").write_text(json.dumps({"benchmark": "step"}))
    assert list(load_single_runs(tmp_path)) == ["demo/results.json"]


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("peers", {}, r"no scores of 'unet'"),
        ("peers.unet.confusion", [[1, 2], [3]], r"its confusion matrix is not 3 × 3"),
        ("peers.unet.mean_iou", "high", r"peers.unet.mean_iou is 'high'; expected a number or null"),
        ("peers.unet.confusion.0.0", -1, r"peers.unet.confusion.0.0 is -1; expected greater than or equal to 0"),
        ("curves.val.mean_iou", [0.5], r"curves.val: 2 steps, but 1 values of mean_iou"),
        ("wall_time_s", float("inf"), r"wall_time_s is inf; expected a finite number"),
        ("data.name", "mars", r"data set 'mars' is not known here"),
        ("commit", 7, r"commit is 7; expected a text"),
    ],
)
def test_a_field_of_a_run_that_does_not_fit_is_named(tmp_path, path, value, match):
    folder = write_study(tmp_path / "p", runs_of("unet", UNET))
    content = run("camvid-text-unet-seed9", iou=0.5)
    *sections, field = [int(part) if part.isdecimal() else part for part in path.split(".")]
    functools.reduce(operator.getitem, sections, content)[field] = value
    (folder / "camvid-text-unet-seed9.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"camvid-text-unet-seed9.json: .*{match}"):
        load_studies(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "camvid-text-unet-seed9.json: cannot be read"),
        ("{}", "not a run of a"),
        ('{"failed": 1, "study": {}}', "study.arm is missing"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, match):
    folder = write_study(tmp_path / "p", runs_of("unet", UNET))
    (folder / "camvid-text-unet-seed9.json").write_text(text)
    with pytest.raises(InputError, match=match):
        load_studies(tmp_path)
