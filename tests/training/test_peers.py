"""Several networks in one run, and runs that start from others."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxseg.config import add_peer, load_config
from jaxseg.data.prepare import prepare
from jaxseg.errors import InputError
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.training import checkpoint
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.peers import class_weights, create_peers, make_losses
from tests.runs import assert_same, lines, of_training, saved


def test_two_peers_resume_exactly_and_are_scored_by_name(tiny_mutual, tmp_path, trained_mutual_run):
    """2 + 2 = 4 steps bit for bit, of both peers (the teacher has dropout); the student is the one reported."""
    config, whole, parts = tiny_mutual, trained_mutual_run, tmp_path / "parts"
    results = json.loads((whole / "results.json").read_text())
    for steps in (2, 4):
        config.train.max_steps = steps
        train_and_evaluate(config, parts)
    assert (parts / "train.jsonl").read_text() == (whole / "train.jsonl").read_text()
    a, b = saved(whole, config), saved(parts, config)
    assert {path.split("'")[1] for path in a} == {"student", "teacher"}
    assert_same(b, a)
    line = lines(whole / "train.jsonl")[-1]
    for name in ("student", "teacher"):
        assert line[f"{name}/learning_rate"] == 1e-3
        np.testing.assert_allclose(line[f"{name}/loss"], line[f"{name}/pixel"] + line[f"{name}/kl"], rtol=1e-6)
    assert results["reported_peer"] == "student"
    assert list(results["peers"]) == ["student", "teacher"]
    scored = score_checkpoint(load_config(whole), whole, "last")
    assert of_training(scored["peers"]) == results["peers"]
    evaluated = lines(whole / "eval.jsonl")[-1]
    for name, score in scored["peers"].items():
        assert evaluated[f"{name}/mean_iou"] == score["mean_iou"]
    manager = checkpoint.open_manager(whole, config.checkpoint, read_only=True)
    assert manager.metrics(4)["mean_iou"] == scored["peers"]["student"]["mean_iou"]


@pytest.mark.slow
def test_updates_in_turn_resume_exactly(tiny_mutual, tmp_path, trained_mutual_run):
    """1 + 2 = 3 steps bit for bit, and not those of updates at once. Slow: compiles the step once more, and runs it thrice.

    In the default set is the same for updates at once, above.
    """
    tiny_mutual.mutual.updates = "in_turn"
    tiny_mutual.train.max_steps = 3
    train_and_evaluate(tiny_mutual, tmp_path / "whole")
    for steps in (1, 3):
        tiny_mutual.train.max_steps = steps
        train_and_evaluate(tiny_mutual, tmp_path / "parts")
    logged = lines(tmp_path / "whole" / "train.jsonl")
    assert lines(tmp_path / "parts" / "train.jsonl") == logged
    assert_same(saved(tmp_path / "parts", tiny_mutual), saved(tmp_path / "whole", tiny_mutual))
    together = lines(trained_mutual_run / "train.jsonl")
    np.testing.assert_allclose(logged[0]["teacher/loss"], together[0]["teacher/loss"], rtol=1e-5)
    assert abs(logged[0]["student/kl"] - together[0]["student/kl"]) > 1e-5


def test_the_student_starts_as_it_would_alone(tiny_mutual):
    peers, _ = create_peers(tiny_mutual, num_classes=11, steps=1)
    with tiny_mutual.unlocked():
        del tiny_mutual.peers["teacher"]
    alone, _ = create_peers(tiny_mutual, num_classes=11, steps=1)
    jax.tree.map(np.testing.assert_array_equal, peers["student"].params, alone["student"].params)


def test_peers_of_one_kind_start_from_different_weights(tiny):
    add_peer(tiny, "second").model.features = 4
    peers, _ = create_peers(tiny, num_classes=11, steps=1)
    first, second = (peers[name].params["head"]["kernel"] for name in ("unet", "second"))
    assert not np.array_equal(first, second)


def test_a_run_teaches_the_next(tiny, tmp_path, trained_run):
    """A frozen teacher is the best checkpoint of its run, says so, and is the same at the end; so is init_from alone."""
    shutil.copytree(trained_run, tmp_path / "first")
    with checkpoint.open_manager(tmp_path / "first", tiny.checkpoint, read_only=True) as manager:
        best = manager.best_step()
    trained = saved(tmp_path / "first", tiny, best)
    second = tiny.copy_and_resolve_references()
    second.peer = "student"
    teacher = add_peer(second, "teacher")
    teacher.frozen, teacher.model.features, teacher.model.init_from = True, 4, str(tmp_path / "first")
    results = train_and_evaluate(second, tmp_path / "second")
    assert list(results["peers"]) == ["student", "teacher"]
    (tmp_path / "first").rename(tmp_path / "elsewhere")  # a run goes on without what it started from
    assert train_and_evaluate(second, tmp_path / "second")["peers"] == results["peers"]
    (tmp_path / "elsewhere").rename(tmp_path / "first")
    line = lines(tmp_path / "second/train.jsonl")[-1]
    assert line["student/kl"] > 0
    assert not [key for key in line if key.startswith("teacher")]
    told = (tmp_path / "second/init_teacher.txt").read_text()
    assert f"loaded   step {best} params/head/kernel [1, 1, 4, 11]" in told
    ends = saved(tmp_path / "second", second)
    held = [path for path in ends if path.startswith("['teacher']") and ("params" in path or "batch_stats" in path)]
    assert len(held) == 100
    for path in held:
        assert np.array_equal(ends[path], trained[path.replace("teacher", "unet")]), path
    third = tiny.copy_and_resolve_references()
    third.model.init_from = str(tmp_path / "first")
    peers, _ = create_peers(third, num_classes=11, steps=1)
    kernel = peers["unet"].params["head"]["kernel"]
    assert np.array_equal(kernel, trained["['unet'].params['head']['kernel']"])


def test_a_teacher_that_does_not_fit_is_refused(tiny, tmp_path, trained_run):
    shutil.copytree(trained_run, tmp_path / "first")
    tiny.peer = "student"
    teacher = add_peer(tiny, "teacher")
    teacher.frozen, teacher.model.features, teacher.model.init_from = True, 5, str(tmp_path / "first")
    with pytest.raises(
        InputError, match=r"config.peers.teacher.model.init_from=.*another network: features: 4 there, 5 here"
    ):
        create_peers(tiny, num_classes=11, steps=1)
    teacher.model.features = 4
    with pytest.raises(
        InputError, match=r"cannot be read as peer unet of this network .*float32\[11\] there, float32\[7\]"
    ):
        create_peers(tiny, num_classes=7, steps=1)
    teacher.model.init_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config.peers.teacher.model.init_from=.*nowhere: there is no such file"):
        create_peers(tiny, num_classes=11, steps=1)
    (tmp_path / "empty").mkdir()
    teacher.model.init_from = str(tmp_path / "empty")
    with pytest.raises(InputError, match=r"empty: no run there"):
        create_peers(tiny, num_classes=11, steps=1)
    shutil.rmtree(tmp_path / "first/checkpoints")
    teacher.model.init_from = str(tmp_path / "first")
    with pytest.raises(InputError, match=r"checkpoints: there is no checkpoint"):
        create_peers(tiny, num_classes=11, steps=1)


# ---- Losses


def test_class_weights_are_of_the_training_images(tiny, prepared_camvid):
    """From the stored labels, counted once more; numbers are as given; the reported peer's and a further one's."""
    prepared = prepare(tiny.data)
    labels = [record["label"] for record in prepared.records("train")]
    pixels = np.array([sum((label == k).sum() for label in labels) for k in range(11)])
    beside = np.array([sum((label != 255).sum() for label in labels if (label == k).any()) for k in range(11)])
    add_peer(tiny, "second").loss.class_weights = "median_frequency"
    add_peer(tiny, "third").loss.class_weights = ",".join(map(str, range(11)))
    add_peer(tiny, "fourth")
    tiny.loss.class_weights = "inverse"
    weights = class_weights(tiny, prepared)
    assert set(weights) == {"unet", "second", "third"}
    seen = pixels > 0
    np.testing.assert_allclose(np.array(weights["unet"])[seen], pixels.sum() / seen.sum() / pixels[seen])
    frequency = pixels[seen] / beside[seen]
    np.testing.assert_allclose(np.array(weights["second"])[seen], np.median(frequency) / frequency)
    assert not np.array(weights["unet"])[~seen].any()
    assert weights["third"] == tuple(map(float, range(11)))
    losses = make_losses(tiny, weights=weights)
    assert {name: loss.class_weights for name, loss in losses.items()} == weights | {"fourth": None}


def test_records_of_before_lack_the_count(tiny, prepared_camvid):
    prepared = prepare(tiny.data)
    train = {key: value for key, value in prepared.summary["train"].items() if key != "pixels_of_images_with_label"}
    old = dataclasses.replace(prepared, summary=prepared.summary | {"train": train})
    tiny.loss.class_weights = "inverse"
    assert class_weights(tiny, old) == class_weights(tiny, prepared)
    tiny.loss.class_weights = "median_frequency"
    with pytest.raises(InputError, match=r"config.loss.class_weights=median_frequency.*Remove that folder"):
        class_weights(tiny, old)


@pytest.mark.slow
def test_a_ramp_resumes_exactly(tiny, tmp_path):
    """1 + 3 = 4 steps bit for bit, with weights, smoothing and a region term that rises from step 1 to step 3.

    Three runs with their evaluations. In the default set is the same of the step alone: test_step_of_losses.py.
    """
    tiny.loss.update({"name": "pixel_and_dice", "ramp_steps": 2, "start_steps": 1, "label_smoothing": 0.1})
    tiny.loss.class_weights = "inverse"
    tiny.train.max_steps = 4
    train_and_evaluate(tiny, tmp_path / "whole")
    for steps in (1, 4):
        tiny.train.max_steps = steps
        train_and_evaluate(tiny, tmp_path / "parts")
    logged = lines(tmp_path / "whole" / "train.jsonl")
    assert [line["unet/ramp"] for line in logged] == [0, 0, 0.5, 1]
    assert lines(tmp_path / "parts" / "train.jsonl") == logged
    assert_same(saved(tmp_path / "parts", tiny), saved(tmp_path / "whole", tiny))


def test_a_network_for_other_classes_starts_from_a_run_without_its_head(tiny, tmp_path, trained_run):
    with checkpoint.open_manager(trained_run, tiny.checkpoint, read_only=True) as manager:
        trained = saved(trained_run, tiny, manager.best_step())
    shutil.copytree(trained_run, tmp_path / "first")
    tiny.model.init_from = str(tmp_path / "first")
    with pytest.raises(InputError, match=r"float32\[11\] there, float32\[7\].*init_parts=all_but_head takes"):
        create_peers(tiny, num_classes=7, steps=1)
    tiny.model.init_parts = "all_but_head"
    peers, reports = create_peers(tiny, num_classes=7, steps=1)
    tiny.model.init_from, tiny.model.init_parts = "", "all"
    fresh, _ = create_peers(tiny, num_classes=7, steps=1)
    for collection in ("params", "batch_stats"):
        for path, leaf in jax.tree.leaves_with_path(getattr(peers["unet"], collection)):
            name = f"['unet'].{collection}{jax.tree_util.keystr(path)}"
            there = fresh["unet"].params["head"][path[-1].key] if "head" in name else trained[name]
            assert np.array_equal(leaf, there), name
    assert set(reports["unet"].fresh) == {"params/head/kernel", "params/head/bias"}
    assert len(reports["unet"].loaded) == 98


def test_a_run_that_began_without_a_head_can_be_started_from_whole(tiny, tmp_path, trained_run):
    shutil.copytree(trained_run, tmp_path / "first")
    path = tmp_path / "first/config.json"
    path.write_text(path.read_text().replace('"init_parts": "all"', '"init_parts": "all_but_head"'))
    tiny.model.init_from = str(tmp_path / "first")
    _, reports = create_peers(tiny, num_classes=11, steps=1)
    assert len(reports["unet"].loaded) == 100


def test_whether_a_run_needed_its_weights_does_not_make_it_another_network(tiny, tmp_path, trained_run):
    shutil.copytree(trained_run, tmp_path / "first")
    path = tmp_path / "first/config.json"
    stored = path.read_text()
    path.write_text(stored.replace('"init_required": true', '"init_required": false'))
    assert path.read_text() != stored
    tiny.model.init_from = str(tmp_path / "first")
    _, reports = create_peers(tiny, num_classes=11, steps=1)
    assert len(reports["unet"].loaded) == 100
