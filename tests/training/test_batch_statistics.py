"""BatchNorm over a single value per channel is refused before anything is compiled."""

import pytest

from jaxseg.config import default, use_mutual_learning
from jaxseg.config_checks import check_batch_statistics
from jaxseg.errors import InputError
from jaxseg.training.loop import train_and_evaluate


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"name": "deeplabv3", "batch_size": 1}, ["config.train.batch_size=1", "pooled branch of unet"]),
        (
            {"name": "deeplabv3", "batch_size": 4, "accumulate_steps": 4},
            ["config.train.batch_size=4", "config.train.accumulate_steps=4"],
        ),
        ({"name": "unet", "batch_size": 1, "crop_px": 16}, ["lowest level of its crops of unet"]),
        ({"name": "deeplabv3", "batch_size": 2}, []),
        ({"name": "deeplabv3", "batch_size": 4, "accumulate_steps": 2}, []),
        ({"name": "unet", "batch_size": 1, "crop_px": 32}, []),
        ({"name": "unet", "batch_size": 2, "crop_px": 16}, []),
    ],
)
def test_one_value_per_channel_is_refused(fields, names):
    config = default()
    config.model.name = fields["name"]
    config.data.crop_px = fields.get("crop_px", 224)
    config.train.batch_size = fields["batch_size"]
    config.train.accumulate_steps = fields.get("accumulate_steps", 1)
    if not names:
        return check_batch_statistics(config)
    with pytest.raises(InputError) as caught:
        check_batch_statistics(config)
    assert all(name in str(caught.value) for name in names)


def test_a_teacher_that_is_not_trained_may_see_one_image():
    """It runs with its running statistics."""
    config = default()
    use_mutual_learning(config)
    config.train.batch_size = 1
    with pytest.raises(InputError, match=r"of teacher \(config.peers.teacher.model.name='deeplabv3'\)"):
        check_batch_statistics(config)
    config.peers.teacher.frozen = True
    check_batch_statistics(config)


def test_training_refuses_before_data_are_prepared(tmp_path):
    config = default()
    config.model.name = "deeplabv3"
    config.train.batch_size = 1
    config.data.dir = str(tmp_path / "data")
    with pytest.raises(InputError, match="one image per pass"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "data").exists()
