"""What the README files point at exists: files, headings, presets, fields, modules, flags; and their code runs."""

import ast
import contextlib
import importlib
import importlib.util
import json
import re
import shlex

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxseg.__main__ import COMMANDS
from jaxseg.config import all_fields, default, use_mutual_learning
from tests import ROOT
from tests.runs import call, run_command

# README files, and the documents beside them that people write.
WRITTEN = ["*.md", "configs/*.md", "jaxseg/**/*.md", "scripts/**/*.md", "tests/**/*.md", "results/README.md"]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for places in WRITTEN for path in ROOT.glob(places)}
FILE = r"(?<![\w/.])((?:scripts|configs|tests|jaxseg|results)/[\w/]+\.(?:py|sh|toml|json|md))"
FIELD = r"(?<!jaxseg[./])(?<!/)config\.([a-z_]+(?:\.[a-z_]+)?)\b(?!\.py|\.json|\.field)"
IMAGE = np.random.default_rng(0).random((2, 24, 24, 3), dtype=np.float32)


def found(pattern: str) -> list[tuple[str, str]]:
    """(document, match) of all documents."""
    return sorted({(place, match) for place, text in TEXTS.items() for match in re.findall(pattern, text)})


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, code) of all code blocks."""
    return [(p, block) for p, text in TEXTS.items() for block in re.findall(rf"```{language}\n(.*?)```", text, re.S)]


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+?)\s*$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("place", "target"), found(r"\]\(((?!https?://)[^)\s]+)\)"))
def test_links_lead_somewhere(place, target):
    path, _, anchor = target.partition("#")
    file = (ROOT / place).parent / path if path else ROOT / place
    assert file.exists()
    if anchor and file.suffix == ".md":
        assert anchor in anchors(file.read_text())


@pytest.mark.parametrize(
    ("place", "path"), found(r"(?<![\w/.])((?:scripts|configs|tests|jaxseg|results)/[\w/]+\.(?:py|sh|toml|json|md))")
)
def test_files_exist(place, path):
    assert (ROOT / path).is_file(), place


@pytest.mark.parametrize(
    ("place", "name"), found(r"(?<!jaxseg[./])(?<!/)config\.([a-z_]+(?:\.[a-z_]+)?)\b(?!\.py|\.json|\.field)")
)
def test_fields_exist(place, name):
    config = default()
    use_mutual_learning(config)  # documents speak of config.peers.teacher
    fields = all_fields(config)
    assert name in {"field", "py", "json"} or name in fields or any(f.startswith(f"{name}.") for f in fields), place


@pytest.mark.parametrize(("place", "module"), found(r"python -m ((?:jaxseg|scripts|tests)[\w.]*\w)"))
def test_modules_exist(place, module):
    assert importlib.util.find_spec(module), place


def command_lines() -> list[tuple[str, str, str]]:
    """(document, module, flag) of every `python -m jaxseg.…` in a block."""
    lines = [(place, line) for place, code in blocks("bash") for line in code.replace("\\\n", " ").splitlines()]
    return sorted(
        {
            (place, match[1], flag)
            for place, line in lines
            if (match := re.search(r"python -m (jaxseg\.[\w.]+)(.*)", line.split("  #")[0]))
            for flag in re.findall(r"(?<=\s)--(?!help)(\w+)", match[2])
        }
    )


@pytest.mark.parametrize(("place", "module", "flag"), command_lines())
def test_flags_exist(place, module, flag):
    explained = call(module, "--help").stdout
    assert re.search(rf"^--{flag}[:.]", explained, re.M), place


@pytest.mark.parametrize(("place", "code"), blocks("python"))
def test_what_code_imports_exists(place, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], place
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("train", "mode"),
        ("evaluate", "full_resolution"),
        ("predict", "window_px"),
        ("export", "format"),
        ("report", "html"),
        ("study", "dry_run"),
        ("check", "dataset"),
    ],
)
def test_every_command_explains_itself_without_a_run(name, flag):
    module = COMMANDS[name][0]
    ended = call(module, "--help")
    assert ended.returncode == 0, ended.stderr
    assert f"python -m {module}" in ended.stdout
    assert re.search(rf"^--{flag}: .+", ended.stdout, re.M)
    assert "--alsologtostderr" not in ended.stdout  # of libraries


def test_no_placeholder_is_left():
    assert [place for place, text in TEXTS.items() if "@@" in text] == []


def test_rmi_in_somebody_elses_loop():
    """A document's lines, run with a network of one convolution: the loss falls over thirty steps."""
    code = next(code for _, code in blocks("python") if "pixel_and_rmi_loss" in code)
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
    (place, line)
    for place, text in TEXTS.items()
    for line in text.splitlines()
    if re.match(r"\| \S.*(\| (the paper|here, text) \||\| (\*\*lower\*\*|\*\*higher\*\*|open) \|$)", line)
    or re.match(r"\| \S.* \| text \| \w+ \| [\d.]+ \| [\d.]+ ± ", line)  # information
]


@pytest.mark.parametrize(("place", "line"), REPORTED)
def test_rows_of_the_study_are_the_reports(place, line):
    assert line in (ROOT / "results/report/report.md").read_text().splitlines(), place


def test_kills_are_those_of_the_committed_run():
    lines = {line for text in TEXTS.values() for line in text.splitlines()}
    moments = ("start-up", "preparation", "step", "checkpoint", "evaluation")
    for result in json.loads((ROOT / "results/chaos_cpu.json").read_text())["results"]:
        fell = [result["fell_in"].get(moment, 0) for moment in moments]
        cells = [result["run"], len(result["kills"]), *fell, result["arrays"], len(result["differs"])]
        assert f"| {' | '.join(map(str, cells))} |" in lines


def test_there_are_such_rows():
    assert len(REPORTED) >= 17


TUTORIAL = next(code for place, code in blocks("bash") if place == "README.md" and "--mode=overfit" in code)
SMALL = ["data.dir=data", "data.scenes=12", "model.features=2", "train.max_steps=2"]  # instead of three minutes


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the tutorial's commands were typed, one after the other."""
    folder = tmp_path_factory.mktemp("tutorial")
    with contextlib.chdir(folder):
        for line in TUTORIAL.strip().splitlines():
            words = shlex.split(line, comments=True)
            assert words[:2] == ["python", "-m"], line
            more = [f"--config.{field}" for field in SMALL] if "jaxseg.main" in words else []
            start = call if words[2].startswith("jaxseg.") else run_command
            ended = start(words[2], *words[3:], *more)
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
    for path in sorted((tutorial / "predicted/masks").glob("*.png")):
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
    exec(next(code for place, code in blocks("python") if place == "README.md" and "jaxseg.load" in code), scope)
    with Image.open("predicted/masks/scene_10000_256x128.png") as mask:
        assert (np.array(mask) == scope["label"]).mean() > 0.999  # by one device and by four
    assert sum(scope["shares"].values()) == pytest.approx(1)
    assert scope["probabilities"].shape == (128, 256, 19)
    np.testing.assert_allclose(scope["probabilities"].sum(-1), 1, atol=1e-5)
    for name in ("careful", "by_windows"):
        assert scope[name].shape == (128, 256)
    assert scope["colors"].shape == (128, 256, 3)
