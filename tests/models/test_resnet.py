"""Strides and dilations of the backbones."""

import pytest

from jaxseg.models.resnet import plan


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [  # torchvision's replace_stride_with_dilation: (False, True, True), (False, False, True), none
        (8, [(3, 1, (1, 1)), (4, 2, (1, 1)), (6, 1, (1, 2)), (3, 1, (2, 4))]),
        (16, [(3, 1, (1, 1)), (4, 2, (1, 1)), (6, 2, (1, 1)), (3, 1, (1, 2))]),
        (32, [(3, 1, (1, 1)), (4, 2, (1, 1)), (6, 2, (1, 1)), (3, 2, (1, 1))]),
    ],
)
def test_strides_and_dilations_are_torchvisions(output_stride, expected):
    assert plan("resnet50", output_stride) == expected
