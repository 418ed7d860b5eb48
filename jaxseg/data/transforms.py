"""Resizing and cropping on the host: NumPy in, NumPy out, image and label always together.

image uint8 [h, w, 3], label uint8 [h, w] of train ids with 255 = void. `to_element` is the data boundary: there void
becomes `valid=False`, once.
"""

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


def pad_to(image: np.ndarray, label: np.ndarray, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads below and to the right: the image by its edge, the label by void, so that added pixels are never scored."""
    below = height - label.shape[0]
    right = width - label.shape[1]
    image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge" if image.size else "constant")
    return image, np.pad(label, ((0, below), (0, right)), constant_values=VOID)


def to_element(image: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """One element of a batch: image f32 in [0, 1] (value / 255, as torchvision's ToTensor), label i32, valid bool.

    Void pixels have valid=False; their label keeps 255.
    """
    return {
        "image": np.divide(image, np.float32(255), dtype=np.float32),
        "label": label.astype(np.int32),
        "valid": label != VOID,
    }


def to_bytes(image: np.ndarray) -> np.ndarray:
    """f32 in [0, 1] -> uint8: undoes `to_element`."""
    return np.round(image * 255).astype(np.uint8)
