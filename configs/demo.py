"""The first thing to run: a small U-Net on rendered street scenes, in a few minutes on two CPU cores.

Command:   bash scripts/demo.sh   (or: python -m jaxseg.main --config=configs/demo.py)
Data:      400 training and 80 validation scenes, rendered on first use, 9 of Cityscapes' 19 classes.
Time:      3 minutes on two CPU cores, rendering and compilation included.
Variant:   configs/demo.py:rmi adds the RMI loss; four minutes, mean IoU 0.679, accuracy 0.938 (results/demo_rmi).
           configs/demo.py:mutual trains a smaller U-Net and a small DeepLabV3 together, a minute of training, a minute and a
           half in all; mean IoU of the student 0.40 to 0.42 over three seeds, alone 0.40 to 0.49 (results/demo_mutual).
Expected:  mean IoU 0.688, accuracy 0.946 (results/demo). By color alone 0.263 and 0.599, by the most frequent class
           0.039 and 0.355 (scripts/figures/color_baseline.py).
"""

from jaxseg.config import check_variant, default, use_mutual_learning, use_rmi


def get_config(variant: str = ""):
    check_variant(variant, ("rmi", "mutual"))
    config = default()
    config.data.name = "synthetic"
    config.data.resize = "shorter_side"  # 256×128 scenes to 192×96
    config.data.size_px = 96
    config.data.crop_px = 64
    config.model.features = 12
    config.optim.learning_rate = 5e-3
    config.optim.schedule = "cosine"
    config.train.epochs = 32
    config.train.batch_size = 4
    config.eval.every_epochs = 16
    config.eval.batch_size = 16
    if variant == "rmi":
        use_rmi(config)
    if variant == "mutual":
        use_mutual_learning(config)
        config.model.features = 8
        config.train.epochs = config.eval.every_epochs = 10
        config.peers.teacher.model.update({"backbone": "resnet14", "stem_features": 8})
        config.peers.teacher.optim.update(config.optim)
    return config
