"""Small raw data sets in the layouts of their owners, of random pixels."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.labels import LABELS


def pair(name: str, seed: int, hw=(40, 48)) -> tuple[Image.Image, Image.Image]:
    """A random image and a mask of random blocks of the data set's ids."""
    rng = np.random.default_rng(seed)
    ids = np.array([row.raw_id for row in LABELS[name].rows])
    blocks = ids[rng.integers(len(ids), size=(-(-hw[0] // 8), -(-hw[1] // 8)))].astype(np.uint8)
    mask = np.kron(blocks, np.ones((8, 8), np.uint8))[: hw[0], : hw[1]]
    return Image.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)), Image.fromarray(mask)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_camvid(root: Path, *, train=3, val=2) -> Path:
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            image, mask = pair("camvid", 100 * (split == "val") + i)
            save(image, root / split / f"{split}_{i}.png")
            save(mask, root / f"{split}annot" / f"{split}_{i}.png")
    return root


def write_cityscapes(root: Path, *, train=3, val=2, suffix="png") -> Path:
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            image, mask = pair("cityscapes", 100 * (split == "val") + i)
            stem = f"{split}/town/town_{i:06d}_000019"
            save(image, root / f"leftImg8bit/{stem}_leftImg8bit.{suffix}")
            save(mask, root / f"gtFine/{stem}_gtFine_labelIds.png")
            save(mask, root / f"gtFine/{stem}_gtFine_instanceIds.png")  # lies there too, and is not read
    return root


def write_voc(root: Path, *, train=3, val=2) -> Path:
    """VOCdevkit below root, masks as palette PNGs."""
    voc = root / "VOCdevkit" / "VOC2012"
    for split, count in (("train", train), ("val", val)):
        names = [f"2007_{split}{i}" for i in range(count)]
        (voc / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            image, mask = pair("voc2012", 100 * (split == "val") + i, hw=(40 + 4 * i, 48))
            mask.putpalette(LABELS["voc2012"].palette.tobytes())
            save(image, voc / f"JPEGImages/{name}.jpg")
            save(mask, voc / f"SegmentationClass/{name}.png")
    return root


def zip_cityscapes(folder: Path, target: Path) -> Path:
    """The two official archives of an extracted Cityscapes."""
    target.mkdir(parents=True, exist_ok=True)
    for part in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(target / f"{part}_trainvaltest.zip", "w") as archive:
            archive.writestr("README", "as in the official archives")
            for path in sorted((folder / part).rglob("*.*")):
                archive.write(path, path.relative_to(folder))
    return target


def tar_voc(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target / "VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(folder / "VOCdevkit", "VOCdevkit")
    return target
