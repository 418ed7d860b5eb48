"""Model 1 of the study (U-Net, cross-entropy) on Cityscapes: 2,975 training and 500 validation images, 19 classes.

Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024, Table 1, Model 1.
Command:   python -m jaxseg.main --config=configs/unet_cityscapes.py --config.data.source_dir=FOLDER
Variants:  configs/unet_cityscapes.py:report does what the study's longer report says where it differs: the best checkpoint by
           training loss. configs/unet_cityscapes.py:released does what the study's released code does.
Time:      74,375 steps of 8 images.
Expected:  the paper reports IoU 0.5931, Acc 0.9388 for :released. Not run to the end here yet.
"""

from jaxseg.config import check_variant, default, follow_released_code, follow_report


def get_config(variant: str = ""):
    check_variant(variant, ("report", "released"))
    config = default()  # is the study's text on Cityscapes
    if variant == "report":
        follow_report(config)
    if variant == "released":
        follow_released_code(config)
    return config
