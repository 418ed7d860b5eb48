"""What the README points at exists: files, presets, fields, modules."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxseg.config import all_fields, default, use_mutual_learning
from tests import ROOT

TEXT = (ROOT / "README.md").read_text()
IMAGE = np.random.default_rng(0).random((2, 24, 24, 3), dtype=np.float32)


def found(pattern):
    return sorted(set(re.findall(pattern, TEXT)))


@pytest.mark.parametrize("target", found(r"\]\(((?!https?://|#)[^)]+)\)"))
def test_links_lead_somewhere(target):
    assert (ROOT / target.split("#")[0]).exists()


@pytest.mark.parametrize("path", found(r"(?:scripts|configs|tests|jaxseg)/[\w/]+\.(?:py|sh)"))
def test_files_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", found(r"config\.([a-z_]+(?:\.[a-z_]+)?)\b(?!\.py|\.json|\.field)"))
def test_fields_exist(name):
    config = default()
    use_mutual_learning(config)  # the README speaks of config.peers.teacher
    fields = all_fields(config)
    assert name in {"field", "py", "json"} or name in fields or any(f.startswith(f"{name}.") for f in fields)


@pytest.mark.parametrize("module", found(r"python -m (jaxseg[\w.]*)"))
def test_modules_exist(module):
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("main", "mode"),
        ("evaluate", "full_resolution"),
        ("predict", "window_px"),
        ("export", "format"),
        ("report", "html"),
    ],
)
def test_every_command_explains_itself_without_a_run(module, flag):
    ended = subprocess.run([sys.executable, "-m", f"jaxseg.{module}", "--help"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert f"python -m jaxseg.{module}" in ended.stdout
    assert re.search(rf"^--{flag}: .+", ended.stdout, re.M)
    assert "--alsologtostderr" not in ended.stdout  # of libraries


def test_no_placeholder_is_left():
    assert "@@" not in TEXT


def test_rmi_in_somebody_elses_loop():
    """The README's lines, run with a network of one convolution: the loss falls over thirty steps."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "pixel_and_rmi_loss" in block)
    definition, update = code.split("(loss, terms), grads", 1)
    image, label = jnp.asarray(IMAGE), jnp.asarray(IMAGE[..., 0] > 0.5, jnp.int32)
    model, tx = nn.Conv(2, (3, 3)), optax.adam(0.1)
    params = model.init(jax.random.key(0), image)["params"]
    scope = {"model": model, "tx": tx, "image": image, "label": label, "params": params, "opt_state": tx.init(params)}
    exec(definition, scope)
    losses = []
    for _ in range(30):
        exec("(loss, terms), grads" + update, scope)
        losses.append(float(scope["loss"]))
    assert losses[-1] < losses[0] - 0.3
    assert set(scope["terms"]) == {"pixel", "rmi"}


REPORTED = [
    line
    for line in TEXT.splitlines()
    if re.match(r"\|.*(\| (the paper|here, text) \||\| (\*\*lower\*\*|\*\*higher\*\*|open) \|$)", line)
]


@pytest.mark.parametrize("line", REPORTED)
def test_rows_of_the_study_are_the_reports(line):
    assert line in (ROOT / "results/report/report.md").read_text().splitlines()


def test_kills_are_those_of_the_committed_run():
    moments = ("start-up", "preparation", "step", "checkpoint", "evaluation")
    for result in json.loads((ROOT / "results/chaos_cpu.json").read_text())["results"]:
        fell = [result["fell_in"].get(moment, 0) for moment in moments]
        cells = [result["run"], len(result["kills"]), *fell, result["arrays"], len(result["differs"])]
        assert f"| {' | '.join(map(str, cells))} |" in TEXT.splitlines()


def test_there_are_such_rows():
    assert len(REPORTED) >= 8


TUTORIAL = next(block for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) if "--mode=overfit" in block)
SMALL = ["data.dir=data", "data.scenes=12", "model.features=2", "train.max_steps=2"]  # instead of three minutes


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the tutorial's commands were typed, one after the other."""
    folder = tmp_path_factory.mktemp("tutorial")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "COLUMNS": "80"}
    for line in TUTORIAL.strip().splitlines():
        words = shlex.split(line, comments=True)
        more = [f"--config.{field}" for field in SMALL] if "jaxseg.main" in words else []
        ended = subprocess.run(
            [sys.executable, *words[1:], *more], cwd=folder, env=environment, capture_output=True, text=True
        )
        statuses = (0, 1) if "--mode=overfit" in words else (0,)  # two steps do not teach it four images
        assert ended.returncode in statuses, f"{line}\n{ended.stdout}{ended.stderr}"
    return folder


def test_the_tutorial_leaves_what_it_says(tutorial):
    assert json.loads((tutorial / "runs/demo/results.json").read_text())["step"] == 2
    scores = json.loads((tutorial / "runs/demo/evaluation-2-full_resolution.json").read_text())
    assert scores["protocol"].startswith("raw labels")
    assert len(scores["images"]) == 2  # a sixth of 12 scenes
    assert "</html>" in (tutorial / "runs/demo/report.html").read_text()
    sizes = {}
    for path in sorted((tutorial / "predicted/masks").iterdir()):
        with Image.open(path) as mask:
            sizes[path.stem.split("_")[-1]] = "x".join(map(str, mask.size))
    assert sizes == {size: size for size in ("160x320", "256x128", "300x300", "512x256")}
    program = jax.export.deserialize(bytearray((tutorial / "runs/demo/export/unet-2.stablehlo").read_bytes()))
    assert program.call(np.zeros((1, 32, 48, 3), np.float32)).shape == (1, 32, 48, 19)


def test_the_tutorial_in_python(tutorial, monkeypatch):
    """Its lines as they are, beside the run of the commands."""
    monkeypatch.chdir(tutorial)
    Image.open("photos/scene_10000_256x128.png").save("photo.png")
    scope = {}
    exec(next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "jaxseg.load" in block), scope)
    with Image.open("predicted/masks/scene_10000_256x128.png") as mask:
        assert (np.array(mask) == scope["label"]).mean() > 0.999  # by one device and by four
    assert sum(scope["shares"].values()) == pytest.approx(1)
    assert scope["probabilities"].shape == (128, 256, 19)
    np.testing.assert_allclose(scope["probabilities"].sum(-1), 1, atol=1e-5)
    for name in ("careful", "by_windows"):
        assert scope[name].shape == (128, 256)
    assert scope["colors"].shape == (128, 256, 3)
