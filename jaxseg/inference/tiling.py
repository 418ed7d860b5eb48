"""Images in one piece or in windows, and the logits of windows put together again.

In: images uint8 [h, w, 3] of any size, and a function from images of one of the network's sizes to logits. Out: logits
f32 [h, w, c] at each image's own height and width.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg.data.transforms import copy_padded

Image = UInt8[np.ndarray, "h w 3"]
Size = tuple[int, int]
ForwardFn = Callable[[list[np.ndarray], list[Size]], Iterator[np.ndarray]]  # images, and what each is padded to


def full_image_logits(
    forward: ForwardFn, images: list[Image], *, multiple_px: int, pad_to_hw: Size | None = None
) -> Iterator[np.ndarray]:
    """What `forward` gives for every image in one piece, padded by its edge to what the network takes, and cut back.

    Args:
      forward: from images, and heights and widths that it pads them to by their edge, to logits [h, w, c], or to classes
        [h, w], one after the other.
      images: to look at.
      multiple_px: heights and widths that the network takes.
      pad_to_hw: height and width to pad to instead.

    Yields:
      The result for each image, at its own size.
    """

    def target(image: Image) -> Size:
        h, w = (math.ceil(side / multiple_px) * multiple_px for side in image.shape[:2])
        return pad_to_hw or (h, w)

    for image, result in zip(images, forward(images, [target(image) for image in images]), strict=True):
        yield result[: image.shape[0], : image.shape[1]]


def sliding_window_rows(
    forward: ForwardFn, image: Image, *, window_px: int, overlap: float, batch: int
) -> Iterator[Float[np.ndarray, "r w c"]]:
    """Logits of an image, the windows' weighted mean, from top to bottom: rows are given out, and forgotten, once no
    window is left that holds them, however many windows make a batch.

    Args:
      forward: as in `full_image_logits`.
      image: to look at.
      window_px: side of the windows.
      overlap: share of a window that the next one covers too, at least.
      batch: how many windows `forward` gets at a time.

    Yields:
      Rows of the logits.
    """
    ramp = np.minimum(np.arange(1, window_px + 1), np.arange(window_px, 0, -1)).astype(np.float32) / window_px
    weight = (ramp[:, None] * ramp)[..., None]
    height, width = (max(side, window_px) for side in image.shape[:2])
    image = image if (height, width) == image.shape[:2] else pad_by_edge(image, height, width)
    tops, lefts = (window_starts(length, window_px, overlap) for length in (height, width))
    corners = list(itertools.product(tops, lefts))
    total: np.ndarray | None = None
    weights = np.zeros((0, width, 1), np.float32)
    done = 0  # rows given out: the first of `total` and `weights`
    for number, logits in enumerate(window_logits(forward, image, corners, window_px=window_px, batch=batch)):
        top, left = corners[number]
        if total is None:
            total = np.zeros((0, width, logits.shape[-1]), np.float32)
        if (missing := top + window_px - done - len(total)) > 0:
            total, weights = (np.pad(x, ((0, missing), (0, 0), (0, 0))) for x in (total, weights))
        place = np.s_[top - done : top - done + window_px, left : left + window_px]
        total[place] += weight * logits
        weights[place] += weight
        end = corners[number + 1][0] if number + 1 < len(corners) else height
        if end > done:
            yield total[: end - done] / weights[: end - done]
            total, weights = total[end - done :], weights[end - done :]
            done = end


def window_logits(
    forward: ForwardFn, image: Image, corners: list[tuple[int, int]], *, window_px: int, batch: int
) -> Iterator[Float[np.ndarray, "w w c"]]:
    """Of every window in order; the network gets `batch` windows at a time."""
    for some in itertools.batched(corners, batch):
        windows = [image[top : top + window_px, left : left + window_px] for top, left in some]
        yield from forward(windows, [(window_px, window_px)] * len(windows))


def window_starts(length: int, window_px: int, overlap: float) -> list[int]:
    """Where windows begin along one axis: evenly spread, the first at 0, the last up to the end.

    >>> window_starts(100, 40, 0.5)
    [0, 20, 40, 60]
    """
    stride = max(1, math.floor(window_px * (1 - overlap)))
    count = math.ceil((length - window_px) / stride) + 1
    return [round(i * (length - window_px) / max(count - 1, 1)) for i in range(count)]


def pad_by_edge(image: Image, height: int, width: int) -> Image:
    """Below and to the right, as at scoring."""
    padded = np.empty((height, width, 3), np.uint8)
    copy_padded(image, padded)
    return padded
