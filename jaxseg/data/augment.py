"""Augmentation of an image with its label map, on the host: NumPy in, NumPy out, by OpenCV.

In: image uint8 [h, w, 3], label uint8 [h, w] of train ids with 255 = void, ranges, a generator. Out: a square of both.
Flip, scale, rotation and crop are one map, so that each is resampled once and straight from the record: the image
bilinearly, the label by nearest. Beyond the record the label is void. Then colors and blur change the crop's image.
"""

import dataclasses
import math

import cv2
import numpy as np

from jaxseg.labels import VOID

FILL = (124, 116, 104)  # mean color of ImageNet, which PSPNet's code pads with
LUMA = np.array([0.299, 0.587, 0.114])  # what a color counts for its gray (Rec. 601), as in torchvision
LEAST_BLUR = 0.1  # pixels; MoCo v2's code


@dataclasses.dataclass(frozen=True)
class Ranges:
    """From which ranges the changes are drawn; `config.augment` says what each number is."""

    flip: float
    scale_min: float
    scale_max: float
    rotate_degrees: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur: float
    blur_sigma: float


@dataclasses.dataclass(frozen=True)
class View:
    """Where a crop lies: its corner in the scaled image, then turned counterclockwise about its middle, then mirrored."""

    top: int
    left: int
    scale: float = 1.0
    degrees: float = 0.0
    is_mirrored: bool = False


def augment(
    image: np.ndarray, label: np.ndarray, *, crop_px: int, ranges: Ranges, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A square of image and label, changed at random.

    Args:
      image: uint8 [h, w, 3].
      label: uint8 [h, w]; 255 is void.
      crop_px: side of the square; it may be larger than the image.
      ranges: what the changes are drawn from.
      rng: every number comes from it.

    Returns:
      uint8 [crop_px, crop_px, 3] and [crop_px, crop_px].

    >>> image = np.zeros((30, 40, 3), np.uint8)
    >>> ranges = Ranges(0.5, 0.5, 2.0, 10.0, 0.4, 0.4, 0.4, 0.1, 0.5, 2.0)
    >>> image, label = augment(image, image[..., 0], crop_px=32, ranges=ranges, rng=np.random.default_rng(0))
    >>> image.shape, label.shape
    ((32, 32, 3), (32, 32))
    """
    cv2.setNumThreads(0)  # the pipeline has threads of its own; per call, because it is a setting of the process
    view = draw_view(label.shape, crop_px=crop_px, ranges=ranges, rng=rng)
    image, label = cut(image, label, view, crop_px=crop_px)
    brightness, contrast, saturation = (
        rng.uniform(1 - most, 1 + most) for most in (ranges.brightness, ranges.contrast, ranges.saturation)
    )
    hue = rng.uniform(-ranges.hue, ranges.hue)
    image = change_colors(image, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    if rng.random() < ranges.blur:
        image = blur(image, rng.uniform(LEAST_BLUR, ranges.blur_sigma))
    return image, label


def draw_view(hw: tuple[int, int], *, crop_px: int, ranges: Ranges, rng: np.random.Generator) -> View:
    """Its corner is uniform over all where the crop lies in the scaled image or, on a side where that is smaller, over all
    where it holds it whole."""
    is_mirrored = rng.random() < ranges.flip
    scale = rng.uniform(ranges.scale_min, ranges.scale_max)
    degrees = rng.uniform(-ranges.rotate_degrees, ranges.rotate_degrees)
    free_px = [round(side * scale) - crop_px for side in hw]
    top, left = (int(rng.integers(min(free, 0), max(free, 0) + 1)) for free in free_px)
    return View(top=top, left=left, scale=scale, degrees=degrees, is_mirrored=is_mirrored)


def cut(image: np.ndarray, label: np.ndarray, view: View, *, crop_px: int) -> tuple[np.ndarray, np.ndarray]:
    """What `view` shows; beyond the image FILL and void. At scale 1, shifts, mirroring and quarter turns are exact.

    >>> label = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> cut(np.zeros((2, 3, 3), np.uint8), label, View(top=0, left=1, is_mirrored=True), crop_px=2)[1].tolist()
    [[2, 1], [5, 4]]
    """
    matrix = crop_to_image(view, crop_px=crop_px)
    label = warp(label, matrix, crop_px=crop_px, resampling=cv2.INTER_NEAREST, fill=VOID)
    if view.scale < 1:
        # Against aliasing, as skimage.transform.resize: half of what a pixel of the crop spans beyond one of the image.
        sigma = (1 / view.scale - 1) / 2
        window, (left, top) = seen_window(matrix, image.shape[:2], crop_px=crop_px, margin_px=4 * sigma + 2)
        image = blur(image[window], sigma)
        matrix = matrix - [[0, 0, left], [0, 0, top]]
    return warp(image, matrix, crop_px=crop_px, resampling=cv2.INTER_LINEAR, fill=FILL), label


def crop_to_image(view: View, *, crop_px: int) -> np.ndarray:
    """[2, 3]: from (x, y, 1) in the crop to (x, y) in the image, both counted from the middle of the first pixel."""
    angle = math.radians(view.degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn[:, 0] *= -1 if view.is_mirrored else 1
    middle = np.full(2, (crop_px - 1) / 2)
    in_scaled = middle - turn @ middle + [view.left, view.top]
    in_image = (in_scaled + 0.5) / view.scale - 0.5
    return np.column_stack([turn / view.scale, in_image])


def warp(image: np.ndarray, matrix: np.ndarray, *, crop_px: int, resampling: int, fill: int | tuple) -> np.ndarray:
    """A square of crop_px, each pixel read where `matrix` maps it."""
    flags = resampling | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        image, matrix, (crop_px, crop_px), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )


def seen_window(
    matrix: np.ndarray, hw: tuple[int, int], *, crop_px: int, margin_px: float
) -> tuple[tuple[slice, slice], tuple[int, int]]:
    """Rows and columns of the image that a crop reads, with a margin; and (x, y) of the first."""
    last = crop_px - 1
    corners = matrix @ np.array([[0, last, 0, last], [0, 0, last, last], [1, 1, 1, 1]])
    size = np.array(hw[::-1])
    first = np.clip(np.floor(corners.min(axis=1) - margin_px).astype(int), 0, size - 1)
    end = np.clip(np.ceil(corners.max(axis=1) + margin_px).astype(int), first + 1, size)
    return (slice(first[1], end[1]), slice(first[0], end[0])), (int(first[0]), int(first[1]))


def change_colors(
    image: np.ndarray, *, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """torchvision's ColorJitter with these factors, as one affine map of colors, rounded and clipped once.

    Brightness scales; contrast blends with the image's mean gray, saturation with a pixel's gray: the three commute. Hue
    turns colors about the gray axis, where torchvision turns them in HSV: red, green and blue change alike.

    Args:
      image: uint8 [h, w, 3].
      brightness: factor; 1 changes nothing.
      contrast: factor; 0 is gray all over.
      saturation: factor; 0 is a gray image.
      hue: part of the circle, -0.5 to 0.5; 1/3 makes red green.

    Returns:
      uint8 [h, w, 3], within 1 of the exact value.

    >>> change_colors(np.full((1, 1, 3), (255, 0, 0), np.uint8), brightness=1, contrast=1, saturation=1, hue=1 / 3)
    array([[[  0, 255,   0]]], dtype=uint8)
    """
    matrix = color_matrix(
        brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, mean_gray=LUMA @ cv2.mean(image)[:3]
    )
    return cv2.transform(image, matrix)


def color_matrix(*, brightness: float, contrast: float, saturation: float, hue: float, mean_gray: float) -> np.ndarray:
    """[3, 4]: what (red, green, blue, 1) is multiplied by."""
    saturate = saturation * np.eye(3) + (1 - saturation) * LUMA
    linear = brightness * contrast * (hue_rotation(hue) @ saturate)
    offset = np.full(3, brightness * (1 - contrast) * mean_gray)  # gray, so that hue leaves it
    return np.column_stack([linear, offset])


def hue_rotation(hue: float) -> np.ndarray:
    """[3, 3]: Rodrigues' rotation by `hue` of a full turn about the axis of grays, (1, 1, 1)."""
    angle = 2 * math.pi * hue
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) / 3 + math.sin(angle) * cross


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian, of a deviation in pixels; mirrored at the edges."""
    return cv2.GaussianBlur(image, (0, 0), sigma)
