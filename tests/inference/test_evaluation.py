"""Scoring image by image: against plain predictions and counts by NumPy."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import evaluate, metrics
from jaxseg.config import load_config
from jaxseg.data.prepare import prepare, raw_source
from jaxseg.data.sources import read_sample
from jaxseg.errors import InputError
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.inference.options import InferenceOptions
from jaxseg.reporting.html.runs import newest_scores
from jaxseg.training import parallel, validation
from jaxseg.training.peers import restore_peers
from tests.runs import call


def counted(pairs):
    """Confusion [11, 11] of (label, prediction)."""
    total = np.zeros((11, 11), np.int64)
    for label, prediction in pairs:
        for truth, found in zip(label[label < 11], prediction[label < 11], strict=True):
            total[truth, found] += 1
    return total.tolist()


@pytest.fixture(scope="module")
def network(tiny_run):
    return jaxseg.load(tiny_run)


def test_scores_of_images_add_up_to_those_of_training(tiny_run, network, tmp_path):
    config = load_config(tiny_run)
    results = score_checkpoint(config, tiny_run, "last", thumbnails=tmp_path)
    prepared = prepare(config.data)
    peers = parallel.replicate(restore_peers(config, tiny_run, "last")[1])
    eval_step = parallel.compile_eval_step(num_classes=11)
    trained = validation.evaluate(eval_step, peers, prepared, config).confusion["unet"]
    scores = results["peers"]["unet"]
    assert scores["confusion"] == trained.tolist()
    records = {record["id"].decode(): record for record in prepared.records("val")}
    assert [image["number"] for image in results["images"]] == [0, 1, 2, 3, 4]
    assert [image["id"] for image in results["images"]] == sorted(records)
    for image, score in zip(results["images"], scores["images"], strict=True):
        record, number = records[image["id"]], image["number"]
        prediction = network.predict(record["image"], resize="none")
        confusion = np.array(counted([(record["label"], prediction)]))
        assert score["mean_iou"] == pytest.approx(metrics.mean_iou(confusion))
        assert score["pixel_accuracy"] == pytest.approx(metrics.pixel_accuracy(confusion))
        for name, expected in (("truth", record["label"]), ("unet", prediction)):
            with Image.open(tmp_path / f"{number:04d}_{name}.png") as picture:
                assert (np.array(picture) == expected).all()
        with Image.open(tmp_path / f"{number:04d}_image.jpg") as picture:
            assert np.abs(np.array(picture).astype(int) - record["image"]).mean() < 25  # JPEG of noise


@pytest.mark.parametrize(
    "options",
    [
        InferenceOptions(),
        InferenceOptions(resize="none", window_px=32, flip=True),
        InferenceOptions(scales=(0.5, 1.0), batch=3),
    ],
)
def test_at_full_resolution_predictions_come_back_to_the_raw_labels(tiny_run, network, options):
    config = load_config(tiny_run)
    results = score_checkpoint(config, tiny_run, "last", options=options, full_resolution=True)
    source = raw_source(config.data)
    pairs = []
    for sample in source.samples["val"]:
        image, label = read_sample(source, sample)
        assert label.shape == (40, 48)  # as the files, not 36×36 as prepared
        pairs.append((label, network.predict(image, **dataclasses.asdict(options))))
    assert results["peers"]["unet"]["confusion"] == counted(pairs)
    assert results["protocol"] == f"raw labels, every pixel once; images {options}"


def test_full_resolution_without_raw_files_is_refused(tiny_run):
    config = load_config(tiny_run)
    prepare(config.data)
    config.data.source_dir = ""
    with pytest.raises(InputError, match=r"--full_resolution reads the raw labels.*give --config.data.source_dir=DIR"):
        score_checkpoint(config, tiny_run, "last", full_resolution=True)


def test_random_crops_are_images_of_their_own(tiny_run):
    config = load_config(tiny_run)
    config.eval.update({"view": "random", "passes": 2, "batch_size": 4})
    results = score_checkpoint(config, tiny_run, "last")
    assert [image["number"] for image in results["images"]] == list(range(10))
    assert sum(image["id"].endswith(", crop 2") for image in results["images"]) == 5
    assert results["protocol"] == "prepared images and labels (square, side 36 pixels), random 32 pixels, 2 passes"


def test_the_command_writes_scores_and_pictures(tiny_run, tmp_path):
    output = tmp_path / "scores.json"
    ended = call("jaxseg.evaluate", f"--workdir={tiny_run}", "--flip", "--scales=1,1.5", f"--output={output}")
    assert ended.returncode == 0, ended.stderr
    results = json.loads(output.read_text())
    scores = results["peers"]["unet"]
    bits = scores["information"]
    shown = {
        "mean accuracy": scores["mean_accuracy"],
        "frequency-weighted IoU": scores["frequency_weighted_iou"],
        "micro IoU": scores["micro_iou"],
        "one-vs-rest accuracy": scores["one_vs_rest_accuracy"],
        "boundary IoU": scores["boundary_iou"],
        "I(truth; prediction), bits": bits["mutual"],
    }
    for title, value in shown.items():
        assert re.search(rf"{re.escape(title)} +│ +{value:.4f} ", ended.stdout), title
    assert f"H(truth) is {bits['truth']:.4f} bits a pixel." in ended.stdout
    assert sum(of_class["mutual"] for of_class in bits["by_class"].values()) == pytest.approx(bits["mutual"], rel=1e-12)
    assert bits["left"] == pytest.approx(bits["truth"] - bits["mutual"], rel=1e-9)
    assert "worst: " in ended.stdout
    assert results["protocol"].endswith("images at their own pixels, in one piece, scales 1, 1.5, and mirrored")
    pictures = sorted(path.name for path in (tmp_path / "scores").glob("[!.]*"))
    assert pictures == sorted(f"{n:04d}_{name}" for n in range(5) for name in ("image.jpg", "truth.png", "unet.png"))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("full_resolution", [False, True])
def test_another_split_is_scored_and_named(tiny_run, full_resolution):
    config = load_config(tiny_run)
    results = score_checkpoint(config, tiny_run, "last", split="train", full_resolution=full_resolution)
    source = raw_source(config.data)
    assert [image["id"] for image in results["images"]] == sorted(sample.id for sample in source.samples["train"])
    assert len(results["images"]) == 10  # of validation there are 5
    assert results["split"] == "train"
    pixels = prepare(config.data).valid_pixels("train")
    if full_resolution:
        labels = [read_sample(source, sample)[1] for sample in source.samples["train"]]
        pixels = sum(int((label < 11).sum()) for label in labels)
        assert results["protocol"].endswith("; split train")
    assert np.sum(results["peers"]["unet"]["confusion"]) == pixels


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tiny_run):
    ended = call("jaxseg.evaluate", f"--workdir={tiny_run}", "--split=tset", f"--output={tiny_run}/scores.json")
    assert ended.returncode == 2
    assert "--split=tset: camvid has no such split; expected train or val" in ended.stderr


def test_scores_of_other_data_are_not_replaced(tiny_run, copy_of):
    """Of another split by the name; of other images, as where a link of a folder led elsewhere, by the fingerprint."""
    run = copy_of(tiny_run)
    for words in ([], ["--split=train"]):
        ended = call("jaxseg.evaluate", f"--workdir={run}", *words)
        assert ended.returncode == 0, ended.stderr
    val, train = (json.loads((run / f"evaluation-0{name}.json").read_text()) for name in ("", "-train"))
    assert (val["split"], len(val["images"])) == ("val", 5)
    assert (train["split"], len(train["images"])) == ("train", 10)
    assert newest_scores(run) == run / "evaluation-0.json"  # though the other was written last

    val["data"]["fingerprint"] = "0123456789abcdef"
    other = json.dumps(val)
    (run / "evaluation-0.json").write_text(other)
    assert call("jaxseg.evaluate", f"--workdir={run}").returncode == 0
    assert (run / "evaluation-0.json").read_text() == other
    beside = run / f"evaluation-0-{prepare(load_config(run).data).fingerprint}.json"
    assert json.loads(beside.read_text())["peers"]["unet"]["confusion"] == val["peers"]["unet"]["confusion"]
    assert beside.with_suffix("").is_dir()

    ended = call("jaxseg.evaluate", f"--workdir={run}", f"--output={run}/evaluation-0.json")
    assert ended.returncode == 2
    assert "holds the scores of other data (split val, fingerprint 0123456789abcdef; now split val" in ended.stderr
    assert (run / "evaluation-0.json").read_text() == other


def test_where_scores_cannot_go_is_told_before_scoring(tiny_run, copy_of, monkeypatch):
    run = copy_of(tiny_run)
    (run / "evaluation-0.json").mkdir()
    monkeypatch.setattr(evaluate, "score_checkpoint", None)
    ended = call("jaxseg.evaluate", f"--workdir={run}")
    assert ended.returncode == 2
    assert "evaluation-0.json: cannot be read" in ended.stderr
    assert not list(run.glob("*.part"))
