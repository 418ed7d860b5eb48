"""Predictions of many pictures, as files: masks, overlays, probabilities and an index.

In: paths of images, folders and patterns. Out, each under the picture's own name: masks/ (PNG of class numbers with the
data set's colors), overlays/ (JPEG), for Cityscapes label_ids/ (PNG of raw ids, as its evaluation server takes them),
on request probabilities/ (.npy, float16 [h, w, c]), and predictions.json.
"""

import functools
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.console import progress_bar
from jaxseg.data.sources import FORMATS
from jaxseg.errors import InputError
from jaxseg.files import (
    atomic_write,
    check_folder_is_own,
    is_own_folder,
    make_own_folder,
    parallel_map,
    read_json,
    visible_files,
    write_json,
)
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.predictor import (
    Predictor,
    label_map,
    predict_scores,
    resized_input_hw,
    to_pixels,
)
from jaxseg.labels import Labels

# Of pictures in a folder; other files are taken where they are named.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
INDEX = "predictions.json"
OVERLAY = 0.5  # share of the class color
PILLOW_FORMATS = {".png": "PNG", ".jpg": "JPEG"}


def find_images(arguments: Iterable[str], *, output: Path) -> list[Path]:
    """The files that images, folders (with all below them) and patterns name, each once.

    Args:
      arguments: as typed.
      output: the folder that results go into; nothing below it, or below another folder that was predicted into, is an
        image to predict.

    Returns:
      The paths.

    Raises:
      InputError: for an argument that names nothing.
    """
    found = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            below = [p for p in visible_files(path) if p.suffix.lower() in PICTURE_SUFFIXES]
            results = [index.parent for index in path.rglob(INDEX) if is_index(index)]  # of earlier predictions
            below = [p for p in below if not any(folder in p.parents for folder in results)]
        elif path.exists():
            below = [path]
        else:
            below = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        below = [p for p in below if output.resolve() not in p.resolve().parents]
        if not below:
            what = f"holds no picture ({', '.join(PICTURE_SUFFIXES)})" if path.is_dir() else "there is no such file"
            raise InputError(f"{argument}: {what}; expected images, folders of them, or a pattern in quotes.")
        found += below
    if not found:
        raise InputError("no picture was named; --help tells how.")
    return list({path.resolve(): path for path in found}.values())


def output_names(paths: list[Path]) -> list[Path]:
    """Where each picture's results go: its path below what all have in common, without suffix unless two differ in it only."""
    paths = [Path(os.path.abspath(path)) for path in paths]  # no ".." is left that could lead out of the output
    common = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(common) for path in paths]
    count = Counter(name.with_suffix("") for name in names)
    short = [name if count[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]
    return short if len(set(short)) == len(short) else names


def predict_images(
    predictor: Predictor,
    paths: list[Path],
    output: Path,
    about: Mapping,
    *,
    options: InferenceOptions,
    probabilities: bool,
) -> tuple[dict[str, dict], dict[str, str]]:
    """Writes the results of all pictures, and the index; also of what an interruption left.

    Args:
      predictor: the network.
      paths: of the pictures.
      output: the folder for the results.
      about: what else the index says.
      options: how the network looks at a picture.
      probabilities: whether those are written, too.

    Returns:
      What was written of each by its path, and, of those that cannot be read, why.
    """
    claim_output(output, labels=predictor.labels, probabilities=probabilities)
    done, failed = {}, {}
    title = f"predicting {len(paths)} picture{'s' * (len(paths) != 1)}"
    try:
        with progress_bar(title, len(paths)) as advance:
            images = read_images(predictor, paths, options, failed, advance)
            for path, name, image, scores in scored_images(predictor, paths, images, options, probabilities):
                written = write_prediction(output, name, image, scores, predictor.labels, probabilities=probabilities)
                done[str(path)] = written
                advance(1)
    finally:
        write_json(output / INDEX, {**about, "pictures": done, "failed": failed})
    return done, failed


def read_images(
    predictor: Predictor, paths: list[Path], options: InferenceOptions, failed: dict, advance: Callable[[int], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, image) of what can be read, those of one size together; the others are told, and noted in `failed`."""
    order = by_input_size(predictor, paths, options)
    for number, image in zip(order, parallel_map(read, [paths[n] for n in order]), strict=True):
        if isinstance(image, InputError):
            failed[str(paths[number])] = str(image)
            print(f"error: {image}", file=sys.stderr)
            advance(1)
        else:
            yield number, image


def scored_images(
    predictor: Predictor,
    paths: list[Path],
    numbered: Iterable[tuple[int, np.ndarray]],
    options: InferenceOptions,
    probabilities: bool,
) -> Iterator[tuple[Path, Path, np.ndarray, np.ndarray]]:
    """(path, name of its results, image, scores) of every image that was read."""
    names = output_names(paths)
    waiting = []

    def images() -> Iterator[np.ndarray]:
        for number, image in numbered:
            waiting.append((number, image))
            yield image

    for scores in predict_scores(predictor, images(), options=options, probabilities=probabilities):
        number, image = waiting.pop(0)
        yield paths[number], names[number], image, scores


def by_input_size(predictor: Predictor, paths: list[Path], options: InferenceOptions) -> list[int]:
    """Their numbers, those that the network sees at one size together, so that batches are full."""

    def input_hw(number: int) -> tuple[int, int]:
        try:
            with Image.open(paths[number], formats=FORMATS) as image:
                return resized_input_hw(predictor, image.size[::-1], options.resize)
        except Exception:  # told when it is read
            return (0, 0)

    return sorted(range(len(paths)), key=input_hw)


def read(path: Path) -> np.ndarray | InputError:
    try:
        return to_pixels(path)
    except InputError as error:
        return error


def write_prediction(
    output: Path, name: Path, image: np.ndarray, scores: np.ndarray, labels: Labels, *, probabilities: bool
) -> dict:
    """Writes the files of one picture; returns its size, their paths below `output`, and the classes' shares."""
    label = label_map(scores)
    overlay = np.round((1 - OVERLAY) * image + OVERLAY * labels.palette[label]).astype(np.uint8)
    mask = Image.fromarray(label)
    mask.putpalette(labels.palette.tobytes())
    writers = {
        f"masks/{name}.png": mask.save,
        f"overlays/{name}.jpg": functools.partial(Image.fromarray(overlay).save, quality=90),
    }
    if has_other_ids(labels):
        ids = [row.raw_id for row in labels.classes]
        raw_id = np.array(ids, np.uint8 if max(ids) < 256 else np.uint16)
        writers[f"label_ids/{name}.png"] = Image.fromarray(raw_id[label]).save
    for place, save in writers.items():
        with open_output(output, place) as part:
            save(part, format=PILLOW_FORMATS[Path(place).suffix])
    files = list(writers)
    if probabilities:
        files.append(f"probabilities/{name}.npy")
        with open_output(output, files[-1]) as part, part.open("wb") as file:
            np.save(file, scores.astype(np.float16))
    share = np.bincount(label.ravel(), minlength=labels.num_classes) / label.size
    shares = {name: float(s) for name, s in zip(labels.names, share, strict=True) if s}
    return {"size_px": list(image.shape[1::-1]), "files": files, "share_of_pixels": shares}


def has_other_ids(labels: Labels) -> bool:
    """Whether the data set's own masks hold other ids than 0, 1, 2, …, the numbers in masks/."""
    return labels.masks == "ids" and any(row.raw_id != row.train_id for row in labels.classes)


def open_output(output: Path, place: str):
    """`atomic_write` of a file below `output`, in a folder that is made where it is not there. Raises InputError."""
    path = output / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{path.parent}: a link leads out of --output; move it away, or name another.")
    return atomic_write(path)


def claim_output(output: Path, *, labels: Labels, probabilities: bool) -> None:
    """Makes the folders for results. Raises InputError where one is there that no prediction made."""
    names = ["masks", "overlays"]
    names += ["label_ids"] if has_other_ids(labels) else []
    names += ["probabilities"] if probabilities else []
    is_again = is_index(output / INDEX)  # earlier versions left no mark in the folders

    def is_own(folder: Path) -> bool:
        return is_own_folder(folder) or (is_again and not folder.is_symlink())

    if not is_again and ((output / INDEX).exists() or (output / INDEX).is_symlink()):
        raise InputError(f"{output / INDEX}: is of another program; move it away, or name another --output.")
    for name in names:
        check_folder_is_own(output / name, why="where results go (--output)", is_own=is_own)
    for name in names:
        make_own_folder(output / name)


def is_index(path: Path) -> bool:
    """Whether a prediction wrote it."""
    try:
        return not path.is_symlink() and {"pictures", "failed", "step"} <= read_json(path).keys()
    except InputError:
        return False
