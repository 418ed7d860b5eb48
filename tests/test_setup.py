"""`scripts/setup.sh` with made-up interpreters, which it runs: nothing is downloaded. And what the scripts speak of exists."""

import importlib.machinery
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxseg import provenance
from jaxseg.files import read_json
from scripts import entry
from tests import ROOT

# Runs the code that it is given by this Python, which says that it is another; `-m venv` and `-m pip` only write it down.
INTERPRETER = """#!/bin/sh
case "$1 $2" in
"--version ") echo "Python {version}" ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "venv {version}" >>{log} ;;
"-m pip") echo "$@" >>{log} ;;
-c*) exec {python} -c 'import sys; sys.version_info = tuple(map(int, "{version}".split("."))); {more}; exec(sys.argv[1])' "$2" ;;
esac
"""
TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm", "sh", "sort")
SHIM = "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n"


class Machine:
    """A folder with all that is installed: the programs on PATH, pyenv's versions."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "log"
        (folder / "bin").mkdir()
        for tool in TOOLS:
            (folder / "bin" / tool).symlink_to(shutil.which(tool))

    def write(self, place: str, text: str) -> str:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def python(self, place: str, version: str, *, ensurepip: bool = True) -> str:
        more = "pass" if ensurepip else 'sys.modules["ensurepip"] = None'
        return self.write(place, INTERPRETER.format(version=version, more=more, python=sys.executable, log=self.log))

    def run(self, *words: str | Path, **variables: str) -> subprocess.CompletedProcess:
        """bash with these words."""
        environment = {"HOME": str(self.folder), "PATH": str(self.folder / "bin")} | variables
        return subprocess.run(["bash", *words], env=environment, capture_output=True, text=True)

    def sourced(self, command: str, **variables: str) -> subprocess.CompletedProcess:
        """`command` after setup.sh was sourced, as the scripts do."""
        return self.run("-c", f"set -euo pipefail; source {ROOT}/scripts/setup.sh; {command}", **variables)

    def found(self, **variables: str) -> str:
        ended = self.sourced("find_python", **variables)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()


@pytest.fixture
def machine(tmp_path):
    """One whose python3 is too old, like Debian 12's."""
    machine = Machine(tmp_path)
    machine.python("bin/python3", "3.11.2")
    return machine


def test_the_newest_on_path_is_taken(machine):
    for minor in (12, 13):
        machine.python(f"bin/python3.{minor}", f"3.{minor}.1")
    assert machine.found() == "python3.13"
    machine.python("bin/python3.14", "3.14.0")
    assert machine.found() == "python3.14"


def test_python3_is_enough(machine):
    machine.python("bin/python3", "3.12.0")
    assert machine.found() == "python3"


@pytest.mark.parametrize("version", ["3.11.9", "3.15.0", "2.7.18"])
def test_other_versions_are_passed_over(machine, version):
    machine.python("bin/python3", version)
    machine.python(".pyenv/versions/any/bin/python", "3.12.3")
    assert machine.found().endswith(".pyenv/versions/any/bin/python")


def test_a_shim_that_fails_is_passed_over_and_pyenvs_newest_taken(machine):
    machine.write("bin/python3.12", SHIM)
    for version in ("3.9.18", "3.12.9", "3.12.10", "3.11.7"):
        machine.python(f".pyenv/versions/{version}/bin/python", version)
    assert machine.found().endswith(".pyenv/versions/3.12.10/bin/python")


def test_pyenv_may_be_elsewhere(machine):
    chosen = machine.python("elsewhere/versions/3.12.1/bin/python", "3.12.1")
    assert machine.found(PYENV_ROOT=str(machine.folder / "elsewhere")) == chosen


def test_one_that_cannot_make_environments_is_passed_over(machine):
    machine.python("bin/python3.13", "3.13.5", ensurepip=False)
    machine.python("bin/python3.12", "3.12.5")
    assert machine.found() == "python3.12"


def test_uvs_is_found(machine):
    managed = machine.python("uv/python3.13", "3.13.1")
    machine.write("bin/uv", f'#!/bin/sh\n[ "$1 $2 $3" = "python find --system" ] && echo {managed}\n')
    assert machine.found() == managed


def test_where_there_is_none_it_says_what_to_install(machine):
    machine.write("bin/python3.12", SHIM)
    machine.write("bin/uv", "#!/bin/sh\necho 'error: none' >&2\nexit 2\n")
    ended = machine.sourced('setup ""; echo went on')
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.search(r"^error: no Python 3\.12, 3\.13 or 3\.14 .* was found", ended.stderr)
    for remedy in ("apt install python3 python3-venv", "pyenv install 3.12", "uv python install 3.12", "PYTHON=/"):
        assert remedy in ended.stderr


def test_python_decides_alone(machine):
    machine.python("bin/python3.13", "3.13.1")
    chosen = machine.python("mine", "3.12.4")
    assert machine.found(PYTHON=chosen) == chosen


@pytest.mark.parametrize(
    ("version", "ensurepip", "said"),
    [("3.11.2", True, "Python 3.11.2"), ("3.12.4", False, "ensurepip"), (None, True, "")],
)
def test_an_unsuitable_python_is_refused(machine, version, ensurepip, said):
    machine.python("bin/python3.13", "3.13.1")
    chosen = str(machine.folder / "mine")
    if version:
        machine.python("mine", version, ensurepip=ensurepip)
    ended = machine.sourced('setup ""; echo went on', PYTHON=chosen)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert f"error: PYTHON={chosen} is" in ended.stderr
    assert "expected Python 3.12, 3.13 or 3.14" in ended.stderr
    assert said in ended.stderr


def test_the_environment_is_made_once(machine):
    """Again only where the extras, the Python version or pyproject.toml changed; with [dev] nothing more is needed."""
    venv = machine.folder / "venv"
    machine.python("bin/python3.12", "3.12.1")

    def setup(extras: str) -> list[str]:
        machine.log.write_text("")
        ended = machine.sourced(f'setup "{extras}"; echo "$PYTHON"', JAXSEG_VENV=str(venv))
        assert ended.stdout.splitlines()[-1] == f"{venv}/bin/python", ended.stderr
        done = machine.log.read_text().splitlines()
        assert ("setting up" in ended.stdout) == bool(done)
        return [" ".join(line.split()[:2]) if line.startswith("venv") else line.split()[-1] for line in done]

    assert setup("") == ["venv 3.12.1", "."]
    assert setup("") == []
    assert setup("dev") == [".[dev]"]
    assert setup("dev") == setup("") == []
    (venv / "jaxseg-setup").write_text("3.12.1 of another pyproject.toml [dev]\n")
    assert setup("dev") == [".[dev]"]
    machine.python("bin/python3.12", "3.12.2")
    assert setup("dev") == ["venv 3.12.2", ".[dev]"]
    machine.python("bin/python3.13", "3.13.0")
    assert setup("dev") == ["venv 3.13.0", ".[dev]"]


def test_checks_leave_out_what_takes_long_unless_asked(machine):
    """`test.sh` with a Python that does nothing but write down what it is called with."""
    machine.python("bin/python3.12", "3.12.1")
    venv = machine.folder / "venv"

    def called(*words: str) -> list[str]:
        machine.sourced('setup "dev"', JAXSEG_VENV=str(venv))
        machine.write("venv/bin/python", f'#!/bin/sh\necho "$@" >>{machine.log}\n')
        machine.log.write_text("")
        assert machine.run(ROOT / "scripts/test.sh", *words, JAXSEG_VENV=str(venv)).returncode == 0
        return machine.log.read_text().splitlines()

    style = ["-m ruff check .", "-m ruff format --check .", "-m mypy"]
    assert called() == [*style, "-m pytest -n 2 -m not slow"]
    assert called("-x", "tests/test_step.py") == [*style, "-m pytest -n 2 -m not slow -x tests/test_step.py"]
    assert called("--all", "-x") == [*style, "-m pytest -n 2 -x"]


MENTIONS = [
    (path.name, module)
    for path in sorted(ROOT.glob("scripts/**/*"))
    if path.suffix in (".py", ".sh", ".md")
    for module in sorted(set(re.findall(r"-m (scripts\.[\w.]*\w)", path.read_text())))
]


@pytest.mark.parametrize(("where", "module"), MENTIONS)
def test_modules_that_scripts_speak_of_exist(where, module):
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), where


def test_without_pytorch_a_script_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "scripts.needs_torch", raising=False)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("scripts.needs_torch")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: this measures beside PyTorch, which is not installed: pip install"
    )


def test_scripts_import_pytorch_by_that_sentence():
    """All but PyTorch's own networks, and a check which leaves out what lacks."""
    own = {path for path in ROOT.glob("scripts/*/*.py") if re.search(r"^import torch", path.read_text(), re.M)}
    assert {path.parent.name for path in own} == {"torch_reference"}


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("scripts.bench.step", "python -m scripts.bench.step --batch=2 '--output=a b.json'"),
        ("jaxseg.main", "python -m jaxseg.main --batch=2 '--output=a b.json'"),
        (None, "python script.py --batch=2 '--output=a b.json'"),
    ],
)
def test_command_of_a_result_is_as_typed(monkeypatch, module, command):
    spec = module and importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py", "--batch=2", "--output=a b.json"])
    assert provenance.command() == command


def test_a_result_says_how_it_was_made(tmp_path):
    entry.write_result(tmp_path / "result.json", {"benchmark": "none", "results": 1}, packages=["numpy", "no-such-one"])
    written = read_json(tmp_path / "result.json")
    assert {"command", "commit", "device", "versions", "benchmark", "results"} == set(written)
    assert {"python", "jax", "jaxlib", "numpy"} == set(written["versions"])


def test_what_a_script_cannot_use_is_a_sentence(tmp_path):
    words = ["-m", "scripts.figures.render_scenes", str(tmp_path), "--sizes=64"]
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: --sizes=64: expected WIDTHxHEIGHT with commas between, such as 256x128,300x300.\n"
