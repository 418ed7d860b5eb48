"""Scores image by image, by hand."""

import numpy as np
import pytest

from jaxseg.inference.per_image import LabeledImage, PerImageScores, worst_images
from jaxseg.labels import LABELS


def test_boundary_iou_and_the_worst_images_of_hand_made_maps():
    """Road (3) left, sky (0) right in 10×10; the prediction's border is a column further, then all is wrong."""
    label = np.where(np.arange(10) < 5, 3, 0)[None].repeat(10, 0).astype(np.uint8)
    shifted = np.where(np.arange(10) < 6, 3, 0)[None].repeat(10, 0).astype(np.uint8)
    scores = PerImageScores(LABELS["camvid"], ["unet"])
    image = np.zeros((10, 10, 3), np.uint8)
    scores.update(LabeledImage(1, "b", image, label), {"unet": shifted})
    scores.update(LabeledImage(0, "a", image, label), {"unet": np.where(label == 3, 0, 3).astype(np.uint8)})
    scores.update(LabeledImage(2, "c", image, np.full((10, 10), 255, np.uint8)), {"unet": label})
    results = {"reported_peer": "unet"} | scores.results()
    assert [image["id"] for image in results["images"]] == ["a", "b", "c"]
    assert results["peers"]["unet"]["images"][2]["mean_iou"] is None
    # b: road 50 of 60 pixels, sky 40 of 50
    assert results["peers"]["unet"]["images"][1]["mean_iou"] == pytest.approx((50 / 60 + 40 / 50) / 2)
    assert worst_images(results, 2) == [("a", 0.0), ("b", pytest.approx((50 / 60 + 40 / 50) / 2))]
    # Bands are 1 pixel wide (2 % of 14). b: of road, the truth's band is the rim and column 4 (5 + 5 + 8 + 8 = 26 pixels), the
    # prediction's the rim and column 5 (28), and both have 10 of the left end and 4 + 4 of top and bottom, columns 1 to 4.
    # a: nothing is right; the bands are 26 and 26 pixels of each class. c is void.
    road = results["peers"]["unet"]["boundary"]["road"]
    assert road == pytest.approx(18 / (26 + 28 - 18 + 26 + 26))
