"""Looks at a raw data set before it is trained on: counts, sizes, label ids, and every file that is wrong.

    python -m jaxseg.data.check --dataset=camvid --source_dir=FOLDER

Prints a table of label ids per split (pixels, share, images), ids that the table does not know, classes that never
occur, image sizes, and one line per bad file. Exit status 1 if anything is wrong, 2 if the data set is not there.
"""

import collections
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from jaxseg import cli
from jaxseg.console import progress_bar
from jaxseg.data.sources import SPLITS, WANTED, Sample, Source, find_source, read_image, read_mask
from jaxseg.errors import InputError
from jaxseg.files import parallel_map
from jaxseg.labels import VOID

EXIT_PROBLEMS = 1
# As the owners count them; a smaller or larger set is said, not refused.
OFFICIAL_IMAGES = {"cityscapes": (2975, 500), "voc2012": (1464, 1449), "camvid": (367, 101)}


@dataclasses.dataclass
class Findings:
    """What was seen in one split. pixels, images: per raw id [256]; sizes: (width, height) -> images."""

    pixels: np.ndarray
    images: np.ndarray
    sizes: collections.Counter
    problems: list[str]


def look(source: Source, sample: Sample) -> tuple[tuple[int, int] | None, np.ndarray, list[str]]:
    """Size (width, height), pixels per raw id [256], and problems of one sample."""
    tree = source.tree
    problems = []
    image = None
    mask = None
    try:
        image = read_image(tree.read(sample.image), tree.where(sample.image))
    except InputError as error:
        problems.append(str(error))
    try:
        mask = read_mask(tree.read(sample.mask), tree.where(sample.mask))
    except InputError as error:
        problems.append(str(error))
    if image is not None and mask is not None and image.shape[:2] != mask.shape:
        problems.append(
            f"{tree.where(sample.mask)}: the mask is {mask.shape[1]}×{mask.shape[0]}, its image {image.shape[1]}×{image.shape[0]}"
        )
    pixels = np.bincount(mask.ravel(), minlength=256) if mask is not None else np.zeros(256, np.int64)
    unknown = [i for i in np.flatnonzero(pixels) if i not in source.labels.raw_names]
    if unknown:
        problems.append(f"{tree.where(sample.mask)}: unknown label id {', '.join(map(str, unknown))}")
    return (image.shape[1], image.shape[0]) if image is not None else None, pixels, problems


def check(source: Source) -> dict[str, Findings]:
    """Findings per split; reads every file."""
    found = {}
    total = sum(map(len, source.samples.values()))
    with progress_bar(f"checking {source.name}", total) as advance:
        for split in SPLITS:
            f = found[split] = Findings(np.zeros(256, np.int64), np.zeros(256, np.int64), collections.Counter(), [])
            for size, pixels, problems in parallel_map(lambda sample: look(source, sample), source.samples[split]):
                f.pixels += pixels
                f.images += pixels > 0
                f.sizes.update([size] if size else [])
                f.problems += problems
                advance(1)
    return found


def show(source: Source, found: dict[str, Findings], console: Console) -> None:
    """Prints the findings."""
    table = Table(title=f"{source.name}: label ids", title_justify="left")
    table.add_column("id", justify="right")
    table.add_column("name")
    table.add_column("train id", justify="right")
    for split in SPLITS:
        table.add_column(f"{split} %", justify="right")
        table.add_column("images", justify="right")
    names = source.labels.raw_names
    train_ids = source.labels.train_id_of_raw
    seen = sum(f.pixels for f in found.values()) > 0
    for raw_id in sorted(set(names) | set(np.flatnonzero(seen).tolist())):
        train_id = int(train_ids[raw_id])
        row = [str(raw_id), names.get(raw_id, "UNKNOWN"), {-1: "-", VOID: "void"}.get(train_id, str(train_id))]
        for split in SPLITS:
            share = found[split].pixels[raw_id] / max(found[split].pixels.sum(), 1)
            row += [f"{100 * share:.3f}" if share else "", str(found[split].images[raw_id]) if share else ""]
        table.add_row(*row, style=None if raw_id in names else "bold red")
    console.print(table)
    for position, split in enumerate(SPLITS):
        f = found[split]
        official = OFFICIAL_IMAGES[source.name][position]
        count = len(source.samples[split])
        sizes = ", ".join(f"{w}×{h} ({n})" for (w, h), n in f.sizes.most_common(3))
        more = f" and {len(f.sizes) - 3} more" if len(f.sizes) > 3 else ""
        note = "" if count == official else f" (the official split has {official})"
        console.print(f"{split}: {count} images{note}; width × height: {sizes}{more}", soft_wrap=True)
        absent = [row.name for row in source.labels.classes if not f.pixels[row.raw_id]]
        if absent:
            console.print(f"{split}: classes that never occur: {', '.join(absent)}", soft_wrap=True)
        for problem in f.problems:
            console.print(f"{split}: {problem}", style="red", soft_wrap=True)


def define_flags() -> None:
    flags.DEFINE_enum("dataset", None, sorted(WANTED), "Which data set.")
    flags.DEFINE_string("source_dir", None, "The raw data: a folder, or the official archives in it.")
    flags.DEFINE_bool("trainaug", False, "voc2012: the trainaug list as training split.")


def execute() -> int:
    for name in ("dataset", "source_dir"):
        if flags.FLAGS[name].value is None:
            raise InputError(f"--{name} is needed.\n{__doc__}")
    source = find_source(flags.FLAGS.dataset, flags.FLAGS.source_dir, trainaug=flags.FLAGS.trainaug)
    found = check(source)
    console = Console(markup=False, highlight=False)
    show(source, found, console)
    problems = sum(len(f.problems) for f in found.values())
    console.print(
        f"{problems} problem{'s' * (problems != 1)} found." if problems else "No problem found.", highlight=False
    )
    return EXIT_PROBLEMS if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv`, by default those of this process; returns the exit status."""
    return cli.run(execute, argv, usage=__doc__, define=define_flags)


if __name__ == "__main__":
    sys.exit(main())
