"""A folder of one's own: which of its files are images, which are masks, and of which split.

In: a folder in one of the layouts that people have (`WANTED`). Out: the tree, its `Sample`s per split, and a sentence for
everything in it that is not used. The splits are those of folders or lists; where there is none, a share of the images
is held back by a hash of their names, the same on every machine.
"""

import dataclasses
import hashlib
import re
from pathlib import Path, PurePosixPath

from jaxseg.data.archives import FileTree, folder_tree
from jaxseg.data.pairs import ALL_SPLITS, IMAGE_SUFFIXES, MASK_SUFFIXES, SPLITS, Sample, listed_pairs, pair
from jaxseg.errors import InputError

CLASSES_FILE = "classes.toml"
PREVIEW_FILE = "classes.png"

WANTED = """A folder of your own, in one of these forms (masks are PNG, BMP or TIFF):
  FOLDER/images/NAME.jpg, FOLDER/masks/NAME.png
  FOLDER/images/{train,val,test}/NAME.jpg, FOLDER/masks/{train,val,test}/NAME.png
  FOLDER/{train,val,test}/images/NAME.jpg, FOLDER/{train,val,test}/masks/NAME.png
  FOLDER/{train,val,test}/NAME.jpg, FOLDER/{trainannot,valannot,testannot}/NAME.png
  FOLDER/NAME.jpg, FOLDER/NAME_mask.png
  FOLDER/{train,val,test}.txt, of lines "path/of/image.jpg path/of/mask.png"
Also annotations/ or labels/ for masks/, training/ and validation/, and masks called NAME_mask, NAME_labelIds and the
like. Without val a share of config.data.val_fraction is held back. FOLDER/classes.toml names the classes:
  python -m jaxseg.data.check --source_dir=FOLDER --write_classes
proposes it. Pass --config.data.source_dir=FOLDER."""

SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
IMAGE_FOLDERS = (
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "rgb"),
    *("jpegimages", "leftimg8bit", "701_stillsraw_full"),  # of VOC, Cityscapes and CamVid
)
MASK_FOLDERS = (
    *("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt", "groundtruth"),
    *("ground_truth", "segmentation", "segmentations", "segmentationclass", "gtfine", "labeledapproved_full"),
)
# What names have beside the part that an image and its mask share: "a_mask", "mask_a"; CamVid's "_L" is upper case.
MASK_WORDS = r"(gtFine_labelIds|labelIds|labels?|masks?|gt|seg|segmentation|annotation|annot|(?-i:L))"
IMAGE_WORDS = r"(leftImg8bit|images?|img|photo|rgb|sat)"
AFFIX = {role: rf"(?i)^{words}[_-]|[_-]{words}$" for role, words in (("mask", MASK_WORDS), ("image", IMAGE_WORDS))}
LISTS = ("", "ImageSets/Segmentation/", "splits/", "lists/")  # where train.txt may be


@dataclasses.dataclass(frozen=True)
class Place:
    """What a path tells: is it an image or a mask, of which split ("": it does not say), and what its own name is."""

    name: str
    role: str  # "image" or "mask"
    split: str
    stem: str  # with the folders that tell nothing in front

    @property
    def key(self) -> str:
        """The part of `stem` that an image and its mask share."""
        folder, slash, stem = self.stem.rpartition("/")
        return folder + slash + re.sub(AFFIX[self.role], "", stem)


@dataclasses.dataclass(frozen=True)
class OwnFolder:
    """Its files, its samples per split, and what a person should be told of them."""

    tree: FileTree
    samples: dict[str, list[Sample]]
    notes: tuple[str, ...]


def find_own_folder(root: Path, *, val_fraction: float) -> OwnFolder:
    """The pairs of a folder of one's own.

    Args:
      root: the folder.
      val_fraction: of the training images, held back for validation where the folder has no such split.

    Returns:
      What was found.

    Raises:
      InputError: where images or masks are missing, listing them, or the layout is none of `WANTED`.
    """
    tree = folder_tree(root, [""])
    lists = [f"{folder}{split}.txt" for folder in LISTS for split in ALL_SPLITS]
    if any(name in tree.stamps for name in lists):
        samples, notes = listed_samples(tree, lists)
    else:
        samples, notes = placed_samples(tree)
    if not samples.get("val") and samples.get("train"):
        samples["train"], samples["val"] = split_by_hash(samples["train"], val_fraction=val_fraction)
        held = f"{len(samples['val'])} of {len(samples['train']) + len(samples['val'])}"
        notes.append(f"no split for validation: {held} images are held back, by a hash of their names.")
    return OwnFolder(used_files(tree, samples), {split: samples[split] for split in samples}, tuple(notes))


def listed_samples(tree: FileTree, lists: list[str]) -> tuple[dict[str, list[Sample]], list[str]]:
    """The samples that {train,val,test}.txt name, as pairs of paths or as ids."""
    by_key: dict[str, dict[str, str]] = {"image": {}, "mask": {}}
    for place in filter(None, map(place_of, tree.stamps)):
        by_key[place.role].setdefault(PurePosixPath(place.stem).name, place.name)
        by_key[place.role].setdefault(PurePosixPath(place.key).name, place.name)
    samples: dict[str, list[Sample]] = {}
    for name in lists:
        if name in tree.stamps:
            samples[PurePosixPath(name).stem] = listed_pairs(
                tree,
                name,
                image_of=lambda key: by_key["image"].get(key, f"an image {key}"),
                mask_of=lambda key: by_key["mask"].get(key, f"a mask {key}"),
            )
    return samples, []


def placed_samples(tree: FileTree) -> tuple[dict[str, list[Sample]], list[str]]:
    """The samples by what their paths tell."""
    places = [place for place in map(place_of, sorted(tree.stamps)) if place]
    lossy = [p.name for p in places if p.role == "mask" and not p.name.lower().endswith(MASK_SUFFIXES)]
    if lossy:
        raise InputError(
            f"{tree.where(lossy[0])}: a mask in a format that changes values{f' ({len(lossy)} such files)' * (len(lossy) > 1)};"
            f" save masks as PNG, BMP or TIFF."
        )
    by_split: dict[str, dict[str, list[Place]]] = {}
    for place in places:
        by_split.setdefault(place.split, {}).setdefault(place.role, []).append(place)
    if len(by_split) > 1 and "" in by_split:
        outside = by_split.pop("")
        names = [place.name for role in outside.values() for place in role]
        raise InputError(
            f"{tree.where(names[0])} is in no split, but other files are ({', '.join(sorted(by_split))}): {len(names)} such"
            " files. Put all into splits, or none."
        )
    samples, notes = {}, []
    for split, roles in by_split.items():
        if split == "test" and not roles.get("mask"):
            notes.append(f"test: {len(roles['image'])} images without masks are not used.")
            continue
        samples[split or "train"] = paired(tree, roles.get("image", []), roles.get("mask", []))
    return samples, notes


def paired(tree: FileTree, images: list[Place], masks: list[Place]) -> list[Sample]:
    """Images and masks of one name, or else of one name but for words such as "_mask"."""
    same = {place.stem for place in images} & {place.stem for place in masks}
    keys = {place.name: place.stem if place.stem in same else place.key for place in (*images, *masks)}
    return pair(tree, images=[p.name for p in images], masks=[p.name for p in masks], key=keys.__getitem__)


def place_of(name: str) -> Place | None:
    """What the path of an image or mask tells; None of other files.

    >>> place_of("val/labels/a_mask.png")
    Place(name='val/labels/a_mask.png', role='mask', split='val', stem='a_mask')
    >>> place_of("trainannot/b.png")
    Place(name='trainannot/b.png', role='mask', split='train', stem='b')
    """
    path = PurePosixPath(name)
    if path.suffix.lower() not in IMAGE_SUFFIXES or name == PREVIEW_FILE:
        return None
    role = split = ""
    inner = []
    for folder in path.parts[:-1]:
        word = folder.lower()
        if match := re.fullmatch(rf"({'|'.join(SPLIT_OF)})[_-]?({'|'.join(IMAGE_FOLDERS + MASK_FOLDERS)})", word):
            split = SPLIT_OF[match[1]]
            word = match[2]
        if word in SPLIT_OF:
            split = SPLIT_OF[word]
        elif word in IMAGE_FOLDERS:
            role = "image"
        elif word in MASK_FOLDERS:
            role = "mask"
        else:
            inner.append(folder)
    role = role or ("mask" if re.search(AFFIX["mask"], path.stem) else "image")
    return Place(name, role, split, "/".join([*inner, path.stem]))


def split_by_hash(samples: list[Sample], *, val_fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Training and validation samples, in order of their ids: of the SHA-256 of every id the lowest are for validation.

    At least two of each, where there are four.

    >>> samples = [Sample(name, "", "") for name in "abcdefghij"]
    >>> train, val = split_by_hash(samples, val_fraction=0.2)
    >>> "".join(sample.id for sample in val)
    'dj'
    """
    order = sorted(samples, key=lambda sample: hashlib.sha256(sample.id.encode()).hexdigest())
    count = min(max(round(val_fraction * len(order)), 2), max(len(order) - 2, 0))
    held = {sample.id for sample in order[:count]}
    return [s for s in samples if s.id not in held], [s for s in samples if s.id in held]


def used_files(tree: FileTree, samples: dict[str, list[Sample]]) -> FileTree:
    """The tree of the samples' files alone, so that others beside them may come and go."""
    used = {name for split in samples.values() for sample in split for name in (sample.image, sample.mask)}
    return dataclasses.replace(tree, stamps={name: tree.stamps[name] for name in tree.stamps if name in used})


def check_own_splits(found: OwnFolder, where: str) -> None:
    """Refuses a split of fewer than two images. Raises InputError."""
    for split in SPLITS:
        count = len(found.samples.get(split, ()))
        if count < 2:
            raise InputError(
                f"{where}: {count} {split} images with masks were found; expected at least 2.\nWhat is wanted:\n{WANTED}"
            )
