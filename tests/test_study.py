"""Plans, the runs made of them, and what becomes of runs that are cut off."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.config import load_config
from jaxseg.errors import InputError
from jaxseg.inference.evaluation import score_checkpoint
from jaxseg.metrics import confusion_matrix
from jaxseg.studies import runner
from jaxseg.studies.estimate import DEVICES, abstract_peers, estimate
from jaxseg.studies.plan import read_plan
from scripts.bench.memory import needed_bytes
from scripts.figures import predictions

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "configs" / "study").glob("*.toml"))
PLAN = """
title = "Tiny"
note = "A note."
device = "cpu"
[[grid]]
models = ["unet"]
datasets = ["synthetic"]
seeds = [0]
[[grid]]
arm = "unet_more"
models = ["unet"]
datasets = ["synthetic"]
seeds = [0]
starts_from = "unet"
config.optim.learning_rate = 1e-4
[config]
data = {{ dir = "{data_dir}", scenes = 12, size_px = 36, crop_px = 32, threads = 1 }}
model.features = 2
optim.schedule = "constant"
train = {{ epochs = 3, log_every_steps = 1 }}
eval = {{ every_epochs = 1, batch_size = 4, figure_images = 1 }}
checkpoint.every_steps = 1
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(PLAN.format(data_dir=tmp_path / "data"))
    return path


@pytest.mark.parametrize("path", PRESETS, ids=[path.stem for path in PRESETS])
def test_presets_are_whole(path):
    """Every run's config is checked by reading; every question is about arms that there are; every seed is complete."""
    read = read_plan(path)
    arms = {run.arm for run in read.runs} | (
        {run.arm for run in read_plan(path.with_stem(read.base)).runs} if read.base else set()
    )
    for question in read.questions:
        assert {question["of"], question["against"]} <= arms, question
    assert {path.stem for path in PRESETS} == {"demo", "cpu", "ablation", "gpu"}
    seeds = {run.seed for run in read.runs}
    assert len(seeds) >= 3
    assert all(len({r.seed for r in read.runs if r.cell == run.cell}) == len(seeds) for run in read.runs)


def test_the_gpu_plan_is_the_study():
    """200 epochs; 224 pixel crops; batches and rates of text and released code, as in the study's table of both."""
    configs = {
        (r.model, r.protocol): r.config()
        for r in read_plan(ROOT / "configs/study/gpu.toml").runs
        if r.dataset == "voc2012"
    }
    rows = {
        key: (
            c.train.batch_size,
            c.optim.learning_rate,
            c.data.resize,
            c.loss.pool,
            c.model.features,
            runner.planned_steps(c),
        )
        for key, c in configs.items()
    }
    assert rows == {
        ("unet", "text"): (8, 1e-3, "square", "max", 32, 36_600),
        ("rmi", "text"): (8, 1e-3, "square", "max", 32, 36_600),
        ("mutual", "text"): (8, 1e-3, "square", "max", 32, 36_600),
        ("unet", "released"): (8, 1e-3, "shorter_side", "max", 32, 36_600),
        ("rmi", "released"): (2, 1e-4, "shorter_side", "none", 32, 146_400),
        ("mutual", "released"): (10, 1e-4, "shorter_side", "max", 32, 29_280),
    }
    assert {c.train.epochs for c in configs.values()} == {200}
    assert {c.data.crop_px for c in configs.values()} == {224}


def test_fields_come_from_base_grid_and_config():
    runs = {run.name: run for run in read_plan(ROOT / "configs/study/ablation.toml").runs}
    more = runs["camvid-text-rmi_from_unet-seed1"]
    assert more.fields["model.init_from"] == "runs/study/cpu/camvid-text-unet-seed1"
    assert more.fields["data.size_px"] == 96  # the base's
    config = runs["camvid-text-rmi_as_released-seed2"].config()
    assert (config.loss.pool, config.optim.learning_rate, config.train.batch_size, config.seed) == ("none", 1e-4, 2, 2)
    flags = runs["camvid-text-rmi_no_pooling-seed0"].flags()
    assert flags[0] == "--config=configs/rmi_camvid.py"
    assert "--config.loss.pool=none" in flags


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_are_the_plan_and_keep_runs_with_what_they_start_from(count, plan):
    for path in (*PRESETS, plan):
        read = read_plan(path)
        shards = [runner.shard_of(read, index, count) for index in range(count)]
        assert sorted(run.name for shard in shards for run in shard) == sorted(run.name for run in read.runs)
        for shard in shards:
            names = [run.name for run in shard]
            for run in (run for run in shard if run.starts_from and not read.base):
                parent = Path(run.fields["model.init_from"]).name
                assert names.index(parent) < names.index(run.name)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("title", "titel", r"tiny.toml, the plan: unknown titel, title; it has base, config"),
        ('device = "cpu"', 'device = "abacus"', r"device='abacus'; expected one of h100, cpu"),
        ('models = ["unet"]', 'models = ["u-net"]', r"\[\[grid\]\] models: 'u-net'; expected some of unet, rmi, mutual"),
        ("size_px = 36", "size_px = 16", r"run synthetic-text-unet-seed0: config.data.crop_px=32 is larger than"),
        ("model.features", "model.featuers", r"config.model.featuers: there is no such field. Did you mean"),
        ('model.features = 2', 'model.features = "two"', r"config.model.features='two'"),
        ('arm = "unet_more"', "", r"synthetic-text-unet-seed0 is there twice"),
        ('datasets = ["synthetic"]', 'datasets = ["synthetic"]\nprotocols = ["released"]', "rendered scenes have no 'released'"),
        ("seeds = [0]", "seed = [0]", r"\[\[grid\]\]: unknown seed, seeds"),
        ("[[grid]]", "[[grid", "cannot be read as TOML"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_used_is_a_sentence(plan, old, new, match):
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=match):
        read_plan(plan)


def start(plan: Path, cwd: Path, *options: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(plan.parent / "compiled")}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    command = [sys.executable, "-m", "scripts.study", f"--plan={plan}", *options]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def without_times(path: Path) -> dict:
    content = json.loads(path.read_text())
    return {
        key: content[key] for key in ("study", "curves", "peers", "config", "data", "reported_peer", "step", "command")
    }


def test_killed_and_started_again_it_ends_the_same(plan, tmp_path, monkeypatch):
    """One study undisturbed, one killed with its training in the first run; a third call finds nothing left to do,
    one with another plan is refused."""
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
    options = Namespace(plan=plan, preset=None, source=[], shard="0/1", output=Path("results/study"), dry_run=False)
    assert runner.main(options) == 0
    assert before == {name: Path(name).stat().st_mtime_ns for name in names}  # nothing was left to do

    plan.write_text(plan.read_text().replace("features = 2", "features = 3"))
    with pytest.raises(InputError, match=r"synthetic-text-unet-seed0.json is of another plan \(fields: "):
        runner.main(options)
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


def convolution_flops(features: int, classes: int, px: int, batch: int) -> float:
    """2 · multiply-adds of the U-Net's convolutions, forward and both gradients (none for the image), by hand.

    A 3×3 kernel meets (3 side - 2)² pairs of pixels on a padded square.
    """
    levels = [(features * 2**level, px // 2**level) for level in range(5)]
    total, before = 0.0, 3
    for channels, side in levels:
        total += (3 * side - 2) ** 2 * (before * channels * (2 if before == 3 else 3) + channels**2 * 3)
        before = channels
    for channels, side in levels[:-1]:
        total += 3 * (2 * side**2 * channels**2 + (3 * side - 2) ** 2 * 3 * channels**2)  # upsampling, two convolutions
    return batch * 2 * (total + 3 * px**2 * features * classes)


def test_estimate_counts_the_convolutions(tiny):
    """Normalisation, activations, loss and Adam come on top, a few operations a value: 3 to 15 % at 16 features."""
    tiny.model.features = 16
    found = estimate(tiny)
    counted = convolution_flops(16, 11, tiny.data.crop_px, tiny.train.batch_size)
    assert 1.03 < found.flops / counted < 1.15
    assert found.seconds(DEVICES["cpu"]) == max(found.flops / 50e9, found.bytes_moved / 10e9)


def test_estimated_memory_is_near_the_compiled_programs(tiny_mutual):
    """From a bit below to a third above: a compiler keeps fewer arrays, and some in pieces."""
    tiny_mutual.model.features = 8
    found = estimate(tiny_mutual).bytes_needed
    assert 0.9 < found / needed_bytes(tiny_mutual, tiny_mutual.train.batch_size) < 1.4
    peers, losses, _ = abstract_peers(tiny_mutual)
    assert set(losses) == {"student", "teacher"}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(peers))
