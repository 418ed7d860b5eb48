"""Imports go one way, by rooms; what must not be there is not there."""

import ast
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "jaxseg"
# Files at the top are the shared vocabulary, which imports only what stands before it here, …
VOCABULARY = [
    "version",
    "errors",
    "floor",
    "labels",
    "room",
    "schemas",
    "files",
    "config",
    "config_checks",
    "console",
    "cli",
    "ops",
    "information",
    "metrics",
    "provenance",
]
# … and commands, which import from everywhere and are imported by nothing. Every folder is a stage.
COMMANDS = {"__init__", "__main__", "main", "evaluate", "predict", "export", "report", "study"}
STAGES = ["data", "models", "losses", "reporting", "training", "inference", "studies"]
WITH_JAX = {"ops", "metrics", "provenance", "models", "losses", "training", "inference", "studies"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path, *, anywhere: bool = True) -> set[str]:
    """Full names of what a file imports; anywhere: also inside functions."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path: Path) -> set[str]:
    """The files at the top and the folders that a file imports from."""
    parts = [name.split(".") for name in imported(path) if name.startswith("jaxseg.")]
    known = {*VOCABULARY, *STAGES, *COMMANDS}
    return {part[1] for part in parts if part[1] in known}


def test_every_file_has_its_room():
    tops = {name for name in FILES if "." not in name}
    assert tops == {*VOCABULARY, *COMMANDS}
    assert {name.split(".")[0] for name in FILES if "." in name} == set(STAGES)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    order = [*VOCABULARY, *STAGES]
    room = module.split(".")[0]
    for other in rooms(FILES[module]) - {room}:
        assert other not in COMMANDS, f"{module} imports the command {other}"
        if room not in COMMANDS:
            assert order.index(other) < order.index(room), f"{module} imports {other}, which comes after {room}"


@pytest.mark.parametrize("module", [name for name in FILES if name.split(".")[0] not in WITH_JAX | COMMANDS])
def test_what_only_reads_imports_no_jax(module):
    assert not {name.split(".")[0] for name in imported(FILES[module])} & {"jax", "flax", "optax"}
    assert not rooms(FILES[module]) & WITH_JAX


@pytest.mark.parametrize("stage", STAGES)
def test_folders_have_no_circle(stage):
    """Within a folder a file imports only from files that do not lead back to it."""
    inside = {name: imported(path) for name, path in FILES.items() if name.startswith(f"{stage}.")}
    edges = {name: {other for other in inside if f"jaxseg.{other}" in names} for name, names in inside.items()}
    while leaves := [name for name, others in edges.items() if not others & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges


def test_init_files_only_export():
    for name, path in FILES.items():
        if name.endswith("__init__") and name != "__init__":
            kinds = {type(node) for node in ast.parse(path.read_text()).body}
            assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}, name


@pytest.mark.parametrize("module", FILES)
def test_never_tensorflow_and_pytorch_only_for_its_own_files(module):
    tops = {name.split(".")[0] for name in imported(FILES[module])}
    assert "tensorflow" not in tops
    assert "torch" not in tops or module == "models.weights_io"


@pytest.mark.parametrize("module", FILES)
def test_nothing_hides_a_default_or_a_second_trainer(module):
    text = FILES[module].read_text()
    assert "config.get(" not in text
    assert "from __future__ import annotations" not in text
    assert module.split(".")[-1] not in {"utils", "helpers", "common"}


@pytest.mark.parametrize("module", FILES)
def test_text_files_say_their_encoding(module):
    """What Python takes without one follows the locale: ASCII under LC_ALL=C, where a path with é in it would fail."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("read_text", "write_text"):
            assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{module}, line {node.lineno}"
        in_bytes = any(isinstance(argument, ast.Constant) and "b" in str(argument.value) for argument in node.args)
        if name == "open" and isinstance(node.func, ast.Name) and not in_bytes:
            assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{module}, line {node.lineno}"
