"""Maps brought to an image's height and width some rows at a time, so that they need the memory of a stripe.

In: rows of logits f32 [r, w, c], from top to bottom. Out: rows f32 [r, w2, c] of the map resized as by
`ops.resize_bilinear`, likewise. A map of 19 classes of a picture of 12 megapixels would take 0.85 GiB.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "r w c"]

STRIPE_VALUES = 1 << 22  # 16 MiB of float32, of which some copies are made: near what the caches of a processor hold


def stripe_cuts(height: int, width: int, channels: int) -> list[int]:
    """Where stripes of [height, width, channels] begin and end.

    >>> stripe_cuts(5, 1 << 20, 2)
    [0, 2, 4, 5]
    """
    rows = max(1, STRIPE_VALUES // (width * channels))
    return [*range(0, height, rows), height]


def cut_rows(logits: Rows, width: int) -> Iterator[Rows]:
    """A map in pieces that are stripes where they are `width` wide."""
    cuts = stripe_cuts(len(logits), max(width, logits.shape[1]), logits.shape[2])
    return (logits[start:stop] for start, stop in itertools.pairwise(cuts))


def resize_rows(
    rows: Iterable[Rows], *, size: tuple[int, int], to: tuple[int, int], cuts: Sequence[int]
) -> Iterator[Rows]:
    """Bilinear resizing with half-pixel centers.

    Args:
      rows: the map, in pieces from top to bottom.
      size: its height and width.
      to: those of the result.
      cuts: where the result's pieces begin and end.

    Yields:
      The pieces of the result.
    """
    rows = iter(rows)
    pieces: list[Rows] = []  # of what has come, what is still needed: rows `first` to `come`
    first = come = 0
    for start, stop in itertools.pairwise(cuts):
        low, high, of_low, of_high = taps(size[0], to[0], start, stop)
        while come <= high[-1]:
            pieces.append(resize_columns(next(rows), to[1]))
            come += len(pieces[-1])
        held = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if size[0] == to[0]:
            yield held[start - first : stop - first]
        else:
            yield mix(held, low - first, high - first, of_low, of_high, axis=0)
        pieces = [held[low[-1] - first :]]
        first = low[-1]


def resize_columns(rows: Rows, width: int) -> Rows:
    if rows.shape[1] == width:
        return rows
    return mix(rows, *taps(rows.shape[1], width, 0, width), axis=1)


def mix(x: Rows, low: np.ndarray, high: np.ndarray, of_low: np.ndarray, of_high: np.ndarray, *, axis: int) -> Rows:
    """Each output is a weighted sum of two inputs along the axis."""
    weight = np.s_[:, None, None] if axis == 0 else np.s_[None, :, None]
    total = np.take(x, low, axis=axis)
    total *= of_low[weight]
    other = np.take(x, high, axis=axis)
    other *= of_high[weight]
    total += other
    return total


def taps(n: int, m: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of outputs `start` to `stop` of m, which two of n inputs each is read from, and their weights: the two entries of a
    row of `ops.half_pixel_weights` that are not 0.

    >>> [part.tolist() for part in taps(2, 4, 0, 4)]
    [[0, 0, 0, 1], [1, 1, 1, 1], [1.0, 0.75, 0.25, 1.0], [0.0, 0.25, 0.75, 0.0]]
    """
    at = np.clip((2 * np.arange(start, stop) + 1) * n - m, 0, 2 * m * (n - 1))
    low, rest = np.divmod(at, 2 * m)
    of_low = (1 - rest / (2 * m)).astype(np.float32)
    of_high = (1 - (2 * m - rest) / (2 * m)).astype(np.float32)
    return low, np.minimum(low + 1, n - 1), of_low, of_high
