"""The trial on four images, and the times of steps."""

import json

import numpy as np
import pytest

from jaxseg.config import default
from jaxseg.data.prepare import prepare
from jaxseg.data.synthetic import render_scene
from jaxseg.errors import InputError
from jaxseg.training import overfit
from tests.runs import call


def test_the_images_are_the_central_squares_of_the_first(tiny):
    prepared = prepare(tiny.data)
    few = overfit.first_images(prepared, crop_px=32)
    records = prepared.records("train")
    assert few.images("train") == few.images("val") == 4
    for number, held in enumerate(few.records("val")):
        assert held["id"] == records[number]["id"]
        assert (held["image"] == records[number]["image"][2:34, 2:34]).all()  # 32 of 36 pixels
        assert (held["label"] == records[number]["label"][2:34, 2:34]).all()
    assert few.valid_pixels("val") == sum((held["label"] != 255).sum() for held in few.records("train"))
    with pytest.raises(InputError, match="crop_px=48 does not fit the smallest train image"):
        overfit.first_images(prepared, crop_px=48)


def test_rare_classes_are_void_in_a_trial(tiny, monkeypatch):
    prepared = prepare(tiny.data)
    monkeypatch.setattr(overfit, "FEWEST_PIXELS", 300)
    records = prepared.records("train")
    crops = [records[number]["label"][2:34, 2:34] for number in range(4)]
    before = np.bincount(np.concatenate([crop.ravel() for crop in crops]), minlength=256)
    after = overfit.first_images(prepared, crop_px=32).summary["train"]["pixels_of_label"]
    assert (before[:11] < 300).any()
    for label in range(11):
        assert after.get(str(label), 0) == (before[label] if before[label] >= 300 else 0)
    assert sum(after.values()) == 4 * 32 * 32


def test_a_trial_sees_the_images_as_they_are(tiny):
    tiny.augment.update({"name": "usual", "flip": 0.25})
    assert overfit.overfit_config(tiny).augment == default().augment
    assert tiny.augment.flip == 0.25


def test_scorings_become_rare(tiny):
    tiny.train.max_steps = 30
    assert sorted(overfit.evaluation_steps(tiny)) == [1, 2, 3, 4, 6, 8, 11, 15, 20, 26, 30]


@pytest.mark.slow
def test_a_small_unet_learns_four_rendered_scenes(tmp_path):
    """The real thing: rendered scenes, cross-entropy, Adam at 1e-2, 8 features, squares of 32 pixels.

    Slow: up to 600 steps.
    """
    config = default()
    config.data.update({"name": "synthetic", "scenes": 12, "dir": str(tmp_path), "resize": "shorter_side"})
    config.data.update({"size_px": 64, "crop_px": 32, "threads": 2})
    config.model.features, config.optim.learning_rate = 8, 1e-2
    config.train.max_steps = 600
    assert render_scene(0)[0].shape == (128, 256, 3)  # so that squares of 32 pixels are cut from 64×128
    results = overfit.overfit(config, tmp_path / "run")
    assert results["learned"]
    assert results["peers"]["unet"]["mean_iou"] > 0.95
    assert results["peers"]["unet"]["pixels"] <= 4 * 32 * 32
    assert results["step"] < 600
    said = overfit.verdict(results, config, [1.0])
    assert said.startswith("learned: mean IoU ")
    assert (tmp_path / "run/trial/predictions.png").exists()


def test_what_learns_nothing_is_told_and_a_trial_begins_anew(camvid_dir, tmp_path):
    fields = [f"data.source_dir={camvid_dir}", f"data.dir={tmp_path / 'data'}", "data.size_px=36", "data.crop_px=32"]
    fields += ["model.features=4", "train.max_steps=3", "optim.learning_rate=0.0"]
    arguments = ["--config=configs/unet_camvid.py", "--mode=overfit", *(f"--config.{f}" for f in fields)]
    (tmp_path / "run/trial/checkpoints/7").mkdir(parents=True)  # of an earlier trial, which is not gone on with
    (tmp_path / "run/trial/config.json").write_text('{"config": {}, "data": ""}')
    ended = call("jaxseg.main", *arguments, f"--workdir={tmp_path / 'run'}")
    assert ended.returncode == 1, ended.stderr
    assert "not learned: mean IoU 0.0" in ended.stdout
    assert "it hardly fell: try config.optim.learning_rate" in ended.stdout
    lines = (tmp_path / "run/trial/train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert not (tmp_path / "run/trial/checkpoints/7").exists()


def test_the_verdict_tells_slow_from_stuck():
    scores = {"mean_iou": 0.5, "iou": {"road": 0.9, "pole": 0.1, "sky": None}}
    results = {
        "peers": {"unet": scores},
        "step": 70,
        "training_s": 61.0,
        "learned": False,
        "data": {"train": 4},
    }
    falling = overfit.verdict(results, default(), [2.0] + [1.0] * 20)
    assert "the loss went from 2 to 1, it falls" in falling
    assert "(worst: pole, 0.100; 70 steps, 61 s after the first)" in falling
    stuck = overfit.verdict(results, default(), [2.0] + [1.9] * 20)
    assert "try config.optim.learning_rate=0.01 or 0.0001 (now 0.001)" in stuck
