"""Metrics against recorded values, hand counts, and themselves under jit."""

import functools

import jax
import numpy as np
import pytest

from jaxseg.metrics import confusion_matrix, iou_per_class, mean_iou, pixel_accuracy


@pytest.mark.parametrize("name", ["metrics_c21", "metrics_c19_two_absent"])
def test_recorded_metrics(golden, name):
    recorded = golden(name)
    confusion = confusion_matrix(recorded["predictions"], recorded["labels"], int(recorded["num_classes"]))
    np.testing.assert_allclose(iou_per_class(confusion), recorded["iou_per_class"], rtol=1e-12)
    np.testing.assert_allclose(mean_iou(confusion), recorded["mean_iou_over_present"], rtol=1e-12)
    np.testing.assert_allclose(pixel_accuracy(confusion), recorded["pixel_accuracy"], rtol=1e-12)


TRUTH = np.array([[0, 0, 1], [1, 255, 2]])
CALLED = np.array([[0, 1, 1], [1, 3, 0]])


def test_by_hand():
    """Class 0: 1 hit, 1 missed, 1 false: 1/3. Class 1: 2 hits, 1 false: 2/3. Class 2: 0/1. Class 3: absent."""
    confusion = confusion_matrix(CALLED, TRUTH, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(iou_per_class(confusion), [1 / 3, 2 / 3, 0, np.nan])
    assert mean_iou(confusion) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert pixel_accuracy(confusion) == 3 / 5


def test_jit_equals_eager():
    jitted = jax.jit(functools.partial(confusion_matrix, num_classes=4))
    assert np.array_equal(jitted(CALLED, TRUTH), confusion_matrix(CALLED, TRUTH, 4))


def test_predicted_only_class_counts_as_zero():
    confusion = confusion_matrix(np.array([1, 1]), np.array([0, 0]), 3)
    np.testing.assert_array_equal(iou_per_class(confusion), [0, 0, np.nan])
    assert mean_iou(confusion) == 0


def test_nothing_scored_is_nan():
    confusion = confusion_matrix(np.array([0]), np.array([255]), 2)
    assert np.isnan([mean_iou(confusion), pixel_accuracy(confusion)]).all()


def test_large_counts_stay_exact():
    """Float32 would lose the odd pixel above 2^24; int32 products would overflow here."""
    confusion = np.array([[2**40 + 1, 0], [1, 2**40]], np.int64)
    assert iou_per_class(confusion)[0] == (2**40 + 1) / (2**40 + 2)
    assert pixel_accuracy(confusion) == (2**41 + 1) / (2**41 + 2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"prediction has shape \(2,\), label \(3,\)"):
        confusion_matrix(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match=r"prediction 7 is outside 0..3 \(1 pixels\)"):
        confusion_matrix(np.array([7, 9]), np.array([0, 255]), 4)
