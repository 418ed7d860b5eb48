"""Predictions of many pictures, as files: masks, overlays, probabilities and an index.

In: paths of images, folders and patterns. Out, each under the picture's own name: masks/ (PNG of class numbers with the
data set's colors), overlays/ (JPEG), for Cityscapes label_ids/ (PNG of raw ids, as its evaluation server takes them),
on request probabilities/ (.npy, float16 [h, w, c]), and predictions.json.
"""

import contextlib
import functools
import glob
import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.console import progress_bar
from jaxseg.data.sources import FORMATS, READ_PX
from jaxseg.errors import DISK_FULL, InputError, system_sentence
from jaxseg.files import (
    atomic_write,
    check_folder_is_own,
    is_other_kind,
    is_own_folder,
    make_own_folder,
    parallel_map,
    read_json,
    user_path,
    visible_files,
    write_json,
)
from jaxseg.inference.options import InferenceOptions
from jaxseg.inference.predictor import (
    Predictor,
    label_map,
    predict_stripes,
    resized_input_hw,
    to_pixels,
)
from jaxseg.labels import Labels

# Of pictures in a folder; other files are taken where they are named.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
INDEX = "predictions.json"
RESULT_FOLDERS = {"masks": ".png", "overlays": ".jpg", "label_ids": ".png", "probabilities": ".npy"}
OVERLAY = 0.5  # share of the class color
PILLOW_FORMATS = {".png": "PNG", ".jpg": "JPEG"}


def find_images(arguments: Iterable[str], *, say: Callable[[str], None] = print) -> list[Path]:
    """The files that images, folders (with all below them) and patterns name, each once.

    Args:
      arguments: as typed. What a prediction wrote is no image to predict.
      say: takes a sentence on what is left out.

    Returns:
      The paths.

    Raises:
      InputError: for an argument that names nothing, or results alone.
    """
    found = []
    is_result = functools.cache(is_result_folder)
    for argument in arguments:
        path = user_path(argument)
        named = named_files(path)
        results = {p: folder for p in named for folder in Path(os.path.abspath(p)).parents if is_result(folder)}
        if results:
            where = ", ".join(sorted({str(folder) for folder in results.values()}))
            say(
                f"left out of {argument}: {len(results)} file{'s' * (len(results) > 1)} that a prediction wrote ({where})"
            )
        if len(results) == len(named):
            raise InputError(f"{argument[:300]}: {nothing_there(path, named)}")
        found += [p for p in named if p not in results]
    if not found:
        raise InputError("no picture was named; --help tells how.")
    return list({path.resolve(): path for path in found}.values())


def named_files(path: Path) -> list[Path]:
    """What an argument names: a file, the pictures below a folder, or what fits a pattern."""
    if path.is_dir():
        return [p for p in visible_files(path) if p.suffix.lower() in PICTURE_SUFFIXES]
    if path.is_file():
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]


def nothing_there(path: Path, named: list[Path]) -> str:
    """Why nothing is left of an argument, and what was expected."""
    expected = "expected images, folders of them, or a pattern in quotes."
    if named:
        return f"nothing but results of a prediction; {expected}"
    if path.is_dir():
        return f"holds no picture ({', '.join(PICTURE_SUFFIXES)}); {expected}"
    if is_other_kind(path):
        return f"neither a file nor a folder, but a pipe or a device; {expected}"
    return f"there is no such file; {expected}"


def is_result_folder(folder: Path) -> bool:
    """Whether a prediction wrote what is in it: by its mark, or by the index beside it, as earlier versions left it."""
    return folder.name in RESULT_FOLDERS and (is_own_folder(folder) or is_index(folder.parent / INDEX))


def output_names(paths: list[Path]) -> list[Path]:
    """Where each picture's results go: its path below what all have in common, without suffix unless two differ in it only,
    or the results of one would have the name of a folder that another's need."""
    paths = [Path(os.path.abspath(path)) for path in paths]  # no ".." is left that could lead out of the output
    common = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(common) for path in paths]
    count = Counter(name.with_suffix("") for name in names)
    short = [name if count[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]
    chosen = short if len(set(short)) == len(short) else names
    folders = {folder for name in chosen for folder in name.parents}
    taken = set(chosen)
    for i, name in enumerate(chosen):
        while any(name.with_name(name.name + suffix) in folders for suffix in RESULT_FOLDERS.values()):
            name = next(free for n in itertools.count(1) if (free := name.with_name(f"{name.name}_{n}")) not in taken)
            taken.add(name)
        chosen[i] = name
    return chosen


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

    def tell(path: Path, why: str) -> None:
        failed[str(path)] = why
        print(f"error: {why}", file=sys.stderr)
        advance(1)

    title = f"predicting {len(paths)} picture{'s' * (len(paths) != 1)}"
    headers = list(parallel_map(read_header, paths))
    try:
        with progress_bar(title, len(paths)) as advance:
            images = read_images(predictor, paths, headers, options, tell)
            for number, name, image, stripes in scored_images(predictor, paths, images, options, probabilities):
                path, frames = paths[number], headers[number][1]
                try:
                    written = write_prediction(
                        output, name, image, stripes, predictor.labels, probabilities=probabilities
                    )
                except OSError as error:
                    if error.errno in DISK_FULL:
                        raise
                    tell(path, f"{path}: its results cannot be written; {system_sentence(error)}")
                    continue
                if frames > 1:
                    written["frames"] = frames
                    print(f"note: {path}: only the first of its {frames} frames is predicted", file=sys.stderr)
                done[str(path)] = written
                advance(1)
    finally:
        write_json(output / INDEX, {**about, "pictures": done, "failed": failed})
    return done, failed


def read_images(
    predictor: Predictor,
    paths: list[Path],
    headers: list[tuple[tuple[int, int], int]],
    options: InferenceOptions,
    tell: Callable[[Path, str], None],
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, image) of what can be read, those that the network sees at one size together, so that batches are full; the
    others are told. Decoded ahead are as many as have `READ_PX` pixels together, or one."""

    def input_hw(number: int) -> tuple[int, int]:
        hw = headers[number][0]
        return resized_input_hw(predictor, hw, options.resize) if all(hw) else hw

    order = sorted(range(len(paths)), key=input_hw)
    images = parallel_map(
        lambda number: read(paths[number]), order, cost=lambda number: math.prod(headers[number][0]), budget=READ_PX
    )
    for number, image in zip(order, images, strict=True):
        if isinstance(image, InputError):
            tell(paths[number], str(image))
        else:
            yield number, image


def scored_images(
    predictor: Predictor,
    paths: list[Path],
    numbered: Iterable[tuple[int, np.ndarray]],
    options: InferenceOptions,
    probabilities: bool,
) -> Iterator[tuple[int, Path, np.ndarray, Iterator[np.ndarray]]]:
    """(number, name of its results, image, stripes of scores) of every image that was read."""
    names = output_names(paths)
    waiting = []

    def images() -> Iterator[np.ndarray]:
        for number, image in numbered:
            waiting.append((number, image))
            yield image

    for stripes in predict_stripes(predictor, images(), options=options, probabilities=probabilities):
        number, image = waiting.pop(0)
        yield number, names[number], image, stripes


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width, (0, 0) where they cannot be read, which is told when the image is; and how many frames there are."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size[::-1], getattr(image, "n_frames", 1)
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error… by format
        return (0, 0), 1


def read(path: Path) -> np.ndarray | InputError:
    try:
        return to_pixels(path)
    except InputError as error:
        return error


def write_prediction(
    output: Path,
    name: Path,
    image: np.ndarray,
    stripes: Iterable[np.ndarray],
    labels: Labels,
    *,
    probabilities: bool,
) -> dict:
    """Writes the files of one picture, whose scores come some rows at a time; returns its size, their paths below `output`,
    and the classes' shares."""
    label = np.zeros(image.shape[:2], np.uint8)
    overlay = np.zeros_like(image)
    count = np.zeros(labels.num_classes, np.int64)
    with contextlib.ExitStack() as files:
        place = f"probabilities/{name}.npy"
        kept = (
            files.enter_context(open_array(output, place, (*label.shape, labels.num_classes)))
            if probabilities
            else None
        )
        end = 0
        for scores in stripes:
            rows = slice(end, end := end + len(scores))
            label[rows] = label_map(scores)
            overlay[rows] = np.round((1 - OVERLAY) * image[rows] + OVERLAY * labels.palette[label[rows]])
            count += np.bincount(label[rows].ravel(), minlength=labels.num_classes)
            if kept is not None:
                kept[rows] = scores
    written = write_pictures(output, name, label, overlay, labels) + [place] * probabilities
    shares = {name: float(n / label.size) for name, n in zip(labels.names, count, strict=True) if n}
    return {"size_px": list(image.shape[1::-1]), "files": written, "share_of_pixels": shares}


def write_pictures(output: Path, name: Path, label: np.ndarray, overlay: np.ndarray, labels: Labels) -> list[str]:
    """Mask, overlay, and for Cityscapes label ids; their paths below `output`."""
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
    return list(writers)


@contextlib.contextmanager
def open_array(output: Path, place: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A float16 .npy file below `output` that is filled in where it lies, not in memory."""
    with open_output(output, place) as part:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        yield array
        array.flush()


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
