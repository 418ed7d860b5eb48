"""A run's folder belongs to one process, one config and one data set."""

import os
import shutil

import pytest

from jaxseg.config import add_peer
from jaxseg.errors import InputError
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.workdir import lock_workdir


def test_a_second_process_on_one_folder_is_refused(tiny, tmp_path):
    with lock_workdir(tmp_path / "run"), pytest.raises(InputError, match="another process is training there"):
        train_and_evaluate(tiny, tmp_path / "run")
    tiny.train.max_steps = 1
    train_and_evaluate(tiny, tmp_path / "run")  # it let go


def test_another_config_is_refused_with_the_difference(tiny, copy_of, trained_run):
    run = copy_of(trained_run)
    tiny.optim.learning_rate = 0.5
    tiny.data.threads = 3  # may change
    with pytest.raises(InputError) as caught:
        train_and_evaluate(tiny, run)
    assert "config.optim.learning_rate: 0.001 there, 0.5 now" in str(caught.value)
    assert "threads" not in str(caught.value)


def test_other_data_is_refused(tiny, tmp_path, camvid_dir, copy_of, trained_run):
    run = copy_of(trained_run)
    tiny.data.dir = str(tmp_path / "data")
    copy = shutil.copytree(camvid_dir, tmp_path / "copy")
    for folder in ("train", "trainannot"):
        (copy / folder / "train_0.png").unlink()
    tiny.data.source_dir = str(copy)
    with pytest.raises(InputError, match=r"the prepared data: fingerprint \w+ there, \w+ now"):
        train_and_evaluate(tiny, run)


def test_weights_that_could_not_be_read_do_not_claim_the_folder(tiny, tmp_path):
    tiny.train.max_steps = 1
    tiny.model.init_from = "missing.npz"
    with pytest.raises(InputError, match=r"missing\.npz: there is no such file"):
        train_and_evaluate(tiny, tmp_path / "run")
    tiny.model.init_from = ""
    assert train_and_evaluate(tiny, tmp_path / "run")["step"] == 1
    tiny.model.init_from = "missing.npz"
    with pytest.raises(InputError, match=r"config.model.init_from: '' there, 'missing.npz' now"):
        train_and_evaluate(tiny, tmp_path / "run")


def test_other_peers_are_refused_with_the_difference(tiny, copy_of, trained_run):
    run = copy_of(trained_run)
    add_peer(tiny, "teacher")
    with pytest.raises(InputError) as caught:
        train_and_evaluate(tiny, run)
    assert "config.peers.teacher.model.name: no such peer there, 'unet' now" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "train.jsonl", "eval.jsonl", "results.json", "predictions.png"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nowhere"])
def test_what_is_no_file_where_one_goes_is_told_before_training(tiny, tmp_path, name, kind):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nowhere": lambda: path.symlink_to("x")}[kind]()
    with pytest.raises(InputError, match=f"{name}: something else than the file that a run writes is there"):
        train_and_evaluate(tiny, tmp_path / "run")


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "damaged"])
def test_what_is_no_folder_where_one_goes_is_told_before_training(tiny, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("x")
    with pytest.raises(InputError, match=f"{name}: not a folder; move it away"):
        train_and_evaluate(tiny, tmp_path / "run")


def test_a_log_of_another_network_is_told(tiny, copy_of, trained_run):
    run = copy_of(trained_run)
    log = run / "train.jsonl"
    log.write_text(log.read_text().replace("unet/loss", "net/loss"))
    (run / "eval.jsonl").write_text("")
    tiny.train.epochs = 3
    with pytest.raises(InputError, match=r"train.jsonl: step 1 has no unet/loss"):
        train_and_evaluate(tiny, run)
