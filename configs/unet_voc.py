"""Model 1 of the study (U-Net, cross-entropy) on PASCAL VOC 2012: 1,464 training and 1,449 validation images.

Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024, Table 1, Model 1.
Command:   python -m jaxseg.main --config=configs/unet_voc.py --config.data.source_dir=FOLDER
           (or --config.data.download=True: 2.0 GB from the challenge's site)
Variants:  configs/unet_voc.py:report does what the study's longer report says where it differs: the best checkpoint by
           training loss. configs/unet_voc.py:released does what the study's released code does.
Time:      36,600 steps of 8 images.
Expected:  the paper reports IoU 0.1965, Acc 0.7367 for :released. Not run to the end here yet.
"""

from jaxseg.config import check_variant, default, follow_released_code, follow_report


def get_config(variant: str = ""):
    check_variant(variant, ("report", "released"))
    config = default()
    config.data.name = "voc2012"
    if variant == "report":
        follow_report(config)
    if variant == "released":
        follow_released_code(config)
    return config
