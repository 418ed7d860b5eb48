"""Which image goes with which mask: pairs of names in a tree, checked to be complete.

In: names of images and of masks. Out: `Sample`s in order of their ids, or an `InputError` that lists whatever is left
over on either side.
"""

import dataclasses
from collections.abc import Callable

from jaxseg.data.archives import FileTree
from jaxseg.errors import InputError

SPLITS = ("train", "val")  # every data set has these
ALL_SPLITS = (*SPLITS, "test")  # and this one where its masks are there
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # that keep every value; JPEG and WebP need not


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image and its mask, as names in the tree."""

    id: str
    image: str
    mask: str


def pair(
    tree: FileTree,
    *,
    images: list[str],
    masks: list[str],
    key: Callable[[str], str],
    mask_name: Callable[[str], str] = lambda key: f"{key}.png",
) -> list[Sample]:
    """Joins images and masks by key; every image needs a mask and every mask an image.

    Args:
      tree: where they are.
      images: their names.
      masks: their names.
      key: what an image and its mask have in common.
      mask_name: what the mask of a key would be called, for the message.

    Returns:
      Samples, ordered by key.

    Raises:
      InputError: listing all that are alone, or naming two of one key.
    """
    image_of = name_by_key(tree, images, key, "images")
    mask_of = name_by_key(tree, masks, key, "masks")
    alone = [
        f"{tree.where(image_of[k])}: its mask {mask_name(k)} is missing; add the mask or remove the image."
        for k in sorted(image_of.keys() - mask_of.keys())
    ]
    alone += [
        f"{tree.where(mask_of[k])}: the image of this mask is missing; add the image or remove the mask."
        for k in sorted(mask_of.keys() - image_of.keys())
    ]
    if alone:
        raise InputError("\n".join(alone))
    return [Sample(k, image_of[k], mask_of[k]) for k in sorted(image_of)]


def name_by_key(tree: FileTree, names: list[str], key: Callable[[str], str], what: str) -> dict[str, str]:
    """Key -> name. Raises InputError for two of one key."""
    found: dict[str, str] = {}
    for name in names:
        if other := found.get(key(name)):
            raise InputError(f"{tree.where(other)} and {tree.where(name)} are {what} of one sample; keep one of them.")
        found[key(name)] = name
    return found


def listed_pairs(
    tree: FileTree, list_name: str, *, image_of: Callable[[str], str], mask_of: Callable[[str], str]
) -> list[Sample]:
    """The samples of a list: a line holds an id, or the paths of an image and its mask.

    A byte order mark, blank lines and a slash in front of a path are passed over; a line that stands twice counts once.

    Args:
      tree: where list and files are.
      list_name: the list.
      image_of: id -> name of the image.
      mask_of: id -> name of the mask.

    Returns:
      Samples, in the list's order.

    Raises:
      InputError: for a line of another form, or a file that is not there.
    """
    samples: dict[str, Sample] = {}
    text = tree.read(list_name).decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace("\t", " ").replace(",", " ").split()
        if len(words) > 2:
            raise InputError(
                f"{tree.where(list_name)}, line {number}: {line.strip()!r}; expected an id, or the paths of an image and"
                " its mask, without spaces in them."
            )
        if not words:
            continue
        image, mask = (
            [word.lstrip("/") for word in words] if len(words) == 2 else (image_of(words[0]), mask_of(words[0]))
        )
        sample_id = words[0] if len(words) == 1 else image.rsplit(".", 1)[0]
        for name in (image, mask):
            if name not in tree.stamps:
                raise InputError(f"{tree.where(list_name)} lists {words[0]!r}, but {name} is missing.")
        samples[sample_id] = Sample(sample_id, image, mask)
    return list(samples.values())
