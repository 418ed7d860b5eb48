"""Model 2 of the study (U-Net, λ BCE + (1 - λ) RMI, λ = 0.5) on Cityscapes: 2,975 training and 500 validation images.

Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024, Table 1, Model 2; the loss is
           Zhao et al., arXiv 1910.12037, equation 17, with their max pooling 3 and radius 3.
Command:   python -m jaxseg.main --config=configs/rmi_cityscapes.py --config.data.source_dir=FOLDER
Variants:  configs/rmi_cityscapes.py:report does what the study's longer report says: batches of 2, Adam at 1e-4, and what
           configs/unet_cityscapes.py:report does. configs/rmi_cityscapes.py:released does what the study's released code does:
           the same batches and rate, no pooling before RMI, and what configs/unet_cityscapes.py:released does.
Time:      74,375 steps of 8 images; :report and :released 297,500 of 2.
Expected:  the paper reports IoU 0.5244, Acc 0.9345 for :released. Not run to the end here yet.
"""

from jaxseg.config import check_variant, default, follow_released_rmi, follow_report_rmi, use_rmi


def get_config(variant: str = ""):
    check_variant(variant, ("report", "released"))
    config = default()
    use_rmi(config)
    if variant == "report":
        follow_report_rmi(config)
    if variant == "released":
        follow_released_rmi(config)
    return config
