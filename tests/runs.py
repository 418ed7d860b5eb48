"""Folders of runs: made without training, and read back."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from jaxseg.files import write_json
from jaxseg.labels import LABELS
from jaxseg.training import checkpoint
from jaxseg.training.peers import create_peers
from tests import ROOT


def save_untrained(config, folder: Path) -> Path:
    """`folder` as a run's: config.json and a checkpoint of step 0. Statistics are not those of fresh networks, which
    would hide what they do."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"config": config.to_dict(), "data": "untrained"})
    peers, _ = create_peers(config, num_classes=LABELS[config.data.name].num_classes, steps=1)
    rng = np.random.default_rng(0)
    for name, peer in peers.items():
        spread = jax.tree.map(
            lambda x: np.abs(x + 0.2 * rng.standard_normal(x.shape)).astype(x.dtype), peer.batch_stats
        )
        peers[name] = peer.replace(batch_stats=spread)
    with checkpoint.open_manager(folder, config.checkpoint) as manager:
        checkpoint.save(manager, 0, jax.tree.map(np.asarray, peers), {"mean_iou": 0.5, "train_loss": 1.0})
        checkpoint.wait(manager)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved(workdir, config, step=None):
    """Every leaf of the checkpoint, by path."""
    peers, _ = create_peers(config, num_classes=11, steps=1)
    with checkpoint.open_manager(workdir, config.checkpoint, read_only=True) as manager:
        peers = checkpoint.restore(manager, step or manager.latest_step(), peers)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(peers)}


def assert_same(found, expected):
    """The same leaves, bit for bit."""
    assert found.keys() == expected.keys()
    assert len(found) > 100
    differs = [path for path in expected if not np.array_equal(found[path], expected[path])]
    assert differs == []


def of_training(peers):
    """Scores without what only the evaluation command adds."""
    added = ("images", "boundary", "boundary_iou")
    return {name: {key: value for key, value in score.items() if key not in added} for name, score in peers.items()}


def call(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """What `python -m MODULE ARGUMENT …` returns and writes, by its main in this process."""
    out, err = io.StringIO(), io.StringIO()
    command = [module, *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = importlib.import_module(module).main(command[1:])
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def run_environment(devices=1) -> dict[str, str]:
    """Of a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "XLA_FLAGS": flags}


def run_command(module: str, *arguments: str, devices=1) -> subprocess.CompletedProcess:
    """The same in a process of its own."""
    environment = run_environment(devices)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def tiny_arguments(camvid_dir, tmp_path):
    sizes = ["size_px=36", "crop_px=32", f"source_dir={camvid_dir}", f"dir={tmp_path / 'data'}"]
    fields = [f"data.{s}" for s in sizes] + ["model.features=4", "train.epochs=1", "eval.every_epochs=1"]
    return ["--config=configs/unet_camvid.py", *(f"--config.{f}" for f in fields)]
