"""What the README points at exists: files, presets, fields, modules."""

import importlib.util
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.config import all_fields, default, use_mutual_learning

ROOT = Path(__file__).parents[1]
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
