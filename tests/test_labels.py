"""The class tables against their owners' definitions."""

import numpy as np
import pytest

from jaxseg.labels import CAMVID, CITYSCAPES, LABELS, VOC2012, VOID, Label, Labels


def test_class_counts():
    assert {name: labels.num_classes for name, labels in LABELS.items()} == {
        "cityscapes": 19, "voc2012": 21, "camvid": 11, "camvid32": 31, "ade20k": 150, "synthetic": 19,
    }  # fmt: skip


@pytest.mark.parametrize(("raw", "train"), [(7, 0), (8, 1), (11, 2), (17, 5), (23, 10), (26, 13), (31, 16), (33, 18)])
def test_cityscapes_train_ids(raw, train):
    """Spot checks against cityscapesScripts' labels.py."""
    assert CITYSCAPES.train_id_of_raw[raw] == train


def test_cityscapes_has_34_ids_of_which_15_are_void():
    ids = CITYSCAPES.train_id_of_raw
    assert (ids[:34] >= 0).all()
    assert (ids[34:] == -1).all()
    assert (ids == VOID).sum() == 15


def test_voc_palette_is_the_development_kits_bit_pattern():
    """VOClabelcolormap.m: bit 3j+i of the index becomes bit 7-j of channel i."""
    for index in range(21):
        color = [sum(((index >> (3 * j + i)) & 1) << (7 - j) for j in range(3)) for i in range(3)]
        assert VOC2012.palette[index].tolist() == color


def test_camvid_void_is_11():
    assert CAMVID.train_id_of_raw[11] == VOID
    assert CAMVID.names[0] == "sky"
    assert CAMVID.names[10] == "bicyclist"


def test_palette_is_black_where_nothing_is_defined():
    assert np.array_equal(CAMVID.palette[11:], np.zeros((245, 3)))


def test_void_has_the_owners_color_unless_a_class_has_it():
    """VOC's border is (224, 224, 192) in the development kit; Cityscapes' "unlabeled" is black. Predicted masks keep black."""
    assert (VOC2012.void_color, CITYSCAPES.void_color, CAMVID.void_color) == ((224, 224, 192), (0, 0, 0), (0, 0, 0))
    assert VOC2012.palette[VOID].tolist() == [0, 0, 0]
    black = (Label("background", 0, 0, (0, 0, 0)), Label("leaf", 1, 1, (0, 128, 0)))
    assert Labels(black, "own").void_color == (255, 255, 255)  # no void
    assert Labels((*black, Label("void", 2, VOID, (0, 0, 0))), "own").void_color == (255, 255, 255)
    assert Labels((*black, Label("void", 2, VOID, (9, 9, 9))), "own").void_color == (9, 9, 9)
    for labels in LABELS.values():
        assert labels.void_color not in {row.color for row in labels.classes}
