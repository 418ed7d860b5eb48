"""The loop end to end on tiny data: what it writes, that it resumes exactly, and how it stops."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxseg.config import add_peer, load_config
from jaxseg.data import pipeline
from jaxseg.data.prepare import prepare
from jaxseg.errors import InputError, NonFiniteError, StoppedError
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.training import checkpoint
from jaxseg.training.logger import Logger
from jaxseg.training.loop import train_and_evaluate
from jaxseg.training.peers import create_peers
from jaxseg.training.preemption import PreemptionListener
from jaxseg.training.workdir import lock_workdir


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved(workdir, config, step=None):
    """Every leaf of the checkpoint, by path."""
    peers, _ = create_peers(config, num_classes=11, steps=1)
    with checkpoint.open_manager(workdir, config.checkpoint, read_only=True) as manager:
        peers = checkpoint.restore(manager, step or manager.latest_step(), peers)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(peers)}


def test_a_run_writes_what_the_readme_says(tiny, tmp_path):
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


def test_two_and_two_steps_are_four(tiny, tmp_path):
    """Parameters, optimiser, statistics and logged losses, bit for bit; step 3 is in the second epoch."""
    tiny.train.max_steps = 4
    train_and_evaluate(tiny, tmp_path / "whole")
    tiny.train.max_steps = 2
    train_and_evaluate(tiny, tmp_path / "parts")
    first_part = (tmp_path / "parts/train.jsonl").read_text()
    tiny.train.max_steps = 4
    train_and_evaluate(tiny, tmp_path / "parts")
    assert (tmp_path / "parts/train.jsonl").read_text().startswith(first_part)
    assert (tmp_path / "parts/train.jsonl").read_text() == (tmp_path / "whole/train.jsonl").read_text()
    whole, parts = saved(tmp_path / "whole", tiny), saved(tmp_path / "parts", tiny)
    assert whole.keys() == parts.keys()
    assert len(whole) > 100
    for path in whole:
        assert np.array_equal(whole[path], parts[path]), path


def test_steps_after_the_last_checkpoint_are_logged_once(tiny, tmp_path):
    """As after a kill between two checkpoints: their lines are dropped and written again, the same."""
    train_and_evaluate(tiny, tmp_path / "run")
    before = lines(tmp_path / "run/train.jsonl")
    shutil.rmtree(tmp_path / "run/checkpoints/5")
    with (tmp_path / "run/train.jsonl").open("a") as file:
        file.write('{"step": 6, "unet/lo')  # cut short
    train_and_evaluate(tiny, tmp_path / "run")
    assert lines(tmp_path / "run/train.jsonl") == before
    assert [line["step"] for line in lines(tmp_path / "run/eval.jsonl")] == [3, 5]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 3)])  # 3: an evaluation, too
def test_a_signal_saves_the_step_and_the_run_goes_on_the_same(tiny, tmp_path, monkeypatch, number, step):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train_and_evaluate(tiny, tmp_path / "whole")
    add = Logger.add

    def add_and_kill(log, now, measurements):
        add(log, now, measurements)
        if now == step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Logger, "add", add_and_kill)
        with pytest.raises(StoppedError, match=f"step {step} is saved") as caught:
            train_and_evaluate(tiny, tmp_path / "run")
    assert caught.value.status == 128 + number
    assert [line["step"] for line in lines(tmp_path / "run/train.jsonl")] == list(range(1, step + 1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    train_and_evaluate(tiny, tmp_path / "run")
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    whole, run = saved(tmp_path / "whole", tiny), saved(tmp_path / "run", tiny)
    assert all(np.array_equal(whole[path], run[path]) for path in whole)


def test_the_second_signal_is_not_waited_for():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    try:
        with PreemptionListener() as preemption:
            signal.raise_signal(signal.SIGINT)
            assert preemption.requested(1)
            assert preemption.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


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
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tiny, tmp_path, capsys, damage):
    train_and_evaluate(tiny, tmp_path / "run")
    whole, log = saved(tmp_path / "run", tiny), (tmp_path / "run/train.jsonl").read_text()
    damage(tmp_path / "run/checkpoints/5")
    files = sorted(path.name for path in (tmp_path / "run/checkpoints/5").rglob("*"))
    train_and_evaluate(tiny, tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoints/5: this checkpoint cannot be read" in said
    assert "the one before it, of step 3, is used" in said
    assert "going on from step 3" in said
    assert sorted(path.name for path in (tmp_path / "run/damaged/5").rglob("*")) == files  # nothing is deleted
    assert (tmp_path / "run/train.jsonl").read_text() == log
    again = saved(tmp_path / "run", tiny)
    assert all(np.array_equal(whole[path], again[path]) for path in whole)


def test_where_no_checkpoint_can_be_read_nothing_is_moved(tiny, tmp_path):
    train_and_evaluate(tiny, tmp_path / "run")
    for step in (3, 5):
        drop_peer(tmp_path / f"run/checkpoints/{step}")
    with pytest.raises(InputError, match=r"checkpoints/5: .* No other checkpoint can be read either"):
        train_and_evaluate(tiny, tmp_path / "run")
    assert not (tmp_path / "run/damaged").exists()
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["3", "5"]


def test_a_second_process_on_one_folder_is_refused(tiny, tmp_path):
    with lock_workdir(tmp_path / "run"), pytest.raises(InputError, match="another process is training there"):
        train_and_evaluate(tiny, tmp_path / "run")
    tiny.train.max_steps = 1
    train_and_evaluate(tiny, tmp_path / "run")  # it let go


def test_a_finished_run_is_scored_again_not_trained(tiny, tmp_path):
    first = train_and_evaluate(tiny, tmp_path / "run")
    again = train_and_evaluate(tiny, tmp_path / "run")
    assert first["peers"] == again["peers"]
    assert len(lines(tmp_path / "run/train.jsonl")) == 5


def test_another_config_is_refused_with_the_difference(tiny, tmp_path):
    tiny.train.max_steps = 1
    train_and_evaluate(tiny, tmp_path / "run")
    tiny.optim.learning_rate = 0.5
    tiny.data.threads = 3  # may change
    with pytest.raises(InputError) as caught:
        train_and_evaluate(tiny, tmp_path / "run")
    assert "config.optim.learning_rate: 0.001 there, 0.5 now" in str(caught.value)
    assert "threads" not in str(caught.value)


def test_other_data_is_refused(tiny, tmp_path, camvid_dir):
    tiny.train.max_steps = 1
    train_and_evaluate(tiny, tmp_path / "run")
    copy = shutil.copytree(camvid_dir, tmp_path / "copy")
    for folder in ("train", "trainannot"):
        (copy / folder / "train_0.png").unlink()
    tiny.data.source_dir = str(copy)
    with pytest.raises(InputError, match=r"the prepared data: fingerprint \w+ there, \w+ now"):
        train_and_evaluate(tiny, tmp_path / "run")


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


def test_any_checkpoint_is_scored_again_the_same(tiny, tmp_path):
    train_and_evaluate(tiny, tmp_path / "run")
    at_step = {line["step"]: line for line in lines(tmp_path / "run/eval.jsonl")}
    for which in ("3", "last", "best"):
        results = score_checkpoint(load_config(tmp_path / "run"), tmp_path / "run", which)
        assert results["peers"]["unet"]["mean_iou"] == at_step[results["step"]]["unet/mean_iou"]


@pytest.mark.parametrize("view", ["center", "random"])
def test_other_views_score_crops(tiny, tmp_path, view):
    tiny.train.max_steps = 1
    tiny.eval.update({"view": view, "passes": 1 if view == "center" else 3})
    results = train_and_evaluate(tiny, tmp_path / "run")
    assert 0 < results["peers"]["unet"]["pixels"] <= 5 * 32 * 32 * tiny.eval.passes


def of_training(peers):
    """Scores without what only the evaluation command adds."""
    added = ("images", "boundary", "boundary_iou")
    return {name: {key: value for key, value in score.items() if key not in added} for name, score in peers.items()}


def run_command(module, *arguments, devices=1):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "COLUMNS": "80"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def tiny_arguments(camvid_dir, tmp_path):
    sizes = ["size_px=36", "crop_px=32", f"source_dir={camvid_dir}", f"dir={tmp_path / 'data'}"]
    fields = [f"data.{s}" for s in sizes] + ["model.features=4", "train.epochs=1", "eval.every_epochs=1"]
    return ["--config=configs/unet_camvid.py", *(f"--config.{f}" for f in fields)]


def test_commands_end_to_end(camvid_dir, tmp_path):
    """Training, then scoring, as typed; the table, the paths and the statuses."""
    done = run_command("jaxseg.main", *tiny_arguments(camvid_dir, tmp_path), f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    for words in ("mean IoU", "bicyclist", "predictions.png", "results.json", "next:"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines()[3:-4])) <= 80
    trained = json.loads((tmp_path / "run/results.json").read_text())
    assert trained["command"].startswith(
        "python -m jaxseg.main --config=configs/unet_camvid.py --config.data.size_px=36"
    )
    scored = run_command("jaxseg.evaluate", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'scored.json'}")
    assert scored.returncode == 0, scored.stderr
    assert of_training(json.loads((tmp_path / "scored.json").read_text())["peers"]) == trained["peers"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config=FILE is needed"),
        (["--config=configs/unet_vok.py"], "Did you mean 'configs/unet_voc.py'"),
        (["--config=configs/unet_voc.py:relaesd"], "unknown variant 'relaesd'"),
        (["--config=configs/demo.py", "--config.train.batchsize=4"], "Did you mean config.train.batch_size"),
        (["--config=configs/demo.py", "--config.train.batch_size=many"], "many"),
        (["--config=configs/demo.py", "--config.train.batch_size=0"], "config.train.batch_size is 0"),
        (["--config=configs/demo.py", "stray"], "'stray' is no flag"),
        (["--config=configs/demo.py", "--workdirr=x"], "workdirr"),
        (
            ["--config=configs/unet_cityscapes.py", "--config.data.source_dir=/nowhere"],
            "log in at www.cityscapes-dataset.com",
        ),
    ],
)
def test_wrong_commands_end_with_a_sentence_and_status_2(arguments, words, tmp_path):
    done = run_command("jaxseg.main", *arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# ---- Several peers


def test_two_peers_resume_exactly_and_are_scored_by_name(tiny_mutual, tmp_path):
    """2 + 2 = 4 steps bit for bit, of both peers (the teacher has dropout); the student is the one reported."""
    config, whole, parts = tiny_mutual, tmp_path / "whole", tmp_path / "parts"
    config.train.max_steps = 4
    results = train_and_evaluate(config, whole)
    for steps in (2, 4):
        config.train.max_steps = steps
        train_and_evaluate(config, parts)
    assert (parts / "train.jsonl").read_text() == (whole / "train.jsonl").read_text()
    a, b = saved(whole, config), saved(parts, config)
    assert {path.split("'")[1] for path in a} == {"student", "teacher"}
    assert a.keys() == b.keys()
    for path in a:
        assert np.array_equal(a[path], b[path]), path
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


def test_a_run_teaches_the_next(tiny, tmp_path):
    """A frozen teacher is the best checkpoint of its run, says so, and is the same at the end; so is init_from alone."""
    train_and_evaluate(tiny, tmp_path / "first")
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


def test_a_teacher_that_does_not_fit_is_refused(tiny, tmp_path):
    tiny.train.max_steps = 1
    train_and_evaluate(tiny, tmp_path / "first")
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


def test_other_peers_are_refused_with_the_difference(tiny, tmp_path):
    tiny.train.max_steps = 1
    train_and_evaluate(tiny, tmp_path / "run")
    add_peer(tiny, "teacher")
    with pytest.raises(InputError) as caught:
        train_and_evaluate(tiny, tmp_path / "run")
    assert "config.peers.teacher.model.name: no such peer there, 'unet' now" in str(caught.value)
