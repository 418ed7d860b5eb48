"""A first classes.toml for a folder of one's own, from what its masks hold, and a picture of some pairs to look at.

In: a folder. Out: FOLDER/classes.toml and FOLDER/classes.png, each written only where none is; a person gives the classes
their names and sees whether images and masks fit.
"""

import collections
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jaxseg.console import progress_bar
from jaxseg.data.classes import MAX_VALUES, classes_toml, proposed_labels, read_classes
from jaxseg.data.own_folder import CLASSES_FILE, PREVIEW_FILE, OwnFolder, find_own_folder
from jaxseg.data.pairs import Sample
from jaxseg.data.sources import Source, mask_colors, mask_ids, open_mask, palette_colors, read_sample
from jaxseg.errors import InputError
from jaxseg.files import atomic_write, parallel_map
from jaxseg.labels import MAX_CLASSES, OWN, VOID, Labels

PAIRS = 4  # rows of the picture
ROW_PX = 240  # height of a row
OVERLAY = 0.5  # of the color of the class, over the image


@dataclasses.dataclass
class MaskValues:
    """What masks hold: pixels of every id or color, and, of ids, the colors that their palettes give them."""

    masks: str
    pixels: collections.Counter
    colors: dict[int, tuple[int, int, int]]


def write_proposal(root: Path, *, val_fraction: float) -> tuple[Path, Path, Labels]:
    """Looks at all masks and writes the two files.

    Args:
      root: the folder.
      val_fraction: as in `config.data`.

    Returns:
      The paths of classes.toml and of the picture, and the classes.

    Raises:
      InputError: where there is a classes.toml, or the masks cannot be of classes.
    """
    target = root / CLASSES_FILE
    preview = root / PREVIEW_FILE
    for path in (target, preview):
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} is there; move it away to have a new one proposed.")
    found = find_own_folder(root, val_fraction=val_fraction)
    samples = [sample for split in found.samples.values() for sample in split]
    if not samples:
        raise InputError(f"{root}: no images with masks were found.")
    values = look_at_masks(found, samples)
    labels = proposed_labels(values.pixels, masks=values.masks, colors=values.colors)
    if labels.num_classes > MAX_CLASSES:
        raise InputError(
            f"{root}: the masks hold {labels.num_classes} values; at most {MAX_CLASSES} classes can be told apart."
        )
    total = sum(values.pixels.values())
    text = classes_toml(labels, shares={value: count / total for value, count in values.pixels.items()})
    try:
        with atomic_write(target) as part:
            part.write_text(text, encoding="utf-8")
        with atomic_write(preview) as part:
            shown = samples[:: max(len(samples) // PAIRS, 1)][:PAIRS]
            pairs_picture(Source(OWN, found.tree, found.samples, read_classes(target)), shown).save(part, "PNG")
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be written ({error.strerror}).") from error
    return target, preview, labels


def look_at_masks(found: OwnFolder, samples: list[Sample]) -> MaskValues:
    """Counts what all masks hold. Raises InputError where ids and colors are mixed, or are too many for classes."""

    def open_one(sample: Sample) -> Image.Image:
        return open_mask(found.tree, sample.mask)

    seen = {
        "ids": MaskValues("ids", collections.Counter(), {}),
        "colors": MaskValues("colors", collections.Counter(), {}),
    }
    files = {}
    palettes_differ = False
    with progress_bar("looking at masks", len(samples)) as advance:
        for sample, image in zip(samples, parallel_map(open_one, samples), strict=True):
            where = found.tree.where(sample.mask)
            kind = "colors" if image.mode in ("RGB", "RGBA") else "ids"
            files.setdefault(kind, where)
            count_values(
                seen[kind].pixels, mask_colors(image, where) if kind == "colors" else mask_ids(image, where), where
            )
            if image.mode == "P":
                count_values(seen["colors"].pixels, mask_colors(image, where), where)
                colors = palette_colors(image)
                used = {index: colors[index] for index in np.unique(np.array(image)).tolist() if index in colors}
                palettes_differ |= any(seen["ids"].colors.get(index, color) != color for index, color in used.items())
                seen["ids"].colors |= used
            advance(1)
    if len(files) > 1:
        raise InputError(
            f"masks in colors ({files['colors']}) and masks of ids ({files['ids']}): save all of them in one way."
        )
    return seen["colors" if "colors" in files or palettes_differ else "ids"]


def count_values(pixels: collections.Counter, raw: np.ndarray, where: str) -> None:
    """Adds a mask's values. Raises InputError where there are more than classes can be."""
    values, counts = np.unique(raw, return_counts=True)
    pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    if len(pixels) > MAX_VALUES:
        raise InputError(
            f"{where}: with this mask there are {len(pixels)} values, more than {MAX_VALUES}. Masks hold one value per class;"
            " many more are left by JPEG, by smooth resizing, or are instances."
        )


def pairs_picture(source: Source, samples: list[Sample]) -> Image.Image:
    """Rows of image, mask over the image, and mask; below them the colors of the classes."""
    rows = []
    for sample in samples:
        image, label = read_sample(source, sample)
        color = source.labels.palette[label]
        over = np.where((label == VOID)[..., None], image, (1 - OVERLAY) * image + OVERLAY * color).astype(np.uint8)
        parts = [Image.fromarray(part) for part in (image, over, color)]
        rows.append([part.resize((max(1, round(ROW_PX * part.width / part.height)), ROW_PX)) for part in parts])
    width = max(sum(part.width for part in row) for row in rows)
    key = classes_key(source.labels, width)
    picture = Image.new("RGB", (width, len(rows) * ROW_PX + key.height), "white")
    for number, row in enumerate(rows):
        left = 0
        for part in row:
            picture.paste(part, (left, number * ROW_PX))
            left += part.width
    picture.paste(key, (0, len(rows) * ROW_PX))
    return picture


def classes_key(labels: Labels, width: int) -> Image.Image:
    """Color and name of every class, in columns."""
    column_px, line_px, swatch_px = 160, 18, 12
    columns = max(width // column_px, 1)
    key = Image.new("RGB", (width, line_px * -(-labels.num_classes // columns)), "white")
    draw = ImageDraw.Draw(key)
    for number, entry in enumerate(labels.classes):
        left = 4 + number % columns * column_px
        top = number // columns * line_px + 3
        draw.rectangle((left, top, left + swatch_px, top + swatch_px), fill=entry.color, outline="black")
        draw.text((left + swatch_px + 6, top - 1), entry.name[:22], fill="black")
    return key
