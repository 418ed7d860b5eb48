"""A folder of one's own from masks to page: the classes are the user's, and the run keeps them."""

import json

import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg.config import load_config
from jaxseg.labels import CAMVID, labels_of
from jaxseg.training.loop import train_and_evaluate
from tests import own_data
from tests.configs import changed, tiny_config
from tests.runs import assert_same, call, saved


@pytest.fixture(scope="module")
def binary_run(tmp_path_factory):
    """A run on masks of 0 and 255, and its folder of pictures, which is gone."""
    root = tmp_path_factory.mktemp("own")
    own_data.write_binary(root / "pictures", count=8)
    config = changed(tiny_config(root / "pictures", root / "data"), data__name="folder", train__epochs=1)
    results = train_and_evaluate(config, root / "run")
    (root / "pictures").rename(root / "moved")
    return root, results


def test_results_carry_the_classes_of_the_folder(binary_run):
    _, results = binary_run
    labels = labels_of(json.loads(json.dumps(results["data"])))
    assert labels.names == ("background", "foreground")
    assert list(results["peers"]["unet"]["iou"]) == ["background", "foreground"]
    assert labels.display_name == "pictures"


def test_predict_works_from_the_run_alone(binary_run):
    root, _ = binary_run
    network = jaxseg.load(root / "run")
    assert network.labels.names == ("background", "foreground")
    done = call(
        "jaxseg.predict", f"--workdir={root / 'run'}", str(root / "moved/images/0.jpg"), f"--output={root / 'out'}"
    )
    assert done.returncode == 0, done.stderr
    with Image.open(root / "out/masks/0.png") as mask, Image.open(root / "out/label_ids/0.png") as ids:
        assert np.array_equal(np.array(ids), 255 * np.array(mask))  # as the masks of the folder have them
    (picture,) = json.loads((root / "out/predictions.json").read_text())["pictures"].values()
    assert set(picture["share_of_pixels"]) <= {"background", "foreground"}


def test_evaluate_page_and_export(binary_run):
    root, _ = binary_run
    source = f"--config.data.source_dir={root / 'moved'}"
    done = call("jaxseg.evaluate", f"--workdir={root / 'run'}", source, "--full_resolution")
    assert done.returncode == 0, done.stderr
    done = call("jaxseg.report", "--html", str(root / "run"))
    assert done.returncode == 0, done.stderr
    page = (root / "run/report.html").read_text()
    assert "foreground" in page
    assert "run on moved" in page  # as the folder is called now
    done = call("jaxseg.export", f"--workdir={root / 'run'}", "--format=safetensors")
    assert done.returncode == 0, done.stderr
    about = json.loads(next((root / "run/export").glob("*.json")).read_text())
    assert about["classes"] == {"0": "background", "1": "foreground"}


def test_classes_of_another_folder_are_not_scored(binary_run, tmp_path):
    root, _ = binary_run
    other = own_data.write_as_colors(tmp_path)
    done = call("jaxseg.evaluate", f"--workdir={root / 'run'}", f"--config.data.source_dir={other}")
    assert done.returncode == 2
    assert "are not those that the run was trained with (background, foreground)" in done.stderr


@pytest.mark.slow
def test_training_on_colors_is_training_on_ids(tmp_path):
    """CamVid as the package knows it, and as a folder of color masks with classes.toml: the same weights, bit for bit.

    Slow: it trains two networks."""
    own = own_data.write_as_colors(tmp_path, train=6, val=2)
    runs = {}
    for name, folder in (("camvid", tmp_path / "camvid"), ("folder", own)):
        config = changed(tiny_config(folder, tmp_path / "data"), data__name=name, train__epochs=1)
        results = train_and_evaluate(config, tmp_path / name)
        runs[name] = saved(tmp_path / name, load_config(tmp_path / name)), results["peers"]
    assert_same(runs["folder"][0], runs["camvid"][0])
    assert runs["folder"][1] == runs["camvid"][1]
    assert list(runs["folder"][1]["unet"]["iou"]) == list(CAMVID.names)
