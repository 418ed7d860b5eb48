"""Model 1 of the study (U-Net, cross-entropy) on CamVid in 11 classes: 367 training and 101 validation images.

Paper:     "Deep Image Segmentation based on Mutual Information: A Study", RECPAD 2024; CamVid is not in it.
Command:   python -m jaxseg.main --config=configs/unet_camvid.py --config.data.source_dir=FOLDER
Variants:  configs/unet_camvid.py:report does what the study's longer report says where it differs: the best checkpoint by
           training loss. configs/unet_camvid.py:released does what the study's released code does.
Time:      9,175 steps.
Expected:  not run to the end yet. With --config.model.features=16 --config.eval.view=center --config.train.epochs=30:
           mean IoU 0.393 / 0.410 / 0.487 after 5 / 10 / 30 epochs (results/unet_camvid_f16); the same network in PyTorch,
           one run, 0.29 / 0.43 / 0.51.
"""

from jaxseg.config import check_variant, default, follow_released_code, follow_report


def get_config(variant: str = ""):
    check_variant(variant, ("report", "released"))
    config = default()
    config.data.name = "camvid"
    config.eval.every_epochs = 10
    if variant == "report":
        follow_report(config)
    if variant == "released":
        follow_released_code(config)
    return config
