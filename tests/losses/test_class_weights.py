"""Class weights from counts, by hand."""

import numpy as np

from jaxseg.losses.class_weights import inverse_weights, median_frequency_weights


def test_a_pixel_weighs_one_in_the_mean():
    pixels = [10, 0, 30, 60]
    weights = np.array(inverse_weights(pixels))
    np.testing.assert_allclose(weights, [100 / (3 * 10), 0, 100 / (3 * 30), 100 / (3 * 60)])
    np.testing.assert_allclose((weights * pixels).sum() / 100, 1)


def test_median_frequency_of_three_images():
    """Images of 10 valid pixels: {0: 8, 1: 2}, {0: 10}, {0: 5, 2: 5}. Frequencies 23/30, 2/10, 5/10, median 5/10."""
    weights = median_frequency_weights([23, 2, 5, 0], [30, 10, 10, 0])
    np.testing.assert_allclose(weights, [0.5 / (23 / 30), 0.5 / 0.2, 1, 0])


def test_nothing_seen_weighs_nothing():
    assert inverse_weights([0, 0]) == median_frequency_weights([0, 0], [0, 0]) == (0.0, 0.0)
