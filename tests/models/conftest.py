"""What PyTorch recorded of DeepLabV3."""

import pytest


@pytest.fixture(scope="module")
def recorded(golden):
    return golden("deeplabv3_r50_c21")
