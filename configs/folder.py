"""A folder of your own: a recipe that usually works for some hundred pictures.

Paper:     none; each value by its source in configs/README.md. The network is Chen et al., DeepLabV3+ (arXiv 1802.02611), on
           an ImageNet ResNet-50; AdamW, polynomial decay, flips, scales, rotations and colors, and averaged weights.
Command:   python -m jaxseg.data.check --source_dir=MY_DATA --write_classes   # then name the classes in MY_DATA/classes.toml
           python -m jaxseg.main --config=configs/folder.py --config.data.source_dir=MY_DATA
Variant:   configs/folder.py:scratch is a U-Net without pretrained weights; on two CPU cores add
           --config.model.features=16 --config.data.size_px=128 --config.data.crop_px=112.
Weights:   torchvision's, 102 MB, are fetched once; where they cannot be had the run says so and begins with fresh ones.
Expected:  not run to the end on a GPU yet. What the parts bring at a small size: results/README.md.
"""

from jaxseg.config import check_variant, default


def get_config(variant: str = ""):
    check_variant(variant, ("scratch",))
    config = default()
    config.data.update({"name": "folder", "resize": "shorter_side", "size_px": 256, "crop_px": 224})
    config.augment.name = "usual"
    config.optim.update({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01})
    config.optim.update({"schedule": "poly", "ema_decay": 0.999})
    config.train.epochs = 100
    config.eval.every_epochs = 10
    if variant == "":
        config.peer = "deeplabv3plus"
        config.model.update({"name": "deeplabv3plus", "init_from": "torchvision/resnet50", "init_required": False})
        config.optim.backbone_rate = 0.1
    return config
