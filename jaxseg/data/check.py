"""Looks at a raw data set before it is trained on: counts, sizes, label ids, and every file that is wrong.

    python -m jaxseg.data.check --dataset=camvid --source_dir=FOLDER
    python -m jaxseg.data.check --source_dir=MY_DATA --write_classes

Prints a table of label ids per split (pixels, share, images), ids that the table does not know, classes that never
occur, image sizes, and one line per bad file. Exit status 1 if anything is wrong, 2 if the data set is not there.

Of a folder of your own, --write_classes looks at the masks first and proposes MY_DATA/classes.toml, for you to give the
classes their names, with a picture of some pairs in MY_DATA/classes.png: do images and masks fit?
"""

import collections
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from jaxseg import cli
from jaxseg.console import progress_bar
from jaxseg.data.pairs import Sample
from jaxseg.data.proposal import write_proposal
from jaxseg.data.sources import READ_PX, VAL_FRACTION, WANTED, Source, find_source, picture_px, read_image, read_mask
from jaxseg.errors import InputError
from jaxseg.files import parallel_map
from jaxseg.labels import OWN, VOID

EXIT_PROBLEMS = 1
# As the owners count them; a smaller or larger set is said, not refused.
OFFICIAL_IMAGES = {
    "cityscapes": {"train": 2975, "val": 500},
    "voc2012": {"train": 1464, "val": 1449},
    "camvid": {"train": 367, "val": 101, "test": 233},
    "ade20k": {"train": 20_210, "val": 2_000},
}


@dataclasses.dataclass
class Findings:
    """What was seen in one split. pixels, images: of every raw id; sizes: (width, height) -> images."""

    pixels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    images: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    problems: list[str] = dataclasses.field(default_factory=list)


def look(source: Source, sample: Sample) -> tuple[tuple[int, int] | None, dict[int, int], list[str]]:
    """Size (width, height), pixels of every raw id, and problems of one sample."""
    tree = source.tree
    problems = []
    image = None
    mask = None
    try:
        image = read_image(tree.read(sample.image), tree.where(sample.image))
    except InputError as error:
        problems.append(str(error))
    try:
        mask = read_mask(tree.read(sample.mask), tree.where(sample.mask), source.labels)
    except InputError as error:
        problems.append(str(error))
    if image is not None and mask is not None and image.shape[:2] != mask.shape:
        problems.append(
            f"{tree.where(sample.mask)}: the mask is {mask.shape[1]}×{mask.shape[0]}, its image {image.shape[1]}×{image.shape[0]}"
        )
    values, counts = np.unique([] if mask is None else mask, return_counts=True)
    pixels = dict(zip(map(int, values), map(int, counts), strict=True))
    if unknown := [i for i in pixels if i not in source.labels.raw_names]:
        what = "label id" if source.labels.masks == "ids" else "color"
        shown = ", ".join(map(source.labels.raw_text, unknown[:20])) + ", …" * (len(unknown) > 20)
        problems.append(f"{tree.where(sample.mask)}: unknown {what} {shown}")
    return (image.shape[1], image.shape[0]) if image is not None else None, pixels, problems


def check(source: Source) -> dict[str, Findings]:
    """Findings per split; reads every file."""
    found = {}
    total = sum(map(len, source.samples.values()))
    with progress_bar(f"checking {source.name}", total) as advance:
        for split, samples in source.samples.items():
            f = found[split] = Findings()
            for size, pixels, problems in parallel_map(
                lambda sample: look(source, sample),
                samples,
                cost=lambda sample: picture_px(source, sample),
                budget=READ_PX,
            ):
                f.pixels.update(pixels)
                f.images.update(pixels.keys())
                f.sizes.update([size] if size else [])
                f.problems += problems
                advance(1)
    return found


def show(source: Source, found: dict[str, Findings], console: Console) -> None:
    """Prints the findings."""
    console.print(table_of_ids(source, found))
    for note in source.notes:
        console.print(note, soft_wrap=True)
    for split, f in found.items():
        count = len(source.samples[split])
        official = OFFICIAL_IMAGES.get(source.name, {}).get(split, count)
        sizes = ", ".join(f"{w}×{h} ({n})" for (w, h), n in f.sizes.most_common(3))
        more = f" and {len(f.sizes) - 3} more" if len(f.sizes) > 3 else ""
        note = "" if count == official else f" (the official split has {official})"
        console.print(f"{split}: {count} images{note}; width × height: {sizes}{more}", soft_wrap=True)
        seen = {row.train_id for row in source.labels.rows if f.pixels[row.raw_id]}
        absent = [row.name for row in source.labels.classes if row.train_id not in seen]
        if absent:
            console.print(f"{split}: classes that never occur: {', '.join(absent)}", soft_wrap=True)
        for problem in f.problems:
            console.print(f"{split}: {problem}", style="red", soft_wrap=True)


def table_of_ids(source: Source, found: dict[str, Findings]) -> Table:
    """Every id or color of the table or of a mask: its class, and how often it is seen."""
    what = "label ids" if source.labels.masks == "ids" else "colors"
    table = Table(title=f"{source.name}: {what}", title_justify="left")
    table.add_column(what.removeprefix("label ").removesuffix("s"), justify="right", no_wrap=True)
    table.add_column("name")
    table.add_column("train id", justify="right")
    for split in found:
        table.add_column(f"{split} %", justify="right")
        table.add_column("images", justify="right")
    names = source.labels.raw_names
    train_ids = {row.raw_id: row.train_id for row in source.labels.rows}
    for raw_id in sorted(set(names).union(*(f.pixels for f in found.values()))):
        train_id = train_ids.get(raw_id, -1)
        number = {-1: "-", VOID: "void"}.get(train_id, str(train_id))
        row = [source.labels.raw_text(raw_id), names.get(raw_id, "UNKNOWN"), number]
        for f in found.values():
            share = f.pixels[raw_id] / max(f.pixels.total(), 1)
            row += [f"{100 * share:.3f}" if share else "", str(f.images[raw_id]) if share else ""]
        table.add_row(*row, style=None if raw_id in names else "bold red")
    return table


def propose_classes(console: Console) -> None:
    """Writes classes.toml and its picture, and says so. Raises InputError."""
    given = flags.FLAGS
    if given.dataset != OWN:
        raise InputError(f"--write_classes is for a folder of your own; the classes of {given.dataset} are known.")
    root = Path(given.source_dir).expanduser()
    if not root.is_dir():
        raise InputError(f"--source_dir={given.source_dir}: there is no such folder.\nWhat is wanted:\n{WANTED[OWN]}")
    target, preview, labels = write_proposal(root, val_fraction=given.val_fraction)
    console.print(f"written: {target}, with {labels.num_classes} classes; give them their names there", soft_wrap=True)
    console.print(f"written: {preview}; see whether images and masks fit", soft_wrap=True)


def define_flags() -> None:
    flags.DEFINE_enum("dataset", OWN, sorted(WANTED), "Which data set; folder: one of your own.")
    flags.DEFINE_string("source_dir", None, "The raw data: a folder, or the official archives in it.")
    flags.DEFINE_bool("trainaug", False, "voc2012: the trainaug list as training split.")
    flags.DEFINE_float("val_fraction", VAL_FRACTION, "folder: held back where there is no validation split.", 0, 0.9)
    flags.DEFINE_bool("write_classes", False, "folder: propose classes.toml and a picture of some pairs.")


def execute() -> int:
    given = flags.FLAGS
    if given.source_dir is None:
        raise InputError(f"--source_dir is needed.\n{__doc__}")
    console = Console(markup=False, highlight=False)
    if given.write_classes:
        propose_classes(console)
    source = find_source(given.dataset, given.source_dir, trainaug=given.trainaug, val_fraction=given.val_fraction)
    found = check(source)
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
