"""Resizing and cropping on the host: NumPy in, NumPy out, image and label always together.

image uint8 [h, w, 3], label uint8 [h, w] of train ids with 255 = void. `to_batch` is the data boundary: there void
becomes `valid=False`, once.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxseg.labels import VOID


def resized_hw(h: int, w: int, *, resize: str, size_px: int) -> tuple[int, int]:
    """Height and width after `resize`: "square", "shorter_side" (torchvision's rounding: down) or "none"."""
    if resize == "none":
        return h, w
    if resize == "square":
        return size_px, size_px
    return (size_px, int(size_px * w / h)) if h <= w else (int(size_px * h / w), size_px)


def resize_pair(image: np.ndarray, label: np.ndarray, *, resize: str, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Image by Pillow's antialiased bilinear filter, label by nearest: torchvision's `Resize` on PIL images, exactly."""
    h, w = resized_hw(*label.shape, resize=resize, size_px=size_px)
    if (h, w) == label.shape:
        return image, label
    image = resize_image(image, (h, w))
    label = np.asarray(Image.fromarray(label).resize((w, h), Image.Resampling.NEAREST))
    return image, label


def resize_image(image: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] to another height and width by Pillow's antialiased bilinear filter."""
    if image.shape[:2] == tuple(hw):
        return image
    return np.asarray(Image.fromarray(image).resize((hw[1], hw[0]), Image.Resampling.BILINEAR))


def random_crop(
    image: np.ndarray, label: np.ndarray, *, crop_px: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A square of crop_px, its corner uniform over all that fit."""
    h, w = label.shape
    top, left = rng.integers(h - crop_px + 1), rng.integers(w - crop_px + 1)
    return _window(image, label, top, left, crop_px)


def center_crop(image: np.ndarray, label: np.ndarray, *, crop_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The central square of crop_px, placed as torchvision's `CenterCrop` places it."""
    h, w = label.shape
    return _window(image, label, round((h - crop_px) / 2), round((w - crop_px) / 2), crop_px)


def _window(image, label, top, left, crop_px):
    window = np.s_[top : top + crop_px, left : left + crop_px]
    return image[window], label[window]


def to_batch(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, height: int, width: int) -> dict[str, np.ndarray]:
    """Images and labels side by side, each copied once, to its place.

    Args:
      pairs: image uint8 [h, w, 3] and label uint8 [h, w], which may be views of records.
      height: of the batch.
      width: of the batch. Smaller images are padded below and to the right by their edge, their labels by void, so that
        added pixels are never scored.

    Returns:
      image uint8 [b, height, width, 3], label uint8 [b, height, width], valid bool of that shape: False where the label is
      void. They travel like that; `training.step.to_float` makes of the image what networks take, on the device.

    >>> batch = to_batch([(np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2), np.uint8))], height=2, width=2)
    >>> batch["valid"].tolist()
    [[[True, True], [False, False]]]
    """
    image = np.empty((len(pairs), height, width, 3), np.uint8)
    label = np.empty((len(pairs), height, width), np.uint8)
    for row, (pixels, classes) in enumerate(pairs):
        copy_padded(pixels, image[row])
        h, w = classes.shape
        label[row, :h, :w] = classes
        label[row, :h, w:] = label[row, h:] = VOID
    return {"image": image, "label": label, "valid": label != VOID}


def copy_padded(image: np.ndarray, to: np.ndarray) -> None:
    """Copies an image [h, w, 3] into the upper left of a larger one, which is filled up by the image's edge."""
    h, w = image.shape[:2]
    to[:h, :w] = image
    to[:h, w:] = image[:, -1:]
    to[h:] = to[h - 1]
