"""The pictures of a page: which images are shown, read, with a map of what is wrong, ready to stand in the page.

In: `Run`s with the folders that `python -m jaxseg.evaluate` wrote beside their scores. Out: `Gallery`: examples with
pictures as data URIs. The same files give the same bytes. Imports no JAX.
"""

import base64
import dataclasses
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.errors import InputError
from jaxseg.labels import VOID, Labels
from jaxseg.reporting.html.runs import Run

RIGHT, WRONG, HATCH, HATCH_GAP = 0, 1, 2, 3  # of an error map; the last two are void
# Red as of the page's other marks; right pixels let the page's grey picture shine through.
ERROR_COLORS = np.array([(0, 0, 0), (220, 38, 38), (120, 120, 120), (190, 190, 190)], np.uint8)
HATCH_PX = 8  # period of the hatching


@dataclasses.dataclass(frozen=True)
class Picture:
    """A data URI and the size in pixels."""

    uri: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Example:
    """One image. predictions, errors, scores: one per run; scores as in the run's JSON. used: class numbers that occur."""

    number: int
    id: str
    image: Picture
    truth: Picture
    predictions: list[Picture]
    errors: list[Picture]
    scores: list[dict]
    used: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """examples: by the first run's mean IoU, worst first. total: images that all runs have. unpaired: that only some
    have. without: scored by all runs, but not kept as pictures."""

    examples: list[Example]
    total: int
    unpaired: int
    without: int


def load_gallery(runs: list[Run], *, most: int) -> Gallery:
    """At most `most` examples. Raises InputError naming a picture that is missing or does not fit."""
    sets = [run.images for run in runs]
    common = [key for key in sets[0] if all(key in images for images in sets)]
    unpaired = len(set().union(*sets)) - len(common)
    kept = [key for key in common if all(path_of(run, key[0], "image").exists() for run in runs)]
    ordered = sorted(kept, key=lambda key: (worst_first(sets[0][key]["mean_iou"]), key))
    shown = [load_example(runs, *ordered[place]) for place in chosen(len(ordered), most)]
    return Gallery(shown, total=len(common), unpaired=unpaired, without=len(common) - len(kept))


def worst_first(iou: float | None) -> tuple[bool, float]:
    """To sort by; an image without a score comes last."""
    return iou is None, iou or 0.0


def chosen(count: int, most: int) -> list[int]:
    """Places of `most` of `count` sorted examples: the first half of them the worst, the others evenly spread over the
    rest, the best included."""
    if count <= most:
        return list(range(count))
    worst = math.ceil(most / 2)
    rest = most - worst
    return [*range(worst), *(worst + ((i + 1) * (count - worst)) // rest - 1 for i in range(rest))]


def path_of(run: Run, number: int, what: str) -> Path:
    return run.gallery / f"{number:04d}_{what}.{'jpg' if what == 'image' else 'png'}"


def load_example(runs: list[Run], number: int, id: str) -> Example:
    """Image and truth of the first run, predictions and errors of every run. Raises InputError."""
    images = [read_picture(path_of(run, number, "image")) for run in runs]
    truths = [
        read_map(path_of(run, number, "truth"), run.labels, picture) for run, picture in zip(runs, images, strict=True)
    ]
    maps = [
        read_map(path_of(run, number, run.peer), run.labels, picture) for run, picture in zip(runs, images, strict=True)
    ]
    errors = [error_picture(error_map(truth, prediction)) for truth, prediction in zip(truths, maps, strict=True)]
    used = frozenset(np.unique(np.concatenate([part.ravel() for part in truths + maps])).tolist())
    return Example(
        number,
        id,
        images[0],
        map_picture(truths[0], runs[0].labels),
        [map_picture(prediction, run.labels) for run, prediction in zip(runs, maps, strict=True)],
        errors,
        [run.images[number, id] for run in runs],
        used,
    )


def error_map(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """uint8 [h, w] of RIGHT and WRONG, and where truth is void diagonal lines of HATCH in HATCH_GAP."""
    rows, columns = np.indices(truth.shape)
    hatch = np.where((rows + columns) % HATCH_PX < HATCH_PX // 4, HATCH, HATCH_GAP)
    return np.where(truth == VOID, hatch, np.where(truth == prediction, RIGHT, WRONG)).astype(np.uint8)


def read_picture(path: Path) -> Picture:
    """A JPEG as it is. Raises InputError where it cannot be decoded."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            image.load()
            width, height = image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise damaged(path, error) from error
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(content).decode()}", width, height)


def read_map(path: Path, labels: Labels, image: Picture) -> np.ndarray:
    """uint8 [h, w] of class numbers and VOID, of the image's size. Raises InputError."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            mode, label = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise damaged(path, error) from error
    if mode not in ("P", "L") or label.shape != (image.height, image.width):
        raise damaged(path, f"mode {mode}, {label.shape[1]} × {label.shape[0]} pixels; expected class numbers"
                            f" (P or L), {image.width} × {image.height} as the image")  # fmt: skip
    if unknown := sorted(set(np.unique(label).tolist()) - {*range(labels.num_classes), VOID}):
        raise damaged(path, f"class number {unknown[0]}; expected 0 to {labels.num_classes - 1}, or {VOID} for void")
    return label


def damaged(path: Path, why) -> InputError:
    return InputError(f"{path}: cannot be shown ({why}); make it again by `python -m jaxseg.evaluate`.")


def map_picture(label: np.ndarray, labels: Labels) -> Picture:
    """The map in the classes' colors; void is transparent, so that the page's hatching shows."""
    used, index = np.unique(label, return_inverse=True)
    clear = used.tolist().index(VOID) if VOID in used else None
    return palette_png(index.reshape(label.shape).astype(np.uint8), labels.palette[used], clear=clear)


def error_picture(errors: np.ndarray) -> Picture:
    return palette_png(errors, ERROR_COLORS, clear=RIGHT)


def palette_png(index: np.ndarray, colors: np.ndarray, *, clear: int | None) -> Picture:
    """index: uint8 [h, w] into `colors`, RGB [n, 3]; the color number `clear` is transparent."""
    image, stream = Image.fromarray(index), io.BytesIO()
    image.putpalette(colors.tobytes())
    image.save(stream, "PNG", optimize=True, **({} if clear is None else {"transparency": clear}))
    height, width = index.shape
    return Picture(f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}", width, height)
