"""Maps resized some rows at a time: against `ops.resize_bilinear` of the whole, which is held to PyTorch's."""

import itertools

import numpy as np
import pytest

from jaxseg.inference.stripes import cut_rows, resize_rows, stripe_cuts
from jaxseg.ops import resize_bilinear

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("to", [(7, 9), (23, 31), (3, 4), (7, 31), (40, 9), (1, 1), (100, 2)])
@pytest.mark.parametrize("pieces", [[7], [1] * 7, [0, 3, 0, 4]])
def test_stripes_of_any_cut_are_the_whole_map_resized(to, pieces):
    logits = RNG.standard_normal((7, 9, 4)).astype(np.float32)
    ends = [0, *itertools.accumulate(pieces)]
    for rows in (1, 2, to[0]):
        cuts = [*range(0, to[0], rows), to[0]]
        parts = (logits[start:stop] for start, stop in itertools.pairwise(ends))
        got = list(resize_rows(parts, size=(7, 9), to=to, cuts=cuts))
        assert [len(part) for part in got] == np.diff(cuts).tolist()
        np.testing.assert_allclose(np.concatenate(got), resize_bilinear(logits, to), atol=1e-6)


def test_a_map_of_the_right_size_stays_as_it_is():
    """Also infinite values, which 0 · ∞ would make NaN."""
    logits = np.full((5, 6, 2), -np.inf, np.float32)
    logits[1] = 3
    got = np.concatenate(list(resize_rows(cut_rows(logits, 6), size=(5, 6), to=(5, 6), cuts=[0, 2, 5])))
    assert (got == logits).all()


def test_stripes_have_a_bounded_size():
    # 12 megapixels of 19 classes: 2^22 / (4000 · 19) = 55 rows
    cuts = stripe_cuts(3000, 4000, 19)
    assert max(np.diff(cuts)) == 55
    assert (cuts[0], cuts[-1]) == (0, 3000)
    assert stripe_cuts(2, 1 << 23, 1) == [0, 1, 2]  # a row at least
