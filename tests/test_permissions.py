"""Files and folders that may not be read or written: a sentence with the path, whatever they are."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from jaxseg.config import load_config
from jaxseg.data.prepare import MANIFEST, prepare
from jaxseg.data.sources import find_source, read_sample
from jaxseg.errors import InputError
from jaxseg.files import read_json_lines
from jaxseg.training.loop import train_and_evaluate
from tests import raw_data
from tests.configs import tiny_config

NOBODY = 65_534
"x".encode("cp437")  # zipfile's; loaded here, as somebody else may not read Python's own files


@contextlib.contextmanager
def forbidden(path: Path, mode: int = 0):
    """The path with those permissions, which root would not heed: as somebody else."""
    before = path.stat().st_mode
    path.chmod(mode)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        path.chmod(before)


@pytest.fixture
def here():
    """A folder that everybody may look into; pytest's own are of one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def config(here):
    raw_data.write_camvid(here / "raw", train=2, val=1)
    return tiny_config(here / "raw", here / "data")


def refused(function, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        function()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("place", ["raw", "raw/train", "raw/train/train_0.png", "raw/trainannot/train_0.png"])
def test_raw_files(config, here, place):
    with forbidden(here / place):
        refused(lambda: prepare(config.data), str(here / "raw"), "ermission denied")


@pytest.mark.parametrize("name", ["leftImg8bit", "gtFine"])
def test_zip(here, name):
    raw_data.zip_cityscapes(raw_data.write_cityscapes(here / "city", train=1, val=1), here / "zips")
    path = here / f"zips/{name}_trainvaltest.zip"
    with forbidden(path):
        refused(lambda: find_source("cityscapes", here / "zips"), f"{path}: cannot be read (Permission denied)")


def test_tar(here):
    raw_data.tar_voc(raw_data.write_voc(here / "voc", train=1, val=1), here / "tar")
    path = next((here / "tar").iterdir())
    with forbidden(path):
        refused(lambda: find_source("voc2012", here / "tar"), f"{path}: cannot be read (Permission denied)")
    source = find_source("voc2012", here / "tar")
    with forbidden(path):
        refused(lambda: read_sample(source, source.samples["train"][0]), str(path), "ermission denied")


def test_lock_and_records(config, here):
    prepared = prepare(config.data)
    with forbidden(here / "data/prepare.lock"):
        assert prepare(config.data).fingerprint == prepared.fingerprint  # which needs no lock
        config.data.size_px = 40
        refused(lambda: prepare(config.data), "prepare.lock", "cannot be locked")
    config.data.update({"size_px": 36, "source_dir": ""})
    for path in (here / "data/prepared", prepared.folder, prepared.folder / MANIFEST):
        with forbidden(path):
            refused(lambda: prepare(config.data), "nothing prepared in config.data.dir")
    with forbidden(next(prepared.folder.glob("*val*array_record*"))):
        refused(lambda: list(prepare(config.data).records("val")), str(prepared.folder))


@pytest.mark.parametrize("name", ["config.json", "train.jsonl"])
def test_files_of_a_run(here, trained_run, name):
    shutil.copytree(trained_run, here / "run")
    with forbidden(here / "run" / name):
        read = {
            "config.json": lambda: load_config(here / "run"),
            "train.jsonl": lambda: read_json_lines(here / "run" / name),
        }
        refused(read[name], str(here / "run" / name), "ermission denied")


@pytest.mark.parametrize("mode", [0, 0o555])
def test_the_folder_of_a_run(config, here, mode):
    prepare(config.data)
    (here / "run").mkdir()
    with forbidden(here / "run", mode):
        refused(lambda: train_and_evaluate(config, here / "run"), f"--workdir={here / 'run'}", "ermission denied")


def test_records_where_none_can_be_written(config, here):
    prepare(config.data)
    config.data.size_px = 40
    (here / "data").chmod(0o777)
    (here / "data/prepare.lock").chmod(0o666)
    with forbidden(here / "data/prepared/segmentation", 0o555):
        refused(lambda: prepare(config.data), str(here / "data/prepared/segmentation"), "ermission denied")
    shutil.rmtree(here / "data/prepared")
    (here / "data/prepared").write_text("x")
    refused(lambda: prepare(config.data), str(here / "data/prepared"), "cannot be written")
