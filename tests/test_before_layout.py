"""Runs of before: a folder that was written when the package was one flat folder is loaded, scored, shown and gone on with.

tests/fixtures/before_layout holds it as it was: 4 steps on a tiny CamVid, prepared records, an evaluation.
"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import jaxseg
from tests import ROOT
from tests.runs import call, lines, run_command

WRITTEN = ROOT / "tests" / "fixtures" / "before_layout"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A copy of it, beside its data; config.data.dir in it is "data"."""
    shutil.copytree(WRITTEN, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before" / "run"


def test_it_is_loaded_and_predicts(run):
    network = jaxseg.load(run)
    assert network.step == 4
    with Image.open(run / "evaluation-4/0000_unet.png") as picture:
        before = np.array(picture)
    with Image.open(run / "evaluation-4/0000_image.jpg") as picture:
        again = network.predict(picture, resize="none")
    assert again.shape == before.shape
    assert (again == before).mean() > 0.5  # JPEG is not quite what was scored


def test_it_is_scored_the_same(run):
    before = json.loads((run / "evaluation-4.json").read_text())
    done = run_command("jaxseg.evaluate", "--workdir=run", "--config.data.source_dir=", "--output=again.json")
    assert done.returncode == 0, done.stderr
    again = json.loads((run.parent / "again.json").read_text())
    assert again["peers"]["unet"]["confusion"] == before["peers"]["unet"]["confusion"]
    assert again["images"] == before["images"]
    assert again["data"] == before["data"]


def test_its_page_is_made(run):
    done = call("jaxseg.report", "--html", "run")
    assert done.returncode == 0, done.stderr
    text = (run / "report.html").read_text()
    score = json.loads((run / "evaluation-4.json").read_text())["peers"]["unet"]["mean_iou"]
    assert f"{score:.3f}" in text
    assert text.count('class="example"') == 2


def test_it_goes_on(run):
    """For another epoch, on the records that were prepared then."""
    before = lines(run / "train.jsonl")
    fingerprint = json.loads((run / "results.json").read_text())["data"]["fingerprint"]
    fields = ["data.size_px=32", "data.crop_px=32", "data.dir=data", "model.features=1", "eval.batch_size=2"]
    fields += ["train.batch_size=2", "train.epochs=3"]
    words = ["--config=configs/unet_camvid.py", "--workdir=run", *(f"--config.{field}" for field in fields)]
    done = run_command("jaxseg.main", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 6  # 4 images in batches of 2
    assert results["data"]["fingerprint"] == fingerprint
    assert lines(run / "train.jsonl")[:4] == before
    assert [line["step"] for line in lines(run / "train.jsonl")] == [1, 2, 3, 4, 5, 6]
