"""Metrics against recorded values, hand counts, and themselves under jit."""

import functools
import inspect

import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxseg.metrics import (
    boundary_counts,
    class_accuracy,
    confusion_matrix,
    frequency_weighted_iou,
    iou_per_class,
    mean_accuracy,
    mean_iou,
    micro_iou,
    one_vs_rest_accuracy,
    pixel_accuracy,
)
from jaxseg.reporting.tables import PAPER_TABLE1


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
        inspect.unwrap(confusion_matrix)(np.zeros(2, int), np.zeros(3, int), 2)  # without the check of its annotations
    with pytest.raises(ValueError, match=r"prediction 7 is outside 0..3 \(1 pixels\)"):
        confusion_matrix(np.array([7, 9]), np.array([0, 255]), 4)


def test_accuracies_by_hand():
    """Rows are truth: 8 of 10 right, 1 of 2 right, a class that is predicted but never true, one that is nowhere."""
    confusion = np.array([[8, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(class_accuracy(confusion), [0.8, 0.5, np.nan, np.nan])
    assert mean_accuracy(confusion) == pytest.approx(0.65)
    # IoU 8/10, 1/3 and 0, weighted by 10, 2 and 0 of 12 pixels
    assert frequency_weighted_iou(confusion) == pytest.approx((10 * 8 / 10 + 2 * 1 / 3) / 12)
    nothing = np.zeros((3, 3), int)
    assert np.isnan([mean_accuracy(nothing), frequency_weighted_iou(nothing)]).all()


def test_boundary_regions_are_what_erosion_takes_away():
    """Cheng et al.: a mask less its erosion by d steps of a 3×3 square, pixels outside the image being background."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 3, (2, 8, 10))
    label, prediction = (np.kron(b, np.ones((7, 7), int))[:53, :66] for b in blocks)
    near = round(0.02 * np.hypot(53, 66))
    assert near == 2
    expected = np.zeros((2, 3), int)
    for c in range(3):
        bands = []
        for classes in (label, prediction):
            mask = np.pad(classes == c, 1)
            inside = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=near)
            bands.append((mask & ~inside)[1:-1, 1:-1])
        expected[:, c] = (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()
    assert (
        boundary_counts(prediction.astype(np.uint8), label.astype(np.uint8), np.ones(label.shape, bool), 3).tolist()
        == expected.tolist()
    )


def test_void_makes_no_boundary_and_is_not_counted():
    label = np.full((40, 40), 1, np.uint8)
    label[10:20, 10:20] = 255
    inner = np.zeros((2, 2), int)
    inner[:, 1] = 40 * 40 - 38 * 38  # d = 1: the image's rim alone
    assert boundary_counts(np.ones_like(label), label, label != 255, 2).tolist() == inner.tolist()
    wrong = np.ones_like(label)
    wrong[12:18, 12:18] = 0  # deep in the void, its boundary too
    assert boundary_counts(wrong, label, label != 255, 2).tolist() == inner.tolist()


def test_pooled_scores_follow_from_accuracy():
    """By hand: 9 of 12 pixels right, three of four classes present. Intersections 8 + 1 + 0, unions 10 + 3 + 2; each of
    the three classes is wrong of 2 pixels. Then the laws, on random counts."""
    confusion = np.array([[8, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert micro_iou(confusion) == 9 / 15
    assert one_vs_rest_accuracy(confusion) == pytest.approx(10 / 12, rel=1e-15)
    random = np.random.default_rng(3).integers(1, 100, (5, 5))
    accuracy = pixel_accuracy(random)
    assert micro_iou(random) == pytest.approx(accuracy / (2 - accuracy), rel=1e-14)
    assert one_vs_rest_accuracy(random) == pytest.approx(1 - 2 * (1 - accuracy) / 5, rel=1e-14)
    assert np.isnan([micro_iou(np.zeros((3, 3), int)), one_vs_rest_accuracy(np.zeros((3, 3), int))]).all()


def test_table_1_of_the_paper_names_its_metrics():
    """Its VOC accuracies, read as equation 5 over 21 classes, would need a negative share of right pixels; its IoUs are
    not those pooled over classes, which follow from the accuracy."""
    for iou, accuracy in PAPER_TABLE1["voc2012"].values():
        assert 1 - (1 - accuracy) * 21 / 2 < -1
        assert accuracy / (2 - accuracy) - iou > 0.3
    for iou, accuracy in PAPER_TABLE1["cityscapes"].values():
        assert accuracy / (2 - accuracy) - iou > 0.28
