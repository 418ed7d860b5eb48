"""Information in bits or nats, and what predictions tell of the truth: the study's subject as a measured quantity.

In: probabilities, or counts of pixels such as a confusion matrix (truth in rows, prediction in columns). Out: equations 1
to 3 of the study (Gonçalves et al., RECPAD 2024) in float64, and I(T; P), H(T) and H(T | P) of a confusion matrix, in all
and per class of the truth. 0 log 0 = 0. NumPy alone, no JAX.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num, Real
from scipy.special import rel_entr, xlogy

NATS = {"bits": np.log(2), "nats": 1.0}  # of one unit


def self_information(probability: Real[np.ndarray, "*n"] | float, *, unit: str = "bits") -> Float[np.ndarray, "*n"]:
    """What an event tells that has this probability: I(x) = -log p(x).

    Equation 1 of the study.

    Args:
      probability: in [0, 1], any shape.
      unit: "bits" (logarithm to base 2) or "nats" (natural logarithm).

    Returns:
      The information of each, at least 0; infinite of an event that never happens.

    Raises:
      ValueError: for what is no probability, or another unit.

    >>> self_information(np.array([1.0, 0.5, 0.125])).tolist()
    [0.0, 1.0, 3.0]
    """
    probability = np.asarray(probability, np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("self_information: a probability is outside [0, 1]")
    with np.errstate(divide="ignore"):
        return np.abs(np.log(probability)) / nats_per(unit)  # abs: -log 1 is -0.0


def entropy(weights: Real[np.ndarray, "*n"], *, unit: str = "bits") -> float:
    """Mean self-information: H(X) = -sum p(x) log p(x).

    Args:
      weights: probabilities or counts of the outcomes, any shape; divided by their sum.
      unit: "bits" or "nats".

    Returns:
      From 0 (one outcome always) to log n (all alike); NaN where all weights are 0.

    Raises:
      ValueError: for a weight that is negative or not finite, or another unit.

    >>> entropy(np.array([1, 1, 2, 0]))
    1.5
    """
    p = normalized(weights)
    return float(-xlogy(p, p).sum() / nats_per(unit) + 0.0)  # + 0.0: no -0.0


def mutual_information(joint: Real[np.ndarray, "k j"], *, unit: str = "bits") -> float:
    """What either of two variables tells of the other: I(X; Y) = sum p(x, y) log(p(x, y) / (p(x) p(y))).

    Equation 2 of the study. It is H(X) - H(X | Y) = H(Y) - H(Y | X).

    Args:
      joint: probabilities or counts of the pairs, x in rows, y in columns; divided by their sum.
      unit: "bits" or "nats".

    Returns:
      From 0 (independent) to the smaller of H(X) and H(Y); NaN where all weights are 0.

    Raises:
      ValueError: for a weight that is negative or not finite, or another unit.

    >>> mutual_information(np.array([[2, 0], [0, 2]])), mutual_information(np.array([[1, 1], [2, 2]]))
    (1.0, 0.0)
    """
    return float(information_by_row(joint, unit=unit).sum())


def information_by_row(joint: Real[np.ndarray, "k j"], *, unit: str = "bits") -> Float[np.ndarray, " k"]:
    """The part of `mutual_information` that each x has: sum over y of p(x, y) log(p(x, y) / (p(x) p(y))).

    It is p(x) KL(p(y | x) ‖ p(y)), so no part is negative; they add up to I(X; Y).

    Args:
      joint: probabilities or counts of the pairs, x in rows, y in columns; divided by their sum.
      unit: "bits" or "nats".

    Returns:
      A part per row, 0 for an x that does not occur; NaN where all weights are 0.

    Raises:
      ValueError: for a weight that is negative or not finite, or another unit.

    >>> information_by_row(np.array([[2, 0, 0], [0, 1, 0], [0, 0, 1]])).tolist()
    [0.5, 0.5, 0.5]
    """
    p = normalized(joint)
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    return np.maximum(rel_entr(p, independent).sum(1), 0) / nats_per(unit)  # rounding alone goes below 0


def kl_divergence(weights: Real[np.ndarray, "*n"], other: Real[np.ndarray, "*n"], *, unit: str = "bits") -> float:
    """How far a distribution is from another: KL(p ‖ q) = sum p(x) log(p(x) / q(x)).

    Equation 3 of the study.

    Args:
      weights: p, as probabilities or counts of the outcomes, any shape; divided by their sum.
      other: q, likewise, of the same outcomes.
      unit: "bits" or "nats".

    Returns:
      0 where they are equal, infinite where q rules out what p does not; NaN where all weights of one are 0.

    Raises:
      ValueError: for shapes that differ, a weight that is negative or not finite, or another unit.

    >>> kl_divergence(np.array([1, 0]), np.array([0.5, 0.5])), kl_divergence(np.array([1, 1]), np.array([1, 0]))
    (1.0, inf)
    """
    if np.shape(weights) != np.shape(other):
        raise ValueError(f"kl_divergence: shapes are {np.shape(weights)} and {np.shape(other)}; they must be equal")
    return float(np.maximum(rel_entr(normalized(weights), normalized(other)).sum(), 0) / nats_per(unit))


def summarize_information(confusion: Num[np.ndarray, "c c"], names: Sequence[str]) -> dict:
    """H(T), I(T; P) and H(T | P) in bits of a pixel's true class T and its predicted one P, ready for JSON.

    Args:
      confusion: pixels, truth in rows, prediction in columns.
      names: of the classes.

    Returns:
      "truth": H(T); "mutual": I(T; P); "left": H(T | P) = H(T) - I(T; P), null where no pixel was counted. "by_class":
      of each class k of the truth the same three, which add up to the totals: -p(k) log p(k), `information_by_row`,
      and -sum_j p(k, j) log p(k | j); each is 0 for a class without pixels.

    >>> summarize_information(np.array([[4, 0], [2, 2]]), ["road", "sky"])["truth"]
    1.0
    """
    p = normalized(confusion)
    truth = -xlogy(p.sum(1), p.sum(1)) / nats_per("bits") + 0.0
    mutual = information_by_row(confusion)
    left = np.maximum(truth - mutual, 0)
    columns = {"truth": truth, "mutual": mutual, "left": left}

    def amount(values: np.ndarray) -> float | None:
        return None if np.isnan(values).any() else float(values.sum())

    return {
        "unit": "bits",
        **{key: amount(values) for key, values in columns.items()},
        "by_class": {name: {key: amount(values[k]) for key, values in columns.items()} for k, name in enumerate(names)},
    }


def share_told(confusion: Num[np.ndarray, "c c"]) -> float:
    """I(T; P) / H(T): the share of the truth's information that predictions tell, in [0, 1]; NaN where H(T) is 0.

    >>> share_told(np.array([[3, 0], [0, 1]])), share_told(np.array([[3, 0], [1, 0]]))
    (1.0, 0.0)
    """
    total = entropy(np.asarray(confusion).sum(1))
    return mutual_information(confusion) / total if total > 0 else float("nan")


def normalized(weights: Real[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Divided by their sum, float64; NaN where that is 0. Raises ValueError for a weight below 0 or not finite."""
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("a weight is negative or not finite; expected probabilities or counts")
    total = weights.sum()
    return weights / total if total else np.full(weights.shape, np.nan)


def nats_per(unit: str) -> float:
    """Raises ValueError for a unit that is neither "bits" nor "nats"."""
    if unit not in NATS:
        raise ValueError(f"unit {unit!r} is not known; expected 'bits' or 'nats'")
    return float(NATS[unit])
