"""The first thing to run: a small U-Net on rendered street scenes, five minutes on two CPU cores.

Command:   bash scripts/demo.sh   (or: python -m jaxseg.main --config=configs/demo.py)
"""

from jaxseg.config import check_variant, default


def get_config(variant: str = ""):
    check_variant(variant, ())
    config = default()
    config.data.name = "synthetic"
    config.data.resize = "shorter_side"  # 256×128 scenes to 192×96
    config.data.size_px = 96
    config.data.crop_px = 96
    config.model.features = 16
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "cosine"
    config.train.epochs = 12
    config.eval.every_epochs = 4
    config.eval.batch_size = 16
    return config
