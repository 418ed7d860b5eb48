"""Information against hand values, SciPy, and its own laws."""

import inspect

import numpy as np
import pytest
from scipy import stats

from jaxseg.information import (
    entropy,
    information_by_row,
    kl_divergence,
    mutual_information,
    self_information,
    share_told,
    summarize_information,
)
from jaxseg.metrics import summarize_confusion

# p(x) = (1/2, 1/2), p(y) = (3/4, 1/4): I = 1/2 log2(1/2 / 3/8) + 1/4 log2(1/4 / 3/8) + 1/4 log2(1/4 / 1/8)
TWO = np.array([[2, 0], [1, 1]])
TWO_BY_ROW = [0.5 * np.log2(4 / 3), 0.25 * np.log2(2 / 3) + 0.25]
RANDOM = np.random.default_rng(0).integers(0, 50, (7, 7)) * (np.random.default_rng(1).random((7, 7)) > 0.4)


def test_self_information_by_hand():
    assert self_information(np.array([1, 0.5, 0.125, 0])).tolist() == [0, 1, 3, np.inf]
    assert self_information(0.5, unit="nats") == pytest.approx(np.log(2), rel=1e-15)
    assert not np.signbit(self_information(1.0))


@pytest.mark.parametrize(("unit", "base"), [("bits", 2), ("nats", np.e)])
def test_entropy_and_divergence_are_scipys(unit, base):
    """Of counts with zeros among them."""
    p, q = np.array([5, 0, 3, 2]), np.array([1, 4, 4, 7])
    assert entropy(p, unit=unit) == pytest.approx(stats.entropy(p, base=base), rel=1e-14)
    assert kl_divergence(p, q, unit=unit) == pytest.approx(stats.entropy(p, q, base=base), rel=1e-14)
    assert kl_divergence(q, p, unit=unit) == stats.entropy(q, p, base=base) == np.inf
    assert kl_divergence(p, 3 * p, unit=unit) == pytest.approx(0, abs=1e-15)


def test_two_classes_by_hand():
    assert mutual_information(TWO) == pytest.approx(sum(TWO_BY_ROW), rel=1e-14)
    assert mutual_information(TWO, unit="nats") == pytest.approx(sum(TWO_BY_ROW) * np.log(2), rel=1e-14)
    np.testing.assert_allclose(information_by_row(TWO), TWO_BY_ROW, rtol=1e-14)


def test_three_classes_by_hand():
    """Truth 1/2, 1/4, 1/4; the last two are told from the first, but not from each other: 1 bit of 1.5."""
    confusion = np.array([[4, 0, 0], [0, 1, 1], [0, 1, 1]])
    told = summarize_information(confusion, ("a", "b", "c"))
    assert (told["truth"], told["mutual"], told["left"]) == (1.5, 1.0, 0.5)
    assert told["by_class"]["a"] == {"truth": 0.5, "mutual": 0.5, "left": 0.0}
    assert told["by_class"]["b"] == told["by_class"]["c"] == {"truth": 0.5, "mutual": 0.25, "left": 0.25}
    assert share_told(confusion) == pytest.approx(2 / 3, rel=1e-15)


def test_independence_tells_nothing_and_identity_all():
    weights = np.array([1, 2, 5])
    assert mutual_information(np.outer(weights, [3, 1])) == pytest.approx(0, abs=1e-15)
    assert mutual_information(np.diag(weights)) == pytest.approx(entropy(weights), rel=1e-15)
    renamed = np.diag(weights)[:, [1, 2, 0]]  # always wrong, and always in the same way
    assert share_told(renamed) == pytest.approx(1, rel=1e-15)


def test_laws_on_random_counts():
    """I = KL(joint ‖ product) = H(T) + H(P) - H(T, P); columns and rows exchanged; classes add up to the total."""
    truth, called = RANDOM.sum(1), RANDOM.sum(0)
    value = mutual_information(RANDOM)
    assert value == pytest.approx(kl_divergence(RANDOM, np.outer(truth, called)), rel=1e-12)
    assert value == pytest.approx(entropy(truth) + entropy(called) - entropy(RANDOM), rel=1e-12)
    assert value == pytest.approx(mutual_information(RANDOM.T), rel=1e-12)
    told = summarize_information(RANDOM, tuple("abcdefg"))
    assert told["left"] == pytest.approx(entropy(RANDOM) - entropy(called), rel=1e-12)  # H(T | P), by the chain rule
    for key in ("truth", "mutual", "left"):
        parts = [of_class[key] for of_class in told["by_class"].values()]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(told[key], rel=1e-14)
    row = RANDOM[2] / RANDOM[2].sum()
    assert information_by_row(RANDOM)[2] == pytest.approx(
        truth[2] / truth.sum() * kl_divergence(row, called), rel=1e-12
    )


def test_absent_classes_and_no_pixels():
    told = summarize_information(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert told["truth"] == 1
    assert told["by_class"]["c"] == {"truth": 0, "mutual": 0, "left": 0}
    nothing = summarize_information(np.zeros((2, 2), np.int64), ("a", "b"))
    assert [nothing[key] for key in ("truth", "mutual", "left")] == [None] * 3
    assert nothing["by_class"]["a"] == dict.fromkeys(("truth", "mutual", "left"))
    zeros = np.zeros((2, 2))
    assert np.isnan([entropy(zeros), mutual_information(zeros), share_told(zeros), share_told(np.eye(1))]).all()


def test_it_is_among_the_scores():
    scores = summarize_confusion(TWO, ("a", "b"))
    assert scores["information"] == summarize_information(TWO, ("a", "b"))


def test_what_is_no_distribution_is_named():
    with pytest.raises(ValueError, match="'bans'"):
        entropy(np.ones(2), unit="bans")
    for weights in ([-1.0, 2], [np.nan, 1], [np.inf, 1]):
        with pytest.raises(ValueError, match="negative or not finite"):
            entropy(np.array(weights))
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        self_information(1.5)
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        inspect.unwrap(kl_divergence)(np.ones(2), np.ones(3))
