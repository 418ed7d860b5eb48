"""What lies in the folders of runs, read for a page that shows them: logs, and the newest scores.

In: words `[NAME=]RUN`. Out: `Run`s of one class table. Imports no JAX: results can be looked at anywhere.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.config import all_fields, get_field
from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.labels import LABELS, Labels


@dataclasses.dataclass(frozen=True)
class Run:
    """name: shown on the page. file: the JSON that `result` was read from. train, evals: lines of the two logs."""

    name: str
    folder: Path
    file: Path
    result: dict
    train: list[dict]
    evals: list[dict]

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
        return LABELS[self.data_name]

    @property
    def images(self) -> dict[tuple[int, str], dict]:
        """(number, id) -> the reported peer's scores of that image; empty where none were written."""
        listed = self.result.get("images", [])
        return {(i["number"], i["id"]): score for i, score in zip(listed, self.scores.get("images", []), strict=True)}

    @property
    def gallery(self) -> Path:
        """The folder with image, truth and predictions."""
        return self.file.with_suffix("")

    @property
    def command(self) -> str:
        """What scores this run image by image."""
        return f"python -m jaxseg.evaluate --workdir={self.folder}"


def load_runs(words: Sequence[str]) -> list[Run]:
    """The runs in the order given. Raises InputError naming the file or word that does not fit."""
    runs = {}
    for word in words:
        name, equals, folder = word.partition("=")
        folder = Path(folder if equals else word)
        name = name if equals else folder.resolve().name
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
    result = read_json(file)
    check_result(result, file)
    return Run(name, folder, file, result, read_lines(folder / "train.jsonl"), read_lines(folder / "eval.jsonl"))


def newest_scores(folder: Path) -> Path:
    """The evaluation of the highest step, of several the one written last; where there is none, results.json."""
    steps = {
        path: re.fullmatch(r"evaluation-(\d+)\D.*", path.name) for path in sorted(folder.glob("evaluation-*.json"))
    }
    found = {path: (int(match[1]), path.stat().st_mtime) for path, match in steps.items() if match}
    if found:
        return max(found, key=found.get)
    if not (folder / "results.json").exists():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        if inside and not (folder / "config.json").exists():
            raise InputError(f"{folder}: no run, but a folder of runs: {', '.join(inside)}. Name those to be shown.")
        raise InputError(
            f"{folder}: holds neither evaluation-STEP.json nor results.json, so there are no scores to show; make them by"
            f" `python -m jaxseg.evaluate --workdir={folder}`."
        )
    return folder / "results.json"


def check_result(result: dict, file: Path) -> None:
    """That what the page needs is there and fits. Raises InputError."""
    again = "make it again by `python -m jaxseg.evaluate`, or move it away."
    try:
        scores, name = result["peers"][result["reported_peer"]], result["data"]["name"]
        rows, classes = scores["confusion"], list(scores["iou"])
        _ = result["step"] + 0, scores["mean_iou"], scores["pixel_accuracy"]
        _ = result["data"]["fingerprint"], result["data"]["train"] + 0, result["data"]["val"] + 0
        listed, scored = result.get("images", []), scores.get("images", [])
        _ = [(image["number"], image["id"], image["number"] + 0) for image in listed]
        _ = [(image["mean_iou"], image["iou"].values()) for image in scored]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not the scores of a run ({type(error).__name__}: {error}); {again}") from error
    if name not in LABELS:
        raise InputError(f"{file}: data set {name!r} is not known here; known are {', '.join(LABELS)}.")
    if classes != list(LABELS[name].names):
        raise InputError(f"{file}: its classes ({', '.join(classes[:3])}, …) are not those of {name}; {again}")
    if [len(row) for row in rows] != [len(classes)] * len(classes):
        raise InputError(f"{file}: the confusion matrix is not {len(classes)} × {len(classes)}; {again}")
    if len(listed) != len(scored):
        raise InputError(f"{file}: {len(listed)} images, but scores of {len(scored)}; {again}")


def read_lines(path: Path) -> list[dict]:
    """A log's lines, [] where there is none; an end that a kill cut short is left out. Raises InputError."""
    lines = []
    text = path.read_text(errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            content = json.loads(line)
            _ = content["step"] + 0, content.keys()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number}: not a line of a run's log ({line[:60]!r}); put the file back as it was, or move it"
                " away."
            ) from error
        lines.append(content)
    return lines


def series(lines: list[dict], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have a number there."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def settings(run: Run) -> dict[str, str]:
    """Every setting of a run, as `config.field` -> value."""
    config = ConfigDict(run.result.get("config", {}))
    return {f"config.{path}": str(get_field(config, path)) for path in all_fields(config)}
