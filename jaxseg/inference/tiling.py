"""Images in one piece or in windows, and the logits of windows put together again.

In: images uint8 [h, w, 3] of any size, and a function from images of one of the network's sizes to logits. Out: logits
f32 [h, w, c] at each image's own height and width.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

Image = UInt8[np.ndarray, "h w 3"]
ForwardFn = Callable[[list[np.ndarray]], list[np.ndarray]]


def full_image_logits(
    forward: ForwardFn, images: list[Image], *, multiple_px: int, pad_to_hw: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """What `forward` gives for every image in one piece, padded by its edge to what the network takes, and cut back.

    Args:
      forward: from images to logits [h, w, c], or to classes [h, w].
      images: to look at.
      multiple_px: heights and widths that the network takes.
      pad_to_hw: height and width to pad to instead.

    Yields:
      The result for each image, at its own size.
    """

    def target(image):
        return pad_to_hw or [math.ceil(side / multiple_px) * multiple_px for side in image.shape[:2]]

    padded = [pad_by_edge(image, *target(image)) for image in images]
    for image, result in zip(images, forward(padded), strict=True):
        yield result[: image.shape[0], : image.shape[1]]


def sliding_window_rows(
    forward: ForwardFn, image: Image, *, window_px: int, overlap: float, batch: int
) -> Iterator[Float[np.ndarray, "r w c"]]:
    """Logits of an image, the windows' weighted mean, from top to bottom: rows are given out, and forgotten, once no
    window is left that holds them.

    Args:
      forward: from windows to logits.
      image: to look at.
      window_px: side of the windows.
      overlap: share of a window that the next one covers too, at least.
      batch: windows that are given to `forward` together.

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
    for first in range(0, len(corners), batch):
        some = corners[first : first + batch]
        windows = [image[top : top + window_px, left : left + window_px] for top, left in some]
        for (top, left), logits in zip(some, forward(windows), strict=True):
            if total is None:
                total = np.zeros((0, width, logits.shape[-1]), np.float32)
            if (missing := top + window_px - done - len(total)) > 0:
                total, weights = (np.pad(x, ((0, missing), (0, 0), (0, 0))) for x in (total, weights))
            place = np.s_[top - done : top - done + window_px, left : left + window_px]
            total[place] += weight * logits
            weights[place] += weight
        end = corners[first + batch][0] if first + batch < len(corners) else height
        yield total[: end - done] / weights[: end - done]
        total, weights = total[end - done :], weights[end - done :]
        done = end


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
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")
