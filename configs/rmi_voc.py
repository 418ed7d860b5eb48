"""Model 2 of the study (U-Net, λ BCE + (1 - λ) RMI, λ = 0.5) on PASCAL VOC 2012: 1,464 training and 1,449 validation images.

Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024, Table 1, Model 2; the loss is
           Zhao et al., arXiv 1910.12037, equation 17, with their max pooling 3 and radius 3.
Command:   python -m jaxseg.main --config=configs/rmi_voc.py --config.data.source_dir=FOLDER
           (or --config.data.download=True: 2.0 GB from the challenge's site)
Variants:  configs/rmi_voc.py:report does what the study's longer report says: batches of 2, Adam at 1e-4, and what
           configs/unet_voc.py:report does. configs/rmi_voc.py:released does what the study's released code does:
           the same batches and rate, no pooling before RMI, and what configs/unet_voc.py:released does.
Time:      36,600 steps of 8 images; :report and :released 146,400 of 2.
Expected:  the paper reports IoU 0.0607, Acc 0.6893 for :released. Not run to the end here yet.
"""

from jaxseg.config import check_variant, default, follow_released_rmi, follow_report_rmi, use_rmi


def get_config(variant: str = ""):
    check_variant(variant, ("report", "released"))
    config = default()
    config.data.name = "voc2012"
    use_rmi(config)
    if variant == "report":
        follow_report_rmi(config)
    if variant == "released":
        follow_released_rmi(config)
    return config
