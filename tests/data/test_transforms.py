"""Resizing against torchvision's recorded results; crops and padding by hand."""

import numpy as np
import pytest

from jaxseg.data import transforms


@pytest.mark.parametrize("resize", ["square", "shorter_side"])
def test_resize_is_torchvisions_exactly(golden, resize):
    recorded = golden("resize_camvid")
    image, label = transforms.resize_pair(recorded["image"], recorded["labels"], resize=resize, size_px=234)
    assert np.array_equal(image, recorded[f"{resize}234_image"])
    assert np.array_equal(label, recorded[f"{resize}234_labels"])


@pytest.mark.parametrize(
    ("hw", "resize", "size_px", "expected"),
    [
        ((360, 480), "square", 234, (234, 234)),
        ((360, 480), "shorter_side", 234, (234, 312)),  # 234 * 480 / 360 = 312
        ((500, 333), "shorter_side", 234, (351, 234)),  # 234 * 500 / 333 = 351.35, rounded down
        ((333, 500), "none", 234, (333, 500)),
    ],
)
def test_resized_sizes(hw, resize, size_px, expected):
    assert transforms.resized_hw(*hw, resize=resize, size_px=size_px) == expected


def test_label_is_never_interpolated():
    label = np.kron(np.array([[3, 200], [7, 255]], np.uint8), np.ones((9, 9), np.uint8))
    image = np.stack([label] * 3, -1)
    _, resized = transforms.resize_pair(image, label, resize="square", size_px=7)
    assert set(np.unique(resized)) == {3, 7, 200, 255}


def test_random_crop_reaches_every_corner_and_keeps_image_and_label_together():
    label = np.arange(30, dtype=np.uint8).reshape(5, 6)
    image = np.stack([label] * 3, -1)
    corners = set()
    rng = np.random.default_rng(0)
    for _ in range(300):
        cropped_image, cropped_label = transforms.random_crop(image, label, crop_px=4, rng=rng)
        assert cropped_label.shape == (4, 4)
        assert np.array_equal(cropped_image[..., 0], cropped_label)
        corners.add(int(cropped_label[0, 0]))
    assert corners == {0, 1, 2, 6, 7, 8}  # top 0..1, left 0..2


def test_a_crop_is_a_view_of_the_record():
    """Nothing is copied before `to_batch` copies the crop's own pixels to their place."""
    image, label = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)
    cropped = transforms.random_crop(image, label, crop_px=4, rng=np.random.default_rng(0))
    assert np.shares_memory(cropped[0], image)
    assert np.shares_memory(cropped[1], label)


def test_center_crop_is_placed_as_torchvision_places_it():
    """CenterCrop: top = int(round((h - crop) / 2)), Python's rounding to even."""
    label = np.arange(49, dtype=np.uint8).reshape(7, 7)
    _, cropped = transforms.center_crop(np.stack([label] * 3, -1), label, crop_px=4)
    assert cropped[0, 0] == 7 * 2 + 2  # (7 - 4) / 2 = 1.5 -> 2


def test_padding_is_void_and_edge():
    label = np.array([[1, 2], [3, 4]], np.uint8)
    batch = transforms.to_batch([(np.stack([label] * 3, -1), label)], height=3, width=4)
    assert batch["label"].tolist() == [[[1, 2, 255, 255], [3, 4, 255, 255], [255] * 4]]
    assert batch["image"][0, ..., 0].tolist() == [[1, 2, 2, 2], [3, 4, 4, 4], [3, 4, 4, 4]]
    assert batch["valid"].tolist() == [[[True, True, False, False]] * 2 + [[False] * 4]]


def test_batch_is_the_contract():
    """Bytes, and void as valid=False; the images stand side by side, in order."""
    pairs = [
        (np.full((1, 1, 3), value, np.uint8), np.full((1, 1), label, np.uint8)) for value, label in ((51, 7), (2, 255))
    ]
    batch = transforms.to_batch(pairs, height=1, width=1)
    assert {key: x.dtype.name for key, x in batch.items()} == {"image": "uint8", "label": "uint8", "valid": "bool"}
    assert batch["image"].tolist() == [[[[51] * 3]], [[[2] * 3]]]
    assert batch["label"].tolist() == [[[7]], [[255]]]
    assert batch["valid"].tolist() == [[[True]], [[False]]]
