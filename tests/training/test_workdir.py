"""A run's folder belongs to one process, one config and one data set."""

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
