"""What the files hold that jaxseg writes and reads back, as types, and the one check of it, by pydantic.

In: what was read of a JSON file, and its `Schema`. Out: nothing, or an `InputError` that names file, field, what was got
and what was expected. Keys that no type names may be there: files of other versions have them.
"""

import dataclasses
import functools
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from jaxseg.errors import InputError

EXPECTED = {
    "int_type": "an integer",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "an object",
    "bool_type": "true or false",
    "float_type": "a number",
}
SHOWN = 60  # characters of what was got


def _score(value: Any, check) -> float | None:
    try:
        return check(value)
    except ValidationError as error:
        raise PydanticCustomError("score", "a number or null") from error


Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Positive = Annotated[int, Field(ge=1, le=2**63 - 1)]
Score = Annotated[FiniteFloat | None, WrapValidator(_score)]
Scores = dict[str, Score]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PeerConfig(TypedDict, total=False):
    model: dict[str, Any]
    loss: dict[str, Any]
    optim: dict[str, Any]


class Config(PeerConfig, total=False):
    data: dict[str, Any]
    peers: dict[str, PeerConfig]
    mutual: dict[str, Any]
    train: dict[str, Any]
    eval: dict[str, Any]
    checkpoint: dict[str, Any]


class LabelRow(TypedDict):
    name: str
    id: Count
    train_id: Byte
    color: Annotated[list[Byte], Field(min_length=3, max_length=3)]


class LabelsTable(TypedDict):
    """The classes of a folder of one's own, as `jaxseg.labels.Labels.as_dict` writes them."""

    display_name: str
    masks: Literal["ids", "colors"]
    rows: Annotated[list[LabelRow], Field(min_length=2)]


class ConfigFile(TypedDict):
    """config.json of a run; `jaxseg.config.load_config` checks the values by its table."""

    config: Config
    data: NotRequired[str]
    labels: NotRequired[LabelsTable]


class Split(TypedDict):
    """Of prepared.json: images, least and largest side, pixels of every label."""

    images: Positive
    height_px: Range
    width_px: Range
    pixels_of_label: dict[Annotated[str, Field(pattern="^[0-9]{1,3}$")], Count]
    sha256: Digest


class Splits(TypedDict):
    train: Split
    val: Split


class PreparedFile(TypedDict):
    """prepared.json beside records. bytes: of every file beside it."""

    name: str
    labels: NotRequired[LabelsTable]
    bytes: dict[Annotated[str, Field(pattern="^[^/]+$")], Count]
    splits: Splits


class Data(TypedDict):
    name: str
    labels: NotRequired[LabelsTable]
    fingerprint: str
    train: Count
    val: Count


class ListedImage(TypedDict):
    number: Count
    id: str


class ImageScores(TypedDict):
    mean_iou: Score
    iou: Scores


class Information(TypedDict):
    """Of the truth, in bits: in all, what predictions tell of it, what is left; by class likewise."""

    unit: Literal["bits"]
    truth: Score
    mutual: Score
    left: Score
    by_class: dict[str, Scores]


class PeerScores(ImageScores):
    pixel_accuracy: Score
    mean_accuracy: NotRequired[Score]
    frequency_weighted_iou: NotRequired[Score]
    micro_iou: NotRequired[Score]
    one_vs_rest_accuracy: NotRequired[Score]
    boundary_iou: NotRequired[Score]
    information: NotRequired[Information]
    classes_present: NotRequired[Count]
    confusion: list[list[Count]]
    images: NotRequired[list[ImageScores]]


class Result(TypedDict):
    """results.json and evaluation-STEP.json of a run."""

    reported_peer: str
    step: Count
    data: Data
    peers: dict[str, PeerScores]
    images: NotRequired[list[ListedImage]]
    config: NotRequired[dict[str, Any]]
    device: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, Any]]
    command: NotRequired[str]
    commit: NotRequired[str | None]
    protocol: NotRequired[str]


class LogStep(TypedDict):
    step: Count
    skipped: NotRequired[Annotated[float, Field(ge=0, le=1)]]


class Cell(TypedDict):
    """Which run of a study one is."""

    arm: str
    dataset: str
    protocol: str
    seed: Count


class StudyCell(Cell):
    plan: str


class FailedRun(TypedDict):
    study: StudyCell
    failed: str


class Versions(TypedDict):
    python: str
    jax: str
    flax: str


class Device(TypedDict):
    count: Count
    kind: str


class TrainCurves(TypedDict):
    step: list[Count]
    pixel: list[Score]


class ValCurves(TypedDict):
    step: list[Count]
    mean_iou: list[Score]


class Curves(TypedDict):
    train: TrainCurves
    val: ValCurves


class FinishedRun(TypedDict):
    """PLAN/RUN.json of a study."""

    study: StudyCell
    resumed: bool
    curves: Curves
    reported_peer: str
    peers: dict[str, PeerScores]
    command: str
    commit: str | None
    versions: Versions
    device: Device
    data: Data
    wall_time_s: FiniteFloat


class Asked(TypedDict):
    ask: str
    of: str
    against: str


class PlannedRun(Cell):
    name: str


class PlanFile(TypedDict):
    """plan.json of a study."""

    plan: str
    title: str
    note: str
    base: str | None
    questions: list[Asked]
    runs: list[PlannedRun]


class SingleRun(TypedDict):
    """results.json of a run of no study, as the report lists it."""

    reported_peer: str
    peers: dict[str, PeerScores]
    data: Data


@dataclasses.dataclass(frozen=True)
class Schema:
    """kinds: types that the content must be of. fault: what a file is said to be that does not fit. advice: what to do."""

    kinds: tuple[Any, ...]
    fault: str
    advice: str

    @functools.cached_property
    def adapters(self) -> list[TypeAdapter]:
        return [TypeAdapter(kind) for kind in self.kinds]

    def problem(self, content: Any) -> str | None:
        """The first field that does not fit, or None."""
        for adapter in self.adapters:
            try:
                adapter.validate_python(content, strict=True)
            except ValidationError as error:
                return _told(error)
        return None

    def check(self, content: Any, path: Path) -> None:
        """Raises InputError naming the first field that does not fit."""
        if (problem := self.problem(content)) is not None:
            raise InputError(f"{path}: {self.fault} ({problem}); {self.advice}")


def _told(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    branch = re.compile(r"(function-wrap|dict)\[.*\]")  # of a union: no part of the file
    field = ".".join(str(part) for part in first["loc"] if not branch.fullmatch(str(part)))
    if first["type"] == "missing":
        return f"{field} is missing"
    expected = EXPECTED.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    return f"{field} is {shown(first['input'])}; expected {expected}".lstrip()


def shown(value: Any) -> str:
    """`value` as Python writes it, cut short."""
    try:
        return repr(value)[:SHOWN]
    except (
        ValueError,
        RecursionError,
    ):  # of more than `sys.get_int_max_str_digits`, or of more levels than calls may have
        return (
            f"{'a number of more than' if isinstance(value, int) else 'more levels than'} {sys.getrecursionlimit():,}"
        )


AGAIN = "make it again by `python -m jaxseg.evaluate`, or move it away."
CONFIG_FILE = Schema(
    (ConfigFile,), "does not fit this version of jaxseg", "put it back as it was, or start another run."
)
PREPARED_FILE = Schema((PreparedFile,), "not what was prepared", "prepare the data again.")
RESULT = Schema((Result,), "not the scores of a run", AGAIN)
LOG_LINE = Schema((LogStep, dict[str, Score | Scores]), "not a line of a run's log", "move it away.")
PLAN_FILE = Schema((PlanFile,), "not the plan of a study", "move it away.")
FINISHED_RUN = Schema((FinishedRun,), "not a run of a study", "move it away.")
FAILED_RUN = Schema((FailedRun,), "not a run of a study", "move it away.")
SINGLE_RUN = Schema((SingleRun,), "not the scores of a run", AGAIN)
CHECKSUMS = Schema((dict[str, Digest],), "not the sums of a checkpoint's files", "take another checkpoint.")
