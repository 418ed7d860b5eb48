"""Model 1 of the study (U-Net, cross-entropy) on Cityscapes: 2,975 training and 500 validation images, 19 classes.

Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024, Table 1, Model 1.
Command:   python -m jaxseg.main --config=configs/unet_cityscapes.py --config.data.source_dir=FOLDER
Variant:   configs/unet_cityscapes.py:released does what the study's released code does where it differs from its text.
Time:      74,375 steps of 8 images.
Expected:  the paper reports IoU 0.5931, Acc 0.9388 for :released. Not run to the end here yet.
"""

from jaxseg.config import check_variant, default, follow_released_code


def get_config(variant: str = ""):
    check_variant(variant, ("released",))
    config = default()  # is the study's text on Cityscapes
    if variant == "released":
        follow_released_code(config)
    return config
