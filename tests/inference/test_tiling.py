"""Where sliding windows begin."""

import itertools

import numpy as np

from jaxseg.inference.tiling import window_starts


def test_windows_cover_every_pixel_evenly():
    # hand counts: side 4 and overlap ½ step by at most 2
    assert window_starts(4, 4, 0.5) == [0]
    assert window_starts(8, 4, 0.5) == [0, 2, 4]
    assert window_starts(9, 4, 0.5) == [0, 2, 3, 5]
    assert window_starts(8, 4, 0.0) == [0, 4]
    assert window_starts(9, 4, 0.0) == [0, 2, 5]
    for length, side, overlap in itertools.product((16, 33, 100), (16,), (0, 0.3, 0.75)):
        starts = window_starts(length, side, overlap)
        assert starts[0] == 0
        assert starts[-1] == length - side
        assert max(np.diff(starts), default=0) <= side * (1 - overlap)
