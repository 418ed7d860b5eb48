"""Weights of classes from how often they are seen: rare ones weigh more.

In: pixels of every class in the training images, void ones left out. Out: a weight per class; 0 for one that never occurs,
of which nothing can be learnt.
"""

from collections.abc import Sequence

import numpy as np


def inverse_weights(pixels: Sequence[int]) -> tuple[float, ...]:
    """N / (C n_k): N pixels in all, n_k of class k, C classes that occur. A pixel's weight is 1 in the mean.

    Source: scikit-learn's class_weight="balanced", after King and Zeng (2001).

    >>> inverse_weights([6, 2, 0])
    (0.6666666666666666, 2.0, 0.0)
    """
    count = np.array(pixels, np.float64)
    occurs = count > 0
    share = count[occurs] / count.sum()
    return spread(1 / (occurs.sum() * share), occurs)


def median_frequency_weights(pixels: Sequence[int], pixels_of_images: Sequence[int]) -> tuple[float, ...]:
    """m / f_k: f_k the pixels of class k / the pixels of the images that show it, m the median of f over these classes.

    Source: Eigen and Fergus (arXiv 1411.4734), section 6.3.1.

    >>> median_frequency_weights([6, 2, 1, 0], [12, 8, 10, 0])  # frequencies 0.5, 0.25, 0.1
    (0.5, 1.0, 2.5, 0.0)
    """
    count = np.array(pixels, np.float64)
    occurs = count > 0
    frequency = count[occurs] / np.array(pixels_of_images, np.float64)[occurs]
    return spread(np.median(frequency) / frequency, occurs) if occurs.any() else (0.0,) * len(count)


def spread(weights: np.ndarray, occurs: np.ndarray) -> tuple[float, ...]:
    """The weights of the classes that occur, at their places among all."""
    out = np.zeros(len(occurs))
    out[occurs] = weights
    return tuple(out.tolist())
