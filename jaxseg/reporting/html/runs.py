"""What lies in the folders of runs, read for a page that shows them: logs, and the newest scores.

In: words `[NAME=]RUN`. Out: `Run`s of one class table. Imports no JAX: results can be looked at anywhere.
"""

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.config import all_fields, get_field
from jaxseg.errors import InputError
from jaxseg.files import read_json, read_json_lines
from jaxseg.labels import LABELS, Labels, labels_of
from jaxseg.schemas import AGAIN, RESULT

OPTIONAL = {"images": [], "config": {}, "device": {}, "versions": {}}


@dataclasses.dataclass(frozen=True)
class Run:
    """name: shown on the page. file: the JSON that `result` was read from. train, eval: lines of the two logs."""

    name: str
    folder: Path
    file: Path
    result: dict
    train: list[dict]
    eval: list[dict]

    @property
    def peer(self) -> str:
        return self.result["reported_peer"]

    @property
    def scores(self) -> dict:
        """Of the reported peer."""
        return self.result["peers"][self.peer]

    @property
    def data_name(self) -> str:
        return self.result["data"]["name"]

    @property
    def labels(self) -> Labels:
        return labels_of(self.result["data"])

    @property
    def images(self) -> dict[tuple[int, str], dict]:
        """(number, id) -> the reported peer's scores of that image; empty where none were written."""
        listed = zip(self.result["images"], self.scores.get("images", []), strict=True)
        return {(image["number"], image["id"]): scores for image, scores in listed}

    @property
    def gallery_folder(self) -> Path:
        """The folder with image, truth and predictions."""
        return self.file.with_suffix("")

    @property
    def evaluate_command(self) -> str:
        """What scores this run image by image."""
        return f"python -m jaxseg.evaluate --workdir={shlex.quote(str(self.folder))}"


def load_runs(words: Sequence[str]) -> list[Run]:
    """The runs in the order given. Raises InputError naming the file or word that does not fit."""
    runs = {}
    for word in words:
        name, equals, place = word.partition("=")
        folder = Path(place if equals else word)
        name = name if equals else Path(os.path.realpath(folder)).name
        if name in runs:
            raise InputError(f"{word}: {runs[name].folder} is called {name!r} too; give NAME=RUN.")
        runs[name] = load_run(name, folder)
    first, *others = runs.values()
    for run in others:
        if run.labels.names != first.labels.names:
            raise InputError(
                f"{run.folder} knows the classes of {run.data_name}, {first.folder} those of {first.data_name}: their"
                " scores cannot be compared; make a page of each."
            )
    return [first, *others]


def load_run(name: str, folder: Path) -> Run:
    """Raises InputError naming the file that does not fit."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one that `python -m jaxseg.main` trained in.")
    file = newest_scores(folder)
    result = OPTIONAL | read_json(file, RESULT)
    check_result(result, file)
    train, evaluations = (read_json_lines(folder / name) for name in ("train.jsonl", "eval.jsonl"))
    return Run(name, folder, file, result, train, evaluations)


def newest_scores(folder: Path) -> Path:
    """The evaluation of the highest step, of several the one written last; where there is none, results.json. Scores of
    another split than val are taken only where there are no others."""
    found = {}
    for path in sorted(folder.glob("evaluation-*.json")):
        if match := re.fullmatch(r"evaluation-(\d+)\D.*", path.name):
            found[path] = (int(match[1]), path.stat().st_mtime)
    newest = sorted(found, key=found.get, reverse=True)
    of_val = next((path for path in newest if read_json(path).get("split", "val") == "val"), None)
    if of_val or (newest and not (folder / "results.json").exists()):
        return of_val or newest[0]
    if not (folder / "results.json").exists():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        if inside and not (folder / "config.json").exists():
            raise InputError(f"{folder}: no run, but a folder of runs: {', '.join(inside)}. Name those to be shown.")
        raise InputError(
            f"{folder}: holds neither evaluation-STEP.json nor results.json, so there are no scores to show; make them by"
            f" `python -m jaxseg.evaluate --workdir={shlex.quote(str(folder))}`."
        )
    return folder / "results.json"


def check_result(result: dict, file: Path) -> None:
    """That what the page needs is there and fits. Raises InputError naming file, field and value."""
    name, peer = result["data"]["name"], result["reported_peer"]
    if name not in LABELS and "labels" not in result["data"]:
        raise InputError(f"{file}: data set {name!r} is not known here; known are {', '.join(LABELS)}.")
    if peer not in result["peers"]:
        raise InputError(f"{file}: {RESULT.fault} (peers.{peer} is missing; expected an object); {AGAIN}")
    try:
        ConfigDict(result["config"])
    except ValueError as error:  # a name with a dot
        raise InputError(f"{file}: {RESULT.fault} (config: {error}); {AGAIN}") from error
    scores = {"images": []} | result["peers"][peer]
    classes = list(scores["iou"])
    if classes != list(labels_of(result["data"]).names):
        raise InputError(f"{file}: its classes ({', '.join(classes[:3])}, …) are not those of {name}; {AGAIN}")
    if [len(row) for row in scores["confusion"]] != [len(classes)] * len(classes):
        raise InputError(f"{file}: the confusion matrix is not {len(classes)} × {len(classes)}; {AGAIN}")
    listed = len(result["images"])
    scored = len(scores["images"])
    if listed != scored:
        raise InputError(f"{file}: {listed} images, but scores of {scored}; {AGAIN}")


def series(lines: list[dict], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have a number there."""
    points = [(line["step"], line.get(key)) for line in lines]
    return [(step, value) for step, value in points if isinstance(value, int | float) and math.isfinite(value)]


def settings(run: Run) -> dict[str, str]:
    """Every setting of a run, as `config.field` -> value."""
    config = ConfigDict(run.result["config"])
    return {f"config.{path}": str(get_field(config, path)) for path in all_fields(config)}
