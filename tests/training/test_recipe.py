"""A whole recipe in the loop: it resumes exactly, is scored, loaded and exported by its average, and ends early.

AdamW by kernels, warm-up, steps, clipping, a moving average. Values of the pieces are in test_optimizers.py and
test_state.py.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxseg.config import load_config
from jaxseg.config_checks import validate
from jaxseg.errors import InputError
from jaxseg.export import load
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.training import checkpoint
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.peers import create_peers, restore_peers
from tests.configs import changed, tiny_config
from tests.runs import assert_same, lines, saved

RECIPE = {
    "name": "adamw",
    "weight_decay": 0.01,
    "clip_norm": 0.5,
    "schedule": "step",
    "warmup_steps": 2,
    "ema_decay": 0.9,
}


def with_recipe(config):
    config.optim.update(RECIPE)
    return config


@pytest.fixture(scope="module")
def recipe_run(camvid_dir, prepared_camvid, tmp_path_factory):
    """Trained whole: 5 steps, scored at 3 and 5; to be read only."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    train_and_evaluate(with_recipe(tiny_config(camvid_dir, prepared_camvid)), folder)
    return folder


def test_it_resumes_bit_for_bit(tiny, tmp_path, recipe_run, capsys):
    """2 + 3 = 5 steps: parameters, optimizer, statistics, the average of both, and the log. The first part is told to be
    all warm-up."""
    with_recipe(tiny)
    for steps in (2, 0):
        tiny.train.max_steps = steps
        train_and_evaluate(tiny, tmp_path / "parts")
        said = " ".join(capsys.readouterr().out.split())
        assert ("end before its learning rate has warmed up" in said) == (steps == 2)
    assert (tmp_path / "parts/train.jsonl").read_text() == (recipe_run / "train.jsonl").read_text()
    whole = saved(recipe_run, tiny)
    assert len([path for path in whole if ".ema" in path]) == 100  # 64 parameters and 36 statistics
    assert_same(saved(tmp_path / "parts", tiny), whole)


def test_its_rates_are_the_recipes(recipe_run):
    """Half of 1e-3, all of it; then down at the shares 0.5 and 0.75 of three updates, 2 and 2 when rounded."""
    rates = [line["unet/learning_rate"] for line in lines(recipe_run / "train.jsonl")]
    np.testing.assert_allclose(rates, [5e-4, 1e-3, 1e-3, 1e-3, 1e-5], rtol=1e-6)


def test_its_average_is_what_is_used(tiny, recipe_run):
    """By validation, `evaluate`, `predict`, `export`, and a run that starts from it; the weights themselves are others."""
    with_recipe(tiny)
    scored = score_checkpoint(load_config(recipe_run), recipe_run, "last")
    assert scored["peers"]["unet"]["mean_iou"] == lines(recipe_run / "eval.jsonl")[-1]["unet/mean_iou"]
    leaves = saved(recipe_run, tiny)
    kernel = leaves["['unet'].ema['params']['head']['kernel']"]
    mean = leaves["['unet'].ema['batch_stats']['encoder1']['norm1']['mean']"]
    assert not np.array_equal(kernel, leaves["['unet'].params['head']['kernel']"])
    assert not np.array_equal(mean, leaves["['unet'].batch_stats['encoder1']['norm1']['mean']"])
    _, peers = restore_peers(tiny, recipe_run, "last")
    _, exported = load(tiny, recipe_run, "last", "unet")
    with checkpoint.open_manager(recipe_run, tiny.checkpoint, read_only=True) as manager:
        best = manager.best_step()
    tiny.model.init_from = str(recipe_run)
    started, reports = create_peers(tiny, num_classes=11, steps=1)
    for variables in ({"params": peers["unet"].params, "batch_stats": peers["unet"].batch_stats}, exported):
        assert np.array_equal(variables["params"]["head"]["kernel"], kernel)
        assert np.array_equal(variables["batch_stats"]["encoder1"]["norm1"]["mean"], mean)
    of_best = saved(recipe_run, with_recipe(load_config(recipe_run)), best)
    assert np.array_equal(started["unet"].params["head"]["kernel"], of_best["['unet'].ema['params']['head']['kernel']"])
    assert f"step {best} params/head/kernel [1, 1, 4, 11]" in reports["unet"].loaded


# ---- Early stopping


def on_a_plateau(config, patience=2):
    """Nothing is learned, statistics do not move: all evaluations are the same, at 3, 5, 8, 10, 13 and 15 steps."""
    config.optim.update({"name": "sgd", "learning_rate": 0.0})
    config.train.epochs = 6
    config.eval.patience = patience
    return config


@pytest.fixture
def plateau(tiny, trained_run):
    tiny.model.update({"init_from": str(trained_run), "freeze_batchnorm": True})
    return on_a_plateau(tiny)


def test_a_plateau_ends_the_run(plateau, tmp_path, capsys):
    """The first evaluation is the best; two more without a better one end it. It says so, also when started again, and is
    not trained further; with more patience it goes on. The statistics are those of the start: they are frozen."""
    run = tmp_path / "run"
    results = train_and_evaluate(plateau, run)
    assert [line["step"] for line in lines(run / "eval.jsonl")] == [3, 5, 8]
    assert results["step"] == 8
    assert "of step 3, in 2 evaluations (config.eval.patience=2)" in results["ended_early"]
    assert "ended at step 8 of 15:" in " ".join(capsys.readouterr().out.split())
    start, _ = create_peers(plateau, num_classes=11, steps=1)
    _, end = restore_peers(load_config(run), run, "last")
    jax.tree.map(np.testing.assert_array_equal, end["unet"].batch_stats, start["unet"].batch_stats)
    log = (run / "train.jsonl").read_text()
    again = train_and_evaluate(plateau, run)
    assert (again["step"], again["ended_early"]) == (results["step"], results["ended_early"])
    assert (run / "train.jsonl").read_text() == log
    plateau.eval.patience = 3
    longer = train_and_evaluate(plateau, run)
    assert longer["step"] == 10
    assert "in 3 evaluations" in longer["ended_early"]
    plateau.eval.patience = 0
    whole = train_and_evaluate(plateau, run)
    assert (whole["step"], whole["ended_early"]) == (15, None)


def test_a_run_that_was_stopped_decides_as_one_that_was_not(plateau, tmp_path):
    """In two parts, the first of which has an evaluation more, at its end; then with its last checkpoint lost."""
    run = tmp_path / "run"
    plateau.train.max_steps = 4
    assert train_and_evaluate(plateau, run)["ended_early"] is None
    plateau.train.max_steps = 0
    results = train_and_evaluate(plateau, run)
    log = (run / "eval.jsonl").read_text()
    assert [line["step"] for line in lines(run / "eval.jsonl")] == [3, 4, 5, 8]
    assert "in 2 evaluations" in results["ended_early"]
    shutil.rmtree(run / f"checkpoints/{results['step']}")
    again = train_and_evaluate(plateau, run)
    assert (again["step"], again["ended_early"]) == (results["step"], results["ended_early"])
    assert (run / "eval.jsonl").read_text() == log
    assert json.loads((run / "results.json").read_text())["ended_early"] == results["ended_early"]


def test_patience_is_for_validation():
    with pytest.raises(InputError, match=r"config\.eval\.patience=3 .*config\.checkpoint\.best='train_loss'"):
        validate(changed(eval__patience=3, checkpoint__best="train_loss"))


def test_a_warm_up_of_the_whole_run_is_refused(tiny, tmp_path):
    tiny.optim.warmup_steps = 5
    with pytest.raises(InputError, match=r"config\.optim\.warmup_steps=5, .* is 5 steps"):
        train_and_evaluate(tiny, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
