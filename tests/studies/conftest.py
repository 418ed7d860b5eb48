"""A plan of two runs that take seconds."""

import pytest

PLAN = """
title = "Tiny"
note = "A note."
device = "cpu"
[[grid]]
models = ["unet"]
datasets = ["synthetic"]
seeds = [0]
[[grid]]
arm = "unet_more"
models = ["unet"]
datasets = ["synthetic"]
seeds = [0]
starts_from = "unet"
config.optim.learning_rate = 1e-4
[config]
data = {{ dir = "{data_dir}", scenes = 12, size_px = 36, crop_px = 32, threads = 1 }}
model.features = 2
optim.schedule = "constant"
train = {{ epochs = 3, log_every_steps = 1 }}
eval = {{ every_epochs = 1, batch_size = 4, figure_images = 1 }}
checkpoint.every_steps = 1
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(PLAN.format(data_dir=tmp_path / "data"))
    return path
