"""classes.toml: the classes of a folder of one's own, read, checked, or proposed from its masks.

In: the file, or what masks hold. Out: `Labels`, or the text of a proposal. A mistake is an `InputError` with file and
field.
"""

import collections
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxseg.errors import InputError
from jaxseg.labels import MAX_CLASSES, OWN, VOID, Label, Labels, color_id, id_color, voc_color

MAX_ID = 65_535  # of a 16-bit mask
MAX_VALUES = 256  # in all masks together; more are not classes, but noise of a lossy format or a soft mask

HEAD = """# The classes of this folder, in the order of the numbers that a network gives them: 0, 1, 2, …
# Give them their names. Classes with void = true are neither learned nor scored.
# After a change the next start prepares the data again.
masks = "{masks}"  # what a pixel of a mask holds: "ids" (values or palette indices) or "colors"
"""


Byte = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[list[Byte], Field(min_length=3, max_length=3)]
EXACT = ConfigDict(extra="forbid", strict=True)


class ClassRow(BaseModel):
    """One [[classes]] of the file."""

    model_config = EXACT

    name: str = Field(min_length=1, max_length=100)
    ids: list[Annotated[int, Field(ge=0, le=MAX_ID)]] = []
    colors: list[Color] = []
    display_color: Color | None = None
    void: bool = False


class ClassesFile(BaseModel):
    """The file."""

    model_config = EXACT

    masks: Literal["ids", "colors"]
    classes: list[ClassRow]
    name: str = ""


def read_classes(path: Path) -> Labels:
    """The table of a classes.toml.

    Args:
      path: the file.

    Returns:
      Its classes; train ids are given in the order of the file.

    Raises:
      InputError: naming file and field.
    """
    try:
        content = ClassesFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not a TOML file ({error}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
        raise InputError(f"{path}: {field}: {first['msg']}; it is {first['input']!r:.60}.") from error
    return labels_of_file(content, path)


def labels_of_file(content: ClassesFile, path: Path) -> Labels:
    """Its rows, checked. Raises InputError."""
    rows = []
    number = 0
    for place, row in enumerate(content.classes):
        where = f"{path}: classes[{place}] ({row.name})"
        given, other = (row.ids, row.colors) if content.masks == "ids" else (row.colors, row.ids)
        if not given:
            raise InputError(
                f"{where}: {content.masks} is missing; with masks = {content.masks!r} every class has them."
            )
        if other and content.masks == "ids":
            raise InputError(f"{where}: colors with masks = 'ids'; the color of figures is display_color.")
        if other:
            raise InputError(f"{where}: ids with masks = 'colors'; drop them.")
        train_id = VOID if row.void else number
        number += not row.void
        raw_ids = row.ids if content.masks == "ids" else [int(color_id(np.array(color))) for color in row.colors]
        shown = row.display_color or (row.colors[0] if row.colors else (0, 0, 0) if row.void else voc_color(train_id))
        rows += [Label(row.name, raw_id, train_id, (shown[0], shown[1], shown[2])) for raw_id in raw_ids]
    labels = Labels(tuple(rows), content.name or path.absolute().parent.name, content.masks)
    check_rows(labels, number, path)
    return labels


def check_rows(labels: Labels, num_classes: int, path: Path) -> None:
    """Refuses what would mix up classes. Raises InputError."""
    if not 2 <= num_classes <= MAX_CLASSES:
        raise InputError(f"{path}: {num_classes} classes that are not void; expected 2 to {MAX_CLASSES}.")
    for what, counted in (
        (labels.masks.removesuffix("s"), collections.Counter(row.raw_id for row in labels.rows)),
        ("name", collections.Counter(row.name for row in labels.classes)),
        ("display_color", collections.Counter(row.color for row in labels.classes)),
    ):
        value, times = counted.most_common(1)[0]
        if times > 1:
            field = labels.masks.removesuffix("s")
            names = [row.name for row in labels.rows if value in (row.name, row.raw_id, row.color)]
            shown = labels.raw_text(value) if what == field else value
            raise InputError(
                f"{path}: {what} {shown} stands {times} times ({', '.join(names[:4])}); each may stand once."
            )


def two_valued(values: Iterable[int]) -> bool:
    """Whether ids are those of masks that say yes or no: 0 and one other.

    >>> two_valued([0, 255]), two_valued([0, 1, 255])
    (True, False)
    """
    values = set(values)
    return len(values) == 2 and 0 in values


def binary_labels(values: Iterable[int], *, display_name: str = OWN) -> Labels:
    """Background and foreground of masks that hold 0 and one other value."""
    other = max(values)
    rows = (Label("background", 0, 0, (0, 0, 0)), Label("foreground", other, 1, voc_color(1)))
    return Labels(rows, display_name)


def proposed_labels(values: Iterable[int], *, masks: str, colors: dict[int, tuple[int, int, int]]) -> Labels:
    """A first table for masks that hold `values`, to be given names by a person.

    Args:
      values: ids, or `color_id`s.
      masks: "ids" or "colors".
      colors: id -> color in the masks' palette, where they have one.

    Returns:
      A class for every value; 255 beside more than one other id is void, as most data sets have it.
    """
    values = sorted(values)
    if masks == "ids" and two_valued(values):
        return binary_labels(values)
    void = VOID if masks == "ids" and len(values) > 2 else None
    rows = []
    number = 0
    for value in values:
        is_void = value == void
        color = id_color(value) if masks == "colors" else (0, 0, 0) if is_void else colors.get(value, voc_color(number))
        name = "void" if is_void else f"class_{f'{value:06x}' if masks == 'colors' else value}"
        rows.append(Label(name, value, VOID if is_void else number, color))
        number += not is_void
    return Labels(tuple(rows), OWN, masks)


def classes_toml(labels: Labels, *, shares: dict[int, float]) -> str:
    """The text of a classes.toml.

    Args:
      labels: the table.
      shares: raw id -> share of all pixels, written beside each class.

    Returns:
      TOML that `read_classes` reads as the same table.
    """
    parts = [HEAD.format(masks=labels.masks)]
    for row in labels.rows:
        key, value = ("ids", str(row.raw_id)) if labels.masks == "ids" else ("colors", str(list(id_color(row.raw_id))))
        lines = [
            "[[classes]]",
            f'name = "{row.name}"',
            f"{key} = [{value}]  # {100 * shares.get(row.raw_id, 0):.3f} % of all pixels",
        ]
        lines += [f"display_color = {list(row.color)}"] if labels.masks == "ids" else []
        lines += ["void = true"] if row.train_id == VOID else []
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
