"""What runs say together: scores over seeds, and paired differences with their uncertainty.

In: the JSON files below a results folder. Out: `Study`s (a plan with its runs), `Summary` (mean and spread over seeds)
and `Difference` (over pairs of runs that share data set, protocol and seed). Imports no JAX.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from jaxseg.errors import InputError
from jaxseg.files import read_json

CONFIDENCE = 0.95
MODELS = ("unet", "rmi", "mutual")  # the study's Models 1, 2, 3
NAMES = {"unet": "U-Net", "rmi": "U-Net with RMI", "mutual": "U-Net, mutual learning"}
DATASETS = {
    "cityscapes": "Cityscapes",
    "voc2012": "PASCAL VOC 2012",
    "camvid": "CamVid",
    "synthetic": "rendered scenes",
}
PLAN_KEYS = {"plan", "title", "note", "base", "questions", "runs"}
METRICS = ("mean_iou", "pixel_accuracy")


@dataclasses.dataclass(frozen=True)
class Study:
    """plan: what plan.json holds. runs: name -> what its JSON holds, of the plan and, behind it, of the plan it builds on."""

    plan: dict
    runs: dict[str, dict]

    @property
    def cells(self) -> list[tuple[str, str, str]]:
        """(data set, protocol, arm), in the plan's order."""
        return list(dict.fromkeys((run["dataset"], run["protocol"], run["arm"]) for run in self.plan["runs"]))

    @property
    def settings(self) -> list[tuple[str, str]]:
        """(data set, protocol), in the plan's order."""
        return list(dict.fromkeys(cell[:2] for cell in self.cells))

    @property
    def model_settings(self) -> list[tuple[str, str]]:
        """Data sets and protocols for which the plan has the study's models themselves; the paper's data sets first."""
        own = [s for s in self.settings if any(self.planned(*s, model) for model in MODELS)]
        return sorted(own, key=lambda setting: [*DATASETS].index(setting[0]))

    def of(self, dataset: str, protocol: str, arm: str) -> dict[int, dict]:
        """Seed -> run, of one cell."""
        wanted = (dataset, protocol, arm)
        found = (
            run
            for run in self.runs.values()
            if tuple(run["study"][k] for k in ("dataset", "protocol", "arm")) == wanted
        )
        return {run["study"]["seed"]: run for run in sorted(found, key=lambda run: run["study"]["seed"])}

    def planned(self, dataset: str, protocol: str, arm: str) -> int:
        """How many runs of a cell there are to be."""
        return sum(
            (run["dataset"], run["protocol"], run["arm"]) == (dataset, protocol, arm) for run in self.plan["runs"]
        )


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (ddof 1; NaN for a single value) of `count` values."""

    mean: float
    spread: float
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


def load_studies(results: Path) -> list[Study]:
    """Every folder below `results` that holds a plan.json, by name, those that build on another plan last.

    Raises InputError naming a file that does not fit.
    """
    plans, runs = {}, {}
    for path in sorted(results.rglob("plan.json")):
        plans[path.parent] = plan = read_json(path)
        if missing := PLAN_KEYS - plan.keys():
            raise InputError(f"{path}: not the plan of a study ({', '.join(sorted(missing))} missing); move it away.")
        runs[path.parent] = {}
        for file in sorted(path.parent.glob("*-seed*.json")):
            runs[path.parent][file.stem] = run = read_json(file)
            if "study" not in run or not ("failed" in run or "peers" in run):
                raise InputError(f"{file}: not a run of a study (keys {', '.join(run) or 'none'}); move it away.")
    by_name = {folder.name: folder for folder in plans}
    studies = []
    for folder, plan in sorted(plans.items(), key=lambda item: (item[1]["base"] is not None, item[0])):
        below = runs[by_name[plan["base"]]] if plan["base"] in by_name else {}
        studies.append(Study(plan, below | runs[folder]))
    return studies


def load_single_runs(results: Path) -> dict[str, dict]:
    """Results of runs that belong to no study: path below `results` -> content."""
    found = {path.relative_to(results).as_posix(): read_json(path) for path in sorted(results.rglob("*.json"))}
    return {name: run for name, run in found.items() if "reported_peer" in run and "study" not in run}


def score(run: dict, metric: str) -> float:
    """A metric of the reported peer after the last step; NaN for a run that failed."""
    value = run["peers"][run["reported_peer"]][metric] if "failed" not in run else None
    return float("nan") if value is None else value


def class_scores(run: dict) -> dict[str, float | None]:
    return run["peers"][run["reported_peer"]]["iou"] if "failed" not in run else {}


def summarize(values: Sequence[float]) -> Summary:
    """Of the values that are not NaN."""
    values = np.array([value for value in values if not math.isnan(value)])
    if not len(values):
        return Summary(math.nan, math.nan, 0)
    return Summary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan, len(values))


def paired(of: dict[int, dict], against: dict[int, dict], metric: str) -> Difference:
    """metric(of) - metric(against) over the seeds that both have: mean ± t(0.975, n - 1) · s / √n."""
    pairs = [score(of[seed], metric) - score(against[seed], metric) for seed in of if seed in against]
    summary = summarize(pairs)
    if summary.count < 2:
        return Difference(summary.mean, -math.inf, math.inf, summary.count)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, summary.count - 1) * summary.spread / math.sqrt(summary.count)
    return Difference(summary.mean, summary.mean - half, summary.mean + half, summary.count)


def questions(study: Study) -> list[tuple[str, str, str, str, str]]:
    """(ask, data set, protocol, of, against): the plan's own, else the models' against the baseline."""
    asked = study.plan["questions"] or [
        {"ask": f"{NAMES[model]} against {NAMES['unet']}", "of": model, "against": "unet"} for model in MODELS[1:]
    ]
    return [
        (question["ask"], *setting, question["of"], question["against"])
        for question in asked
        for setting in study.settings
        if study.of(*setting, question["of"]) and study.of(*setting, question["against"])
    ]
