"""Predicts pictures of any size: a mask of class numbers and an overlay for each.

    python -m jaxseg.predict --workdir=RUN IMAGE|FOLDER|GLOB … --output=DIR [--checkpoint=last|best|STEP] [--peer=NAME]
        [--resize=run|none] [--window_px=224 [--overlap=0.5]] [--scales=0.75,1,1.25] [--flip] [--probabilities]
    python -m jaxseg.predict --config=configs/unet_voc.py --config.model.init_from=FILE.pth IMAGE … --output=DIR

Out, each under the picture's own name: masks/ (PNG of class numbers with the data set's colors), overlays/ (JPEG), for
Cityscapes label_ids/ (PNG of raw ids, as its evaluation server takes them), with --probabilities probabilities/ (.npy,
float16 [h, w, c]), and predictions.json. A file that is no image is told and the rest go on; the exit status is then 2.
"""

import functools
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from jaxseg import cli
from jaxseg.cli import EXIT_INPUT
from jaxseg.console import progress_bar
from jaxseg.errors import InputError
from jaxseg.files import parallel_map, write_json
from jaxseg.inference.predictor import (
    Network,
    View,
    check_window,
    define_view,
    given_view,
    label_map,
    restored,
    scored,
    seen_hw,
    to_pixels,
)
from jaxseg.labels import LABELS, Labels
from jaxseg.provenance import origin
from jaxseg.training.failures import failures_as_errors

# Of pictures in a folder; other files are taken where they are named.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
INDEX = "predictions.json"
OVERLAY = 0.5  # share of the class color


def find_pictures(arguments: Iterable[str], *, output: Path) -> list[Path]:
    """The files that images, folders (with all below them) and patterns name, each once; nothing below `output` or another
    folder that this command wrote.

    Raises InputError for one that names nothing.
    """
    found = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            results = [index.parent for index in path.rglob(INDEX)]  # of earlier predictions: no pictures to predict
            below = [p for p in below if not any(folder in p.parents for folder in results)]
        elif path.exists():
            below = [path]
        else:
            below = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        below = [p for p in below if output.resolve() not in p.resolve().parents]
        if not below:
            what = f"holds no picture ({', '.join(SUFFIXES)})" if path.is_dir() else "there is no such file"
            raise InputError(f"{argument}: {what}; expected images, folders of them, or a pattern in quotes.")
        found += below
    if not found:
        raise InputError("no picture was named; --help tells how.")
    return list({path.resolve(): path for path in found}.values())


def names_of(paths: list[Path]) -> list[Path]:
    """Where each picture's results go: its path below what all have in common, without suffix unless two differ in it only."""
    paths = [Path(os.path.abspath(path)) for path in paths]  # no ".." is left that could lead out of the output
    common = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(common) for path in paths]
    count = Counter(name.with_suffix("") for name in names)
    short = [name if count[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]
    return short if len(set(short)) == len(short) else names


def by_shape(paths: list[Path], network: Network, view: View) -> list[int]:
    """Their numbers, those that the network sees at one size together, so that batches are full."""

    def key(number: int) -> tuple[int, int]:
        try:
            with Image.open(paths[number]) as image:
                return seen_hw(network, image.size[::-1], view.resize)
        except Exception:  # told when it is read
            return (0, 0)

    return sorted(range(len(paths)), key=key)


def read(path: Path) -> np.ndarray | InputError:
    try:
        return to_pixels(path)
    except InputError as error:
        return error


def predict_all(
    network: Network, paths: list[Path], output: Path, about: dict, *, view: View, probabilities: bool
) -> tuple[dict[str, dict], dict[str, str]]:
    """Writes the results of all pictures, and INDEX, which holds `about` too; also of what an interruption left.

    Returns what was written of each by its path, and, of those that cannot be read, why.
    """
    done, failed = {}, {}
    try:
        with progress_bar(f"predicting {len(paths)} picture{'s' * (len(paths) != 1)}", len(paths)) as advance:
            predict_each(network, paths, output, done, failed, advance, view=view, probabilities=probabilities)
    finally:
        write_json(output / INDEX, about | {"pictures": done, "failed": failed})
    return done, failed


def predict_each(
    network: Network,
    paths: list[Path],
    output: Path,
    done: dict,
    failed: dict,
    advance: Callable[[int], None],
    *,
    view: View,
    probabilities: bool,
) -> None:
    """One picture after the other, into `done` or `failed`."""
    names, order, waiting = names_of(paths), by_shape(paths, network, view), []

    def readable() -> Iterator[np.ndarray]:
        for number, image in zip(order, parallel_map(read, [paths[n] for n in order]), strict=True):
            if isinstance(image, InputError):
                failed[str(paths[number])] = str(image)
                print(f"error: {image}", file=sys.stderr)
                advance(1)
            else:
                waiting.append((number, image))
                yield image

    for scores in scored(network, readable(), view=view, probabilities=probabilities):
        number, image = waiting.pop(0)
        done[str(paths[number])] = write_prediction(
            output, names[number], image, scores, network.labels, probabilities=probabilities
        )
        advance(1)


def write_prediction(
    output: Path, name: Path, image: np.ndarray, scores: np.ndarray, labels: Labels, *, probabilities: bool
) -> dict:
    """Writes the files of one picture; returns its size, their paths below `output`, and the classes' shares."""
    label = label_map(scores)
    share = np.bincount(label.ravel(), minlength=labels.num_classes) / label.size
    shares = {name: float(s) for name, s in zip(labels.names, share, strict=True) if s}
    mask = Image.fromarray(label)
    mask.putpalette(labels.palette.tobytes())
    overlay = (1 - OVERLAY) * image + OVERLAY * labels.palette[label]
    writers = {
        f"masks/{name}.png": mask.save,
        f"overlays/{name}.jpg": functools.partial(Image.fromarray(np.round(overlay).astype(np.uint8)).save, quality=90),
    }
    if labels == LABELS["cityscapes"]:
        raw_id = np.array([row.raw_id for row in labels.classes], np.uint8)
        writers[f"label_ids/{name}.png"] = Image.fromarray(raw_id[label]).save
    if probabilities:
        writers[f"probabilities/{name}.npy"] = lambda file, format: np.save(file, scores.astype(np.float16))
    for place, save in writers.items():
        write(output / place, save)
    return {"size_px": list(image.shape[1::-1]), "files": list(writers), "share_of_pixels": shares}


def write(path: Path, save) -> None:
    """Beside, and renamed when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        save(file, format={".png": "PNG", ".jpg": "JPEG", ".npy": None}[path.suffix])
    part.rename(path)


def define_flags() -> None:
    cli.define_run()
    define_view()
    flags.DEFINE_string("peer", None, "Of a run with several networks; default: the reported one.")
    flags.DEFINE_string("output", None, "Folder for the results.")
    flags.DEFINE_bool("probabilities", False, "Also the probability of every class, float16.")


def main(arguments: list[str]) -> int:
    values, config = flags.FLAGS, flags.FLAGS.config
    if values.output is None:
        raise InputError("--output=DIR is needed: the folder for the results.")
    output, view = Path(values.output).expanduser(), given_view(config, resize="run")
    paths = find_pictures(arguments, output=output)
    make_folder(output)
    workdir = Path(values.workdir).expanduser() if values.workdir else None
    with failures_as_errors(config, output, predicting=True):
        (network,) = restored(config, workdir, values.checkpoint, names=[values.peer or config.peer])
        check_window(network, view)
        about = {"workdir": values.workdir, "step": network.step, "peer": network.name, "view": str(view)}
        about |= origin(config)
        done, failed = predict_all(network, paths, output, about, view=view, probabilities=values.probabilities)
    print(f"{len(done)} of {len(paths)} picture{'s' * (len(paths) != 1)} predicted ({view}); see {output}")
    if failed:
        print(f"error: {len(failed)} could not be used; predictions.json names them", file=sys.stderr)
    return EXIT_INPUT if failed else 0


def make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={output}: no folder that can be written ({error.strerror}).") from error


if __name__ == "__main__":
    cli.run(main, usage=__doc__, define=define_flags, words="IMAGE")
