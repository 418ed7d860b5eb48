"""Imports go one way; what must not be there is not there."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "jaxseg"
# Lowest first: a module imports only from modules before it.
ORDER = [
    "labels", "config", "cli",
    "data.augment", "data.raw", "data.synthetic", "data.download", "data.builders", "data.prepare", "data.check",
    "data.pipeline",
    "models.blocks", "models.unet", "models.resnet", "models.deeplabv3", "models.torch_weights", "models",
    "losses.pixel", "losses.pooling", "losses.rmi", "losses.mutual", "losses",
    "optim", "metrics", "step", "hosts", "parallel", "checkpoint", "peers", "stopping", "limits", "results",
    "show", "compare", "plots",
    "html.runs", "html.gallery", "html.document", "html.chart", "html.examples", "html.page", "report",
    "scoring", "log", "train", "overfit", "profiling", "main",
    "infer", "predict", "export", "tally", "evaluate",
]  # fmt: skip
WITHOUT_JAX = ["labels", "config", "cli", "show", "compare", "plots", "report"]
WITHOUT_JAX += [module for module in ORDER if module.startswith(("data.", "html."))]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__").removesuffix("__init__")


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def test_every_module_has_its_place():
    assert set(FILES) - {"", "data", "html"} == set(ORDER)


def test_imports_point_down():
    for place, module in enumerate(ORDER):
        for name in imported(FILES[module]):
            below = name.removeprefix("jaxseg.")
            if name.startswith("jaxseg.") and below in ORDER:
                assert ORDER.index(below) < place, f"{module} imports {below}, which comes after it"


def test_data_and_reports_import_no_jax():
    for module in WITHOUT_JAX:
        tops = {name.split(".")[0] for name in imported(FILES[module])}
        assert not tops & {"jax", "flax", "optax"}, module


def test_never_tensorflow_and_pytorch_only_to_import_weights():
    for module, path in FILES.items():
        tops = {name.split(".")[0] for name in imported(path)}
        assert "tensorflow" not in tops
        assert "torch" not in tops or module == "models.torch_weights"


def test_nothing_hides_a_default_or_a_second_trainer():
    for module, path in FILES.items():
        text = path.read_text()
        assert "config.get(" not in text, module
        assert "from __future__ import annotations" not in text, module
    assert not {"utils", "helpers", "common"} & {module.split(".")[-1] for module in FILES}
