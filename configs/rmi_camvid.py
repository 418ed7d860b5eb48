"""Model 2 of the study (U-Net, λ BCE + (1 - λ) RMI, λ = 0.5) on CamVid in 11 classes: 367 training and 101 validation images.

Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024; CamVid is not in it. The loss is
           Zhao et al., arXiv 1910.12037, equation 17, with their max pooling 3 and radius 3.
Command:   python -m jaxseg.main --config=configs/rmi_camvid.py --config.data.source_dir=FOLDER
Variants:  configs/rmi_camvid.py:report does what the study's longer report says: batches of 2, Adam at 1e-4, and what
           configs/unet_camvid.py:report does. configs/rmi_camvid.py:released does what the study's released code does:
           the same batches and rate, no pooling before RMI, and what configs/unet_camvid.py:released does.
Time:      9,175 steps of 8 images; :report and :released 36,700 of 2.
Expected:  not run to the end yet.
"""

from jaxseg.config import check_variant, default, follow_released_rmi, follow_report_rmi, use_rmi


def get_config(variant: str = ""):
    check_variant(variant, ("report", "released"))
    config = default()
    config.data.name = "camvid"
    config.eval.every_epochs = 10
    use_rmi(config)
    if variant == "report":
        follow_report_rmi(config)
    if variant == "released":
        follow_released_rmi(config)
    return config
