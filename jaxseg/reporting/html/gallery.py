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
# Red as of the page's other marks; right pixels let the page's gray picture shine through.
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
    """One image. predictions, errors, scores: one per run; scores as in the run's JSON. used: train ids that occur."""

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

    @property
    def used(self) -> set[int]:
        """Train ids that occur in any example."""
        return set().union(*(example.used for example in self.examples))

    @property
    def scored_classes(self) -> set[str]:
        """Names of the classes that any example has an IoU of."""
        ious = [scores["iou"] for example in self.examples for scores in example.scores]
        return {name for iou in ious for name, value in iou.items() if value is not None}


def load_gallery(runs: list[Run], *, max_examples: int) -> Gallery:
    """At most `max_examples`. Raises InputError naming a picture that is missing or does not fit."""
    images = [run.images for run in runs]
    common = [key for key in images[0] if all(key in of_run for of_run in images)]
    unpaired = len(set().union(*images)) - len(common)
    kept = [key for key in common if all(picture_path(run, key[0], "image").exists() for run in runs)]
    kept.sort(key=lambda key: (worst_first(images[0][key]["mean_iou"]), key))
    shown = [load_example(runs, *kept[place]) for place in choose_examples(len(kept), max_examples)]
    return Gallery(shown, total=len(common), unpaired=unpaired, without=len(common) - len(kept))


def worst_first(iou: float | None) -> tuple[bool, float]:
    """To sort by; an image without a score comes last."""
    return iou is None, iou or 0.0


def choose_examples(count: int, max_examples: int) -> list[int]:
    """Places among `count` sorted examples: half of those that are chosen are the worst, the others are evenly spread over
    the rest, the best included.

    >>> choose_examples(10, 4)
    [0, 1, 5, 9]
    """
    if count <= max_examples:
        return list(range(count))
    worst = math.ceil(max_examples / 2)
    spread = max_examples - worst
    return [*range(worst), *(worst + (i + 1) * (count - worst) // spread - 1 for i in range(spread))]


def picture_path(run: Run, number: int, what: str) -> Path:
    return run.gallery_folder / f"{number:04d}_{what}.{'jpg' if what == 'image' else 'png'}"


def load_example(runs: list[Run], number: int, image_id: str) -> Example:
    """Image and truth of the first run, predictions and errors of every run. Raises InputError."""
    images, truths, predictions = [], [], []
    for run in runs:
        images.append(read_photo(picture_path(run, number, "image")))
        truths.append(read_label(picture_path(run, number, "truth"), run.labels, images[-1]))
        predictions.append(read_label(picture_path(run, number, run.peer), run.labels, images[-1]))
    return Example(
        number,
        image_id,
        images[0],
        label_picture(truths[0], runs[0].labels),
        [label_picture(prediction, runs[0].labels) for prediction in predictions],
        [error_picture(error_map(*pair)) for pair in zip(truths, predictions, strict=True)],
        [run.images[number, image_id] for run in runs],
        frozenset(np.unique(np.concatenate([label.ravel() for label in truths + predictions])).tolist()),
    )


def error_map(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """uint8 [h, w] of RIGHT and WRONG, and where truth is void diagonal lines of HATCH in HATCH_GAP."""
    rows, columns = np.indices(truth.shape)
    hatch = np.where((rows + columns) % HATCH_PX < HATCH_PX // 4, HATCH, HATCH_GAP)
    return np.where(truth == VOID, hatch, np.where(truth == prediction, RIGHT, WRONG)).astype(np.uint8)


def read_photo(path: Path) -> Picture:
    """A JPEG as it is. Raises InputError where it cannot be decoded."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            image.load()
            return Picture(data_uri("jpeg", content), *image.size)
    except (OSError, SyntaxError, ValueError) as error:
        raise damaged(path, error) from error


def read_label(path: Path, labels: Labels, image: Picture) -> np.ndarray:
    """uint8 [h, w] of train ids and VOID, of the image's size. Raises InputError."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            mode = picture.mode
            label = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise damaged(path, error) from error
    if mode not in ("P", "L") or label.shape != (image.height, image.width):
        got = f"mode {mode}, {label.shape[1]} × {label.shape[0]} pixels"
        expected = f"class numbers (P or L), {image.width} × {image.height} as the image"
        raise damaged(path, f"{got}; expected {expected}")
    if unknown := sorted(set(np.unique(label).tolist()) - {*range(labels.num_classes), VOID}):
        raise damaged(path, f"class number {unknown[0]}; expected 0 to {labels.num_classes - 1}, or {VOID} for void")
    return label


def damaged(path: Path, why: Exception | str) -> InputError:
    return InputError(f"{path}: cannot be shown ({why}); make it again by `python -m jaxseg.evaluate`.")


def label_picture(label: np.ndarray, labels: Labels) -> Picture:
    """The label in the classes' colors; void is transparent, so that the page's hatching shows."""
    used, index = np.unique(label, return_inverse=True)
    transparent = used.tolist().index(VOID) if VOID in used else None
    return palette_png(index.reshape(label.shape).astype(np.uint8), labels.palette[used], transparent=transparent)


def error_picture(errors: np.ndarray) -> Picture:
    return palette_png(errors, ERROR_COLORS, transparent=RIGHT)


def palette_png(index: np.ndarray, colors: np.ndarray, *, transparent: int | None) -> Picture:
    """index: uint8 [h, w] into `colors`, RGB [n, 3]; transparent: the color number that is."""
    image = Image.fromarray(index)
    image.putpalette(colors.tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, **({} if transparent is None else {"transparency": transparent}))
    return Picture(data_uri("png", stream.getvalue()), *image.size)


def data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
