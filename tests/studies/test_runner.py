"""Plans, the runs made of them, and what becomes of runs that are cut off."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import jaxseg
from jaxseg.config import load_config
from jaxseg.errors import InputError
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.metrics import confusion_matrix
from jaxseg.studies import runner
from scripts.figures import predictions
from tests import ROOT
from tests.runs import call


def start(plan: Path, cwd: Path, *options: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    command = [sys.executable, "-m", "jaxseg.study", f"--plan={plan}", *options]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_plan_is_estimated_before_anything_is_made(plan, tmp_path):
    """By the command: a row for each arm: seeds, batch, steps (3 epochs of 10 scenes)."""
    done = call("jaxseg.study", f"--plan={plan}", f"--output={tmp_path / 'results'}", "--dry_run")
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    rows = {row[2]: row[3:6] for row in rows if row[:2] == ["synthetic,", "text,"]}
    assert rows == {arm: ["1", "4", "8"] for arm in ("unet", "unet_more")}
    assert [path.name for path in (tmp_path / "results").rglob("*.json")] == ["plan.json"]
    assert not (tmp_path / "data").exists()


def without_times(path: Path) -> dict:
    content = json.loads(path.read_text())
    return {
        key: content[key] for key in ("study", "curves", "peers", "config", "data", "reported_peer", "step", "command")
    }


@pytest.mark.slow
def test_killed_and_started_again_it_ends_the_same(plan, tmp_path, monkeypatch):
    """One study undisturbed, one killed with its training in the first run; a third call finds nothing left to do,
    one with another plan is refused.

    Slow: two studies of two runs each, every run a process.
    """
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = start(plan, tmp_path / "a")
    out, err = whole.communicate(timeout=600)
    assert whole.returncode == 0, err
    assert "2 of 2 runs done" in out
    names = [f"results/study/tiny/synthetic-text-{arm}-seed0.json" for arm in ("unet", "unet_more")]
    log = tmp_path / "b" / "runs/study/tiny/synthetic-text-unet-seed0/train.jsonl"

    killed = start(plan, tmp_path / "b")
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        with pytest.raises(subprocess.TimeoutExpired):  # it must not end before it is killed
            killed.wait(0.05)
    killed.kill()
    killed.communicate()
    again = start(plan, tmp_path / "b")  # waits for the orphan, whose training still holds the lock
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    for name in names:
        assert without_times(tmp_path / "a" / name) == without_times(tmp_path / "b" / name), name
    assert json.loads((tmp_path / "b" / names[0]).read_text())["resumed"] is True
    more = json.loads((tmp_path / "a" / names[1]).read_text())
    assert more["study"]["starts_from"] == "unet"
    assert (
        more["curves"]["train"]["pixel"][0]
        < json.loads((tmp_path / "a" / names[0]).read_text())["curves"]["train"]["pixel"][0]
    )

    monkeypatch.chdir(tmp_path / "b")
    before = {name: Path(name).stat().st_mtime_ns for name in names}
    assert call("jaxseg.study", f"--plan={plan}").returncode == 0
    assert before == {name: Path(name).stat().st_mtime_ns for name in names}  # nothing was left to do

    plan.write_text(plan.read_text().replace("features = 2", "features = 3"))
    refused = call("jaxseg.study", f"--plan={plan}")
    assert refused.returncode == InputError.status
    assert "synthetic-text-unet-seed0.json is of another plan (fields: " in refused.stderr
    check_figure(tmp_path / "a" / "runs/study/tiny/synthetic-text-unet-seed0", tmp_path / "figure.png")


def check_figure(workdir: Path, output: Path) -> None:
    """The figure's predictions have the confusion matrix that scoring the run's last checkpoint gives."""
    config = load_config(workdir)
    options = Namespace(runs=[f"mine={workdir}"], images=[], val="0,1", checkpoint="last", output=output)
    images, truth = predictions.chosen_images(config, options)
    network = jaxseg.load(workdir)
    total = sum(
        np.asarray(confusion_matrix(network.predict(image, resize="none"), label, 19))
        for image, label in zip(images, truth, strict=True)
    )
    assert total.tolist() == score_checkpoint(config, workdir, "last")["peers"]["unet"]["confusion"]
    predictions.main(options)
    assert output.stat().st_size > 5_000
    for options.val in ("2", "a", "0,-1", ""):
        with pytest.raises(InputError, match="there are validation images 0 to 1"):
            predictions.main(options)


def test_curves_are_means_of_stretches(tmp_path):
    """250 steps with loss = step: 100 stretches of two or three steps; the first is steps 1 to 3, mean 2."""
    lines = [
        {"step": s, "unet/loss": float(s), "unet/pixel": 1.0, "unet/grad_norm": 9.0, "unet/learning_rate": 0.1}
        for s in range(1, 251)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "eval.jsonl").write_text(
        json.dumps({"step": 250, "unet/mean_iou": 0.5, "unet/pixel_accuracy": 0.9}) + "\n"
    )
    made = runner.curves(tmp_path, "unet")
    assert set(made["train"]) == {"step", "loss", "pixel"}
    assert len(made["train"]["step"]) == 100
    assert (made["train"]["step"][0], made["train"]["loss"][0]) == (3, 2.0)
    assert (made["train"]["step"][-1], made["train"]["loss"][-1]) == (250, 249.5)
    assert made["val"] == {"step": [250], "mean_iou": [0.5], "pixel_accuracy": [0.9]}
