"""Folders of one's own, made of the built-in data sets' made-up pairs (`tests.raw_data`)."""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.data.classes import classes_toml
from jaxseg.labels import CAMVID, Label, Labels, color_id
from tests import raw_data


def color_labels() -> Labels:
    """CamVid's classes, their masks in colors."""
    rows = tuple(Label(row.name, int(color_id(np.array(row.color))), row.train_id, row.color) for row in CAMVID.rows)
    return Labels(rows, "folder", "colors")


def write_classes(root: Path, labels: Labels) -> None:
    (root / "classes.toml").write_text(classes_toml(labels, shares={}), encoding="utf-8")


def write_as_colors(root: Path, **counts) -> Path:
    """CamVid as images/SPLIT and masks/SPLIT, masks in colors and called NAME_mask; with classes.toml."""
    raw_data.write_camvid(root / "camvid", **counts)
    color = np.zeros((12, 3), np.uint8)
    color[[row.raw_id for row in CAMVID.rows]] = [row.color for row in CAMVID.rows]
    for split in ("train", "val"):
        for path in sorted((root / "camvid" / split).iterdir()):
            raw_data.save(Image.open(path), root / "own" / "images" / split / path.name)
            mask = np.array(Image.open(root / "camvid" / f"{split}annot" / path.name))
            raw_data.save(Image.fromarray(color[mask]), root / "own" / "masks" / split / f"{path.stem}_mask.png")
    write_classes(root / "own", color_labels())
    return root / "own"


def write_binary(root: Path, *, count: int = 6, value: int = 255) -> Path:
    """images/ and masks/ of 0 and one other value, without a split and without classes.toml."""
    for number in range(count):
        image, mask = raw_data.pair("camvid", number)
        raw_data.save(image, root / "images" / f"{number}.jpg")
        raw_data.save(Image.fromarray(np.uint8(value) * (np.array(mask) < 6)), root / "masks" / f"{number}.png")
    return root
