"""The loop end to end on tiny data: what it writes, that it resumes exactly, and how it stops."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg.config import load_config
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.errors import InputError, NonFiniteError
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.training import checkpoint
from jaxseg.training.loop import train_and_evaluate
from tests.runs import assert_same, lines, saved


def test_a_run_writes_what_the_readme_says(tiny, tmp_path):
    tiny.eval.figure_images = 4
    results = train_and_evaluate(tiny, tmp_path / "run")
    run = tmp_path / "run"
    assert results == json.loads((run / "results.json").read_text())
    assert results["step"] == 5  # 2 epochs of 10 images in batches of 4
    assert [line["step"] for line in lines(run / "train.jsonl")] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines(run / "eval.jsonl")] == [3, 5]
    prepared = prepare(tiny.data)
    score = results["peers"]["unet"]
    assert score["pixels"] == prepared.valid_pixels("val")
    assert list(score["iou"]) == list(prepared.labels.names)
    assert score["mean_iou"] == lines(run / "eval.jsonl")[-1]["unet/mean_iou"]
    confusion = np.array(score["confusion"])
    assert score["pixel_accuracy"] == np.trace(confusion) / confusion.sum()
    assert results["config"] == tiny.to_dict()
    assert results["data"] == {"name": "camvid", "fingerprint": prepared.fingerprint, "train": 10, "val": 5}
    assert results["versions"]["jax"] == jax.__version__
    assert results["device"] == {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
    }
    assert (run / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").iterdir())
    assert not list(run.glob("*.part"))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_and_three_steps_are_five(tiny, tmp_path, trained_run, workers):
    """Parameters, optimiser, statistics and logged losses, bit for bit; step 4 is in the second epoch. The whole run has no
    workers. Slow with two: they are started six times and import all that a run does."""
    parts = tmp_path / "parts"
    tiny.data.workers = workers
    tiny.train.max_steps = 2
    train_and_evaluate(tiny, parts)
    first_part = (parts / "train.jsonl").read_text()
    tiny.train.max_steps = 0
    train_and_evaluate(tiny, parts)
    assert (parts / "train.jsonl").read_text().startswith(first_part)
    assert (parts / "train.jsonl").read_text() == (trained_run / "train.jsonl").read_text()
    assert_same(saved(parts, tiny), saved(trained_run, tiny))


def test_steps_after_the_last_checkpoint_are_logged_once(tiny, copy_of, trained_run):
    """As after a kill between two checkpoints: their lines are dropped and written again, the same."""
    run = copy_of(trained_run)
    shutil.rmtree(run / "checkpoints/5")
    with (run / "train.jsonl").open("a") as file:
        file.write('{"step": 6, "unet/lo')  # cut short
    train_and_evaluate(tiny, run)
    assert lines(run / "train.jsonl") == lines(trained_run / "train.jsonl")
    assert [line["step"] for line in lines(run / "eval.jsonl")] == [3, 5]


def cut_biggest(folder):
    biggest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[: biggest.stat().st_size // 2])


def drop_metadata(folder):
    next(folder.rglob("_METADATA")).unlink()


def drop_peer(folder):
    shutil.rmtree(folder / "unet")


def flip_bit(folder):
    """In the middle of the biggest file: of the size it was, and readable."""
    biggest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.write_bytes(content)


def drop_sums(folder):
    (folder / checkpoint.SUMS).unlink()


@pytest.mark.parametrize("damage", [cut_biggest, flip_bit, drop_metadata, drop_peer, drop_sums])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tiny, copy_of, trained_run, capsys, damage):
    run = copy_of(trained_run)
    damage(run / "checkpoints/5")
    files = sorted(path.name for path in (run / "checkpoints/5").rglob("*"))
    train_and_evaluate(tiny, run)
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoints/5: this checkpoint cannot be read" in said
    assert "the one before it, of step 3, is used" in said
    assert "going on from step 3" in said
    assert sorted(path.name for path in (run / "damaged/5").rglob("*")) == files  # nothing is deleted
    assert (run / "train.jsonl").read_text() == (trained_run / "train.jsonl").read_text()
    assert_same(saved(run, tiny), saved(trained_run, tiny))


def test_where_no_checkpoint_can_be_read_nothing_is_moved(tiny, copy_of, trained_run):
    run = copy_of(trained_run)
    for step in (3, 5):
        drop_peer(run / f"checkpoints/{step}")
    with pytest.raises(InputError, match=r"checkpoints/5: .* No other checkpoint can be read either"):
        train_and_evaluate(tiny, run)
    assert not (run / "damaged").exists()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "5"]


def test_a_finished_run_is_scored_again_not_trained(tiny, copy_of, trained_run):
    run = copy_of(trained_run)
    again = train_and_evaluate(tiny, run)
    assert again["peers"] == json.loads((trained_run / "results.json").read_text())["peers"]
    assert len(lines(run / "train.jsonl")) == 5


def test_numbers_that_are_not_finite_stop_the_run(tiny, tmp_path):
    """Steps of 1e30 overflow the norm at once; nothing of that is saved, and the images are those of that step."""
    tiny.optim.update({"name": "sgd", "learning_rate": 1e30})
    with pytest.raises(NonFiniteError) as caught:
        train_and_evaluate(tiny, tmp_path / "run")
    message = str(caught.value)
    assert "unet/param_norm became inf at step 1 (steps 1 to 1 were looked at" in message
    ids = pipeline.image_ids(prepare(tiny.data), tiny, step=0)
    assert f"Images of its batch: {', '.join(ids)}." in message
    assert not [p for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdecimal()]


def test_any_checkpoint_is_scored_again_the_same(trained_run):
    at_step = {line["step"]: line for line in lines(trained_run / "eval.jsonl")}
    for which in ("3", "last", "best"):
        results = score_checkpoint(load_config(trained_run), trained_run, which)
        assert results["peers"]["unet"]["mean_iou"] == at_step[results["step"]]["unet/mean_iou"]


@pytest.mark.parametrize("view", ["center", "random"])
def test_other_views_score_crops(tiny, tmp_path, view):
    tiny.train.max_steps = 1
    tiny.eval.update({"view": view, "passes": 1 if view == "center" else 3})
    results = train_and_evaluate(tiny, tmp_path / "run")
    assert 0 < results["peers"]["unet"]["pixels"] <= 5 * 32 * 32 * tiny.eval.passes


# ---- Several peers


@pytest.mark.parametrize(("split", "lacks"), [("train", "nothing to learn from"), ("val", "no score of it is defined")])
def test_a_split_that_is_all_void_is_refused_before_training(tiny, tmp_path, camvid_dir, split, lacks):
    copy = shutil.copytree(camvid_dir, tmp_path / "raw")
    for path in (copy / f"{split}annot").iterdir():
        with Image.open(path) as mask:
            size = mask.size
        Image.new("L", size, 11).save(path)  # CamVid's void
    tiny.data.update({"source_dir": str(copy), "dir": str(tmp_path / "data")})
    with pytest.raises(InputError, match=rf"every pixel of the {split} split of camvid .* is void, so .*{lacks}"):
        train_and_evaluate(tiny, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_crops_without_a_valid_pixel_give_null(tiny, tmp_path, camvid_dir):
    """One pixel of the validation split, in a corner, is valid: central crops see none. The best is by a score that is not
    there, and the JSON says null."""
    copy = shutil.copytree(camvid_dir, tmp_path / "raw")
    for path in (copy / "valannot").iterdir():
        with Image.open(path) as mask:
            label = np.full(mask.size[::-1], 11, np.uint8)
        label[0, 0] = 0
        Image.fromarray(label).save(path)
    tiny.data.update({"source_dir": str(copy), "dir": str(tmp_path / "data"), "resize": "none"})
    tiny.eval.view = "center"
    results = train_and_evaluate(tiny, tmp_path / "run")
    stored = json.loads((tmp_path / "run/results.json").read_text(), parse_constant=pytest.fail)
    assert stored["peers"]["unet"]["mean_iou"] is None
    assert stored["best"]["metrics"]["mean_iou"] is None
    assert results["peers"]["unet"]["pixels"] == 0
    assert json.loads(json.dumps(train_and_evaluate(tiny, tmp_path / "run")["step"])) == 5  # it can be read again
