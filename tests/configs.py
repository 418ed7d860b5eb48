"""Configs that tests train with."""

from pathlib import Path

from jaxseg.config import (
    default,
    get_field,
)


def changed(config=None, **fields):
    config = default() if config is None else config
    with config.unlocked():
        for path, value in fields.items():
            section, _, leaf = path.replace("__", ".").rpartition(".")
            (get_field(config, section) if section else config)[leaf] = value
    return config


def tiny_config(camvid_dir: Path, data_dir: Path):
    config = default()
    config.data.update({"name": "camvid", "source_dir": str(camvid_dir), "dir": str(data_dir)})
    config.data.update({"size_px": 36, "crop_px": 32, "threads": 2})
    config.model.features = 4
    config.train.update({"batch_size": 4, "epochs": 2, "log_every_steps": 2})
    config.eval.update({"every_epochs": 1, "batch_size": 4, "figure_images": 0})
    return config
