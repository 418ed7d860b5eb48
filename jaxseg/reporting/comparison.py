"""What runs say together: scores over seeds, and paired differences with their uncertainty.

In: the JSON files below a results folder. Out: `Study`s (a plan with its runs), `Summary` (mean and standard deviation
over seeds) and `Difference` (over pairs of runs that share data set, protocol and seed). Imports no JAX.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.information import entropy, mutual_information
from jaxseg.labels import LABELS
from jaxseg.schemas import AGAIN, FAILED_RUN, FINISHED_RUN, PLAN_FILE, SINGLE_RUN

CONFIDENCE = 0.95
MODELS = ("unet", "rmi", "mutual")  # the study's Models 1, 2, 3
MODEL_NAMES = {"unet": "U-Net", "rmi": "U-Net with RMI", "mutual": "U-Net, mutual learning"}
METRICS = ("mean_iou", "pixel_accuracy")


class Question(NamedTuple):
    """What a study asks: how runs of the arm `of` differ from those of the arm `against`."""

    ask: str
    dataset: str
    protocol: str
    of: str
    against: str


class Bits(NamedTuple):
    """H(truth) and I(truth; prediction) of a pixel, in bits; NaN for a run that failed or scored no pixel."""

    truth: float
    mutual: float

    @property
    def share(self) -> float:
        """I / H, in [0, 1]; NaN where H is 0."""
        return self.mutual / self.truth if self.truth else math.nan


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (ddof 1; NaN for a single value) of `count` values."""

    mean: float
    std: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of `count` paired differences and its 95 % interval by Student's t; infinite for a single pair."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        """Which way it goes, where the interval leaves no doubt."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "open"


@dataclasses.dataclass(frozen=True)
class Study:
    """plan: what plan.json holds. runs: name -> what its JSON holds, of the plan and, behind it, of the plan it builds on."""

    plan: dict
    runs: dict[str, dict]

    @property
    def cells(self) -> list[tuple[str, str, str]]:
        """(data set, protocol, arm), in the plan's order."""
        return list(dict.fromkeys(_cell(run) for run in self.plan["runs"]))

    @property
    def settings(self) -> list[tuple[str, str]]:
        """(data set, protocol), in the plan's order."""
        return list(dict.fromkeys(cell[:2] for cell in self.cells))

    @property
    def model_settings(self) -> list[tuple[str, str]]:
        """Data sets and protocols for which the plan has the study's models themselves; the paper's data sets first."""
        own = [setting for setting in self.settings if any((*setting, model) in self.cells for model in MODELS)]
        return papers_first(own)

    @property
    def finished_settings(self) -> list[tuple[str, str]]:
        """Those of `model_settings` with a run of the study's models that did not fail."""
        return [setting for setting in self.model_settings if any(self.finished_runs(*setting, m) for m in MODELS)]

    @property
    def settings_with_runs(self) -> list[tuple[str, str]]:
        """Those of `settings` with a run of any arm that did not fail; the paper's data sets first."""
        return papers_first(setting for setting in self.settings if self.arms_run(*setting))

    @property
    def questions(self) -> list[Question]:
        """The plan's own, else the models' against the baseline; those that there are runs for."""
        asked = self.plan["questions"] or [
            {"ask": f"{MODEL_NAMES[model]} against {MODEL_NAMES['unet']}", "of": model, "against": "unet"}
            for model in MODELS[1:]
        ]
        found = [
            Question(one["ask"], *setting, one["of"], one["against"]) for one in asked for setting in self.settings
        ]
        return [question for question in found if all(self.runs_compared(question))]

    def arms_run(self, dataset: str, protocol: str) -> list[str]:
        """Arms with a run that did not fail, the study's models first."""
        known = dict.fromkeys([*MODELS, *(run["study"]["arm"] for run in self.runs.values())])
        return [arm for arm in known if self.finished_runs(dataset, protocol, arm)]

    def runs_by_seed(self, dataset: str, protocol: str, arm: str) -> dict[int, dict]:
        """Seed -> run, of one cell."""
        found = [run for run in self.runs.values() if _cell(run["study"]) == (dataset, protocol, arm)]
        return {run["study"]["seed"]: run for run in sorted(found, key=lambda run: run["study"]["seed"])}

    def finished_runs(self, dataset: str, protocol: str, arm: str) -> list[dict]:
        """The runs of one cell that did not fail."""
        return [run for run in self.runs_by_seed(dataset, protocol, arm).values() if "failed" not in run]

    def runs_compared(self, question: Question) -> tuple[dict[tuple[str, int], dict], dict[tuple[str, int], dict]]:
        """(What `*` stands for, seed) -> run, of the question's two arms; "" where they have no `*`."""
        _, dataset, protocol, of, against = question

        def runs_like(pattern):
            return {
                (stem, seed): run
                for arm, stem in self.arms_like(pattern).items()
                for seed, run in self.runs_by_seed(dataset, protocol, arm).items()
            }

        return runs_like(of), runs_like(against)

    def arms_like(self, pattern: str) -> dict[str, str]:
        """Arm -> what `*` stands for in it, of the arms that fit; a pattern without `*` is an arm's name."""
        start, star, end = pattern.partition("*")
        if not star:
            return {pattern: ""}
        arms = sorted({run["study"]["arm"] for run in self.runs.values()})
        fitting = [arm for arm in arms if arm.startswith(start) and arm[len(start) :].endswith(end)]
        return {arm: arm[len(start) : len(arm) - len(end)] for arm in fitting}


def papers_first(settings: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(data set, protocol) in the data sets' order, which begins with the paper's."""
    return sorted(settings, key=lambda setting: [*LABELS, setting[0]].index(setting[0]))


def _cell(run: dict) -> tuple[str, str, str]:
    return run["dataset"], run["protocol"], run["arm"]


def load_studies(results: Path) -> list[Study]:
    """Every folder below `results` that holds a plan.json, by name, those that build on another plan last.

    Raises:
      InputError: naming a file that does not fit.
    """
    plans = {path.parent: load_plan(path) for path in sorted(results.rglob("plan.json"))}
    runs = {folder: load_study_runs(folder) for folder in plans}
    folders = {folder.name: folder for folder in plans}
    studies = []
    for folder, plan in sorted(plans.items(), key=lambda item: (item[1]["base"] is not None, item[0])):
        base_runs = runs[folders[plan["base"]]] if plan["base"] in folders else {}
        studies.append(Study(plan, base_runs | runs[folder]))
    return studies


def load_plan(path: Path) -> dict:
    """A study's plan.json. Raises InputError."""
    plan = read_json(path, PLAN_FILE)
    if unknown := sorted({run["dataset"] for run in plan["runs"]} - set(LABELS)):
        raise InputError(f"{path}: data set {unknown[0]!r} is not known here; known are {', '.join(LABELS)}.")
    return plan


def load_study_runs(folder: Path) -> dict[str, dict]:
    """Name -> content of the runs beside a plan. Raises InputError."""
    return {path.stem: load_study_run(path) for path in sorted(folder.glob("*-seed*.json"))}


def load_study_run(path: Path) -> dict:
    """A run of a study, which may have failed. Raises InputError."""
    run = read_json(path)
    (FAILED_RUN if "failed" in run else FINISHED_RUN).check(run, path)
    if "failed" in run:
        return run
    check_run(run, path)
    for part, name in (("train", "pixel"), ("val", "mean_iou")):
        curve = run["curves"][part]
        steps, values = len(curve["step"]), len(curve[name])
        if steps != values:
            raise InputError(f"{path}: curves.{part}: {steps} steps, but {values} values of {name}; {AGAIN}")
    return run


def check_run(run: dict, path: Path) -> None:
    """That what a run's JSON says fits together. Raises InputError."""
    peer, dataset = run["reported_peer"], run["data"]["name"]
    if dataset not in LABELS and "labels" not in run["data"]:
        raise InputError(f"{path}: data set {dataset!r} is not known here; known are {', '.join(LABELS)}.")
    if peer not in run["peers"]:
        raise InputError(f"{path}: holds no scores of {peer!r}, the peer that it reports; {AGAIN}")
    scores = run["peers"][peer]
    classes = len(scores["iou"])
    if [len(row) for row in scores["confusion"]] != [classes] * classes:
        raise InputError(f"{path}: its confusion matrix is not {classes} × {classes}; {AGAIN}")


def load_single_runs(results: Path) -> dict[str, dict]:
    """Results of runs that belong to no study: path below `results` -> content. Raises InputError."""
    found = {}
    for path in sorted(results.rglob("*.json")):
        run = read_json(path)
        if "reported_peer" in run and "study" not in run:
            SINGLE_RUN.check(run, path)
            check_run(run, path)
            found[path.relative_to(results).as_posix()] = run
    return found


def score(run: dict, metric: str) -> float:
    """A metric of the reported peer after the last step; NaN for a run that failed."""
    value = None if "failed" in run else run["peers"][run["reported_peer"]][metric]
    return math.nan if value is None else value


def bits(run: dict) -> Bits:
    """Of the reported peer's confusion matrix, which runs of before hold as well."""
    if "failed" in run:
        return Bits(math.nan, math.nan)
    confusion = np.array(run["peers"][run["reported_peer"]]["confusion"], np.int64)
    return Bits(entropy(confusion.sum(1)), mutual_information(confusion))


def rank_correlation(first: Iterable[float], second: Iterable[float]) -> float:
    """Spearman's, of the pairs without NaN; NaN for fewer than three, or where one side is always the same.

    >>> round(rank_correlation([1, 2, 3, 4], [10, 20, 40, 30]), 3)
    0.8
    """
    pairs = np.array([pair for pair in zip(first, second, strict=True) if not np.isnan(pair).any()])
    if len(pairs) < 3 or (pairs == pairs[0]).all(0).any():
        return math.nan
    return float(stats.spearmanr(*pairs.T).statistic)


def class_ious(run: dict) -> dict[str, float | None]:
    """Class -> IoU of the reported peer, None for an absent class; empty for a run that failed."""
    return {} if "failed" in run else run["peers"][run["reported_peer"]]["iou"]


def summarize(values: Iterable[float]) -> Summary:
    """Of the values that are not NaN.

    >>> summarize([1.0, 2.0, 3.0])
    Summary(mean=2.0, std=1.0, count=3)
    """
    values = np.array([value for value in values if not math.isnan(value)])
    if not len(values):
        return Summary(math.nan, math.nan, 0)
    return Summary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan, len(values))


def pair_differences[K](of: Mapping[K, dict], against: Mapping[K, dict], metric: str) -> list[float]:
    """metric(of) - metric(against) for every key (a seed) that both have."""
    return [score(of[key], metric) - score(against[key], metric) for key in of if key in against]


def paired_difference[K](of: Mapping[K, dict], against: Mapping[K, dict], metric: str) -> Difference:
    """The mean of the pairs' differences d and its interval: mean(d) ± t(0.975, n - 1) · s(d) / √n.

    Args:
      of: seed, or another key -> run.
      against: likewise; keys that only one of the two has are left out.
      metric: one of METRICS.
    """
    summary = summarize(pair_differences(of, against, metric))
    if summary.count < 2:
        return Difference(summary.mean, -math.inf, math.inf, summary.count)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, summary.count - 1) * summary.std / math.sqrt(summary.count)
    return Difference(summary.mean, summary.mean - half, summary.mean + half, summary.count)
