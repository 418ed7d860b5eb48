"""A run's folder belongs to one process, one config and one data set."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxseg.config import add_peer, load_config
from jaxseg.errors import InputError
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.optimizers import make_optimizer, make_schedule
from jaxseg.training.peers import restore_peers
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


# ---- Runs of before `optim.decay_on`: adam's and sgd's decay was decoupled, and a warm-up began at 0


def as_before(run, **optim):
    """`run` with a config.json of then."""
    stored = json.loads((run / "config.json").read_text())
    stored["config"]["optim"] = {"name": "adam", "learning_rate": 0.001, "schedule": "constant", "warmup_steps": 0}
    stored["config"]["optim"] |= {"weight_decay": 0.0} | optim
    (run / "config.json").write_text(json.dumps(stored))
    return run


def test_a_run_of_before_without_decay_goes_on(tiny, copy_of, trained_run):
    run = as_before(copy_of(trained_run), warmup_steps=2)
    tiny.optim.warmup_steps = 2  # it is behind that, and the same from there on
    assert train_and_evaluate(tiny, run)["step"] == 5


def test_adam_with_decay_of_before_is_adamw(tiny, tmp_path):
    """Not the same now by the same command, but by the name that it has now, with the state that it had then."""
    decoupled = {"name": "adamw", "weight_decay": 0.1, "decay_on": "all"}
    tiny.optim.update(decoupled)
    tiny.train.max_steps = 1
    train_and_evaluate(tiny, tmp_path / "run")
    run = as_before(tmp_path / "run", weight_decay=0.1)
    tiny.train.max_steps = 2
    tiny.optim.update({"name": "adam", "decay_on": "weights"})
    with pytest.raises(InputError) as caught:
        train_and_evaluate(tiny, run)
    assert "config.optim.name: 'adamw' there, 'adam' now" in str(caught.value)
    assert "config.optim.decay_on: 'all' there, 'weights' now" in str(caught.value)
    tiny.optim.update(decoupled)
    assert train_and_evaluate(tiny, run)["step"] == 2
    rate = optax.scale_by_learning_rate(make_schedule(tiny.optim, steps=5))
    then = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1), rate).init(jnp.ones(3))
    assert jax.tree.structure(make_optimizer(tiny.optim, steps=5).init(jnp.ones(3))) == jax.tree.structure(then)


def test_sgd_with_decay_of_before_does_not_go_on(tiny, copy_of, trained_run):
    """Only what was not yet computed is; and its networks predict, whatever its optimizer held."""
    run = as_before(copy_of(trained_run), name="sgd", weight_decay=0.1)
    tiny.optim.update({"name": "sgd", "weight_decay": 0.1})
    with pytest.raises(InputError, match=r"config\.optim\.weight_decay=0\.1: SGD's decay was decoupled there"):
        train_and_evaluate(tiny, run)
    assert restore_peers(load_config(run), run, "last")[0] == 5
    shutil.rmtree(run / "checkpoints")
    tiny.train.max_steps = 1
    assert train_and_evaluate(tiny, run)["step"] == 1


def test_a_run_of_before_does_not_go_on_amid_its_warm_up(tiny, copy_of, trained_run):
    run = as_before(copy_of(trained_run), warmup_steps=4)
    shutil.rmtree(run / "checkpoints/5")
    tiny.optim.warmup_steps = 4
    with pytest.raises(InputError, match=r"config\.optim\.warmup_steps=4: update i of n had i/n of the rate there"):
        train_and_evaluate(tiny, run)


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
