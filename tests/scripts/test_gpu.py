"""`scripts/gpu.py` on small Python programs: what is done is skipped, what was stopped goes on, what fails is named."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest

from jaxseg.config import choices_of
from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.studies.plan import read_plan
from scripts import gpu
from tests import ROOT

ORIGIN = {"code": "abc", "commit": None, "device": "none", "versions": {"jax": "1"}}
# Writes down that it ran; then does what its option says.
PROGRAM = """
import json, pathlib, signal, subprocess, sys, time
output = next((word.split("=")[1] for word in sys.argv if word.startswith("--output=")), None)
with open("{log}", "a") as log:
    log.write(sys.argv[-1] + "\\n")
if sys.argv[-1].startswith("fail"):
    sys.exit(5)
if sys.argv[-1] == "once" and not pathlib.Path("{log}.saved").exists():  # as a study: its run saves what it has
    child = "import pathlib, signal, sys; signal.signal(15, lambda *_: (pathlib.Path('{log}.saved').touch(), sys.exit(143)))\\n"
    subprocess.Popen([sys.executable, "-c", child + "pathlib.Path('{log}.ready').touch(); signal.pause()"])
    signal.pause()
if output:
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(output).write_text(json.dumps({{"number": 7}}))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A module that is found by `python -m program`, and what ran."""
    log = tmp_path / "log"
    (tmp_path / "program.py").write_text(PROGRAM.format(log=log))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "POLL_S", 0.01)
    return lambda: log.read_text().split() if log.exists() else []


def piece(*options, **more):
    return gpu.Piece("piece", "what", tuple(gpu.Part(option, "program", (option,), **more) for option in options))


def run(made, tmp_path, *, origin=ORIGIN, seconds=60.0, small=False):
    return gpu.run_piece(made, tmp_path / "out", origin=origin, seconds=seconds, small=small)


def test_what_is_done_is_skipped(tmp_path, program):
    """As long as code, device, versions and the command are the same."""
    content = run(piece("a", "b"), tmp_path)
    assert (content["complete"], content["status"], program()) == (True, 0, ["a", "b"])
    assert content["parts"]["a"]["result"] == {"number": 7}
    assert {key: content[key] for key in ORIGIN} == ORIGIN
    assert read_json(tmp_path / "out/piece.json") == content
    assert run(piece("a", "b"), tmp_path) == content
    assert program() == ["a", "b"]
    run(piece("a", "b", "c"), tmp_path)
    assert program() == ["a", "b", "c"]
    for key, other in (("code", "abd"), ("device", "another"), ("versions", {"jax": "2"})):
        again = run(piece("a"), tmp_path, origin=ORIGIN | {key: other})
        assert again["complete"]
        assert program()[-1] == "a"
        assert len(program()) == {"code": 4, "device": 5, "versions": 6}[key]
    assert run(piece("a"), tmp_path, origin=ORIGIN | {"versions": {"jax": "2"}, "commit": "other"})["complete"]
    assert len(program()) == 6


def test_what_fails_is_named_and_tried_again_and_keeps_no_other_from_running(tmp_path, program):
    made = piece("fail1", "b", "fail2")
    content = run(made, tmp_path)
    assert (content["complete"], content["status"]) == (False, 1)
    assert gpu.state_of(made, content) == ["piece, fail1: status 5", "piece, fail2: status 5"]
    assert program() == ["fail1", "b", "fail2"]
    run(made, tmp_path)
    assert program() == ["fail1", "b", "fail2", "fail1", "fail2"]


def test_at_the_end_of_its_time_all_is_stopped_and_the_same_command_goes_on(tmp_path, program, monkeypatch):
    """The child of what is stopped gets SIGTERM, too, and has time to save. The next part is not begun."""
    ready = tmp_path / "log.ready"
    stopped_when_ready(monkeypatch, ready)
    made = piece("once", "b", json=False)
    content = run(made, tmp_path)
    assert (tmp_path / "log.saved").exists()
    assert (content["complete"], content["status"], program()) == (False, 0, ["once"])
    assert gpu.state_of(made, content) == ["piece, once: unfinished", "piece, b: unfinished"]
    assert {name: part["status"] for name, part in content["parts"].items()} == {"once": None, "b": None}
    ready.unlink()
    content = run(made, tmp_path)
    assert (content["complete"], program()) == (True, ["once", "once", "b"])


def stopped_when_ready(monkeypatch, ready):
    """Time is over once `ready` is there."""
    real = time.monotonic
    monkeypatch.setattr(gpu.time, "monotonic", lambda: real() + (50 if ready.exists() else 0))
    wait = subprocess.Popen.wait

    def wait_until_ready(process, timeout=None):
        while timeout is not None and process.poll() is None:
            if ready.exists():
                raise subprocess.TimeoutExpired("program", timeout)
            os.sched_yield()
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_until_ready)


def test_small_sizes_are_another_command(tmp_path, program):
    made = gpu.Piece("piece", "what", (gpu.Part("a", "program", ("large",), ("small",)),))
    run(made, tmp_path, small=True)
    content = run(made, tmp_path)
    assert program() == ["small", "large"]
    assert content["small"] is False


def test_environment_of_a_part_is_added(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--one")
    (tmp_path / "program.py").write_text("import os; print(os.environ['XLA_FLAGS'])")
    run(piece("a", environment={"XLA_FLAGS": "--two"}, json=False), tmp_path)
    assert (tmp_path / "out/piece/a.log").read_text() == "--one --two\n"


def test_pieces_are_in_order_and_their_modules_and_tests_exist(tmp_path):
    sources = gpu.source_folders("--source=voc2012=V --source=camvid=C")
    pieces = gpu.all_pieces(sources, output=tmp_path)
    names = [made.name for made in pieces]
    assert names[:6] == ["tests", "step", "rmi", "mutual", "predict", "input"]
    assert names[-2:] == ["study", "architectures"]
    study, architectures = pieces[-2:]
    assert [part.name for part in study.parts] == ["camvid", "voc2012"]  # the smallest first
    assert {"--preset=gpu", "--datasets=voc2012", "--source=voc2012=V"} <= set(study.parts[1].options)
    assert "--preset=architectures_gpu" in architectures.parts[0].options
    for part in (part for made in pieces for part in made.parts):
        assert (ROOT / part.module.replace(".", "/")).with_suffix(".py").is_file()
    assert [path for path in gpu.TESTS + gpu.SMALL_TESTS if not (ROOT / path).exists()] == []
    assert [made.name for made in gpu.all_pieces({}, output=tmp_path) if not made.parts] == [
        "input",
        "study",
        "architectures",
    ]


def test_small_plans_train_every_network_on_the_data_that_are_given(tmp_path):
    """What is tried is what is run later: every source has its runs, and every network one with RMI and one without."""
    study, architectures = gpu.all_pieces(gpu.source_folders("--source=camvid=C"), output=tmp_path)[-2:]
    runs = read_plan(ROOT / gpu.SMALL_PLANS / "small_study.toml").runs
    assert {(run.dataset, run.model) for run in runs} == set(
        itertools.product(gpu.SMALLEST_FIRST, ("unet", "rmi", "mutual"))
    )
    assert study.parts[0].small[:2] == ("--plan=scripts/gpu_small/small_study.toml", "--datasets=camvid")
    assert architectures.parts[0].small[0] == "--plan=scripts/gpu_small/small_architectures.toml"
    networks = read_plan(ROOT / gpu.SMALL_PLANS / "small_architectures.toml").runs
    trained = {(config.model.name, config.loss.name) for config in (run.config() for run in networks)}
    assert trained == set(itertools.product(choices_of("model.name"), ("pixel", "pixel_and_rmi")))
    presets = {path.name for path in (ROOT / "configs/study").glob("*.toml")}
    assert presets.isdisjoint(path.name for path in (ROOT / gpu.SMALL_PLANS).iterdir())  # they would share folders


def test_wrong_words_are_sentences(tmp_path):
    pieces = gpu.all_pieces({}, output=tmp_path)
    with pytest.raises(InputError, match=r"nosuch: there is no such piece; expected tests, step"):
        gpu.chosen_pieces(["step", "nosuch"], pieces)
    assert [made.name for made in gpu.chosen_pieces(["rmi", "step"], pieces)] == ["step", "rmi"]
    for words in ("camvid=C", "--source=mnist=M", "--source=camvid="):
        with pytest.raises(InputError, match="STUDY_SOURCES: got"):
            gpu.source_folders(words)


def test_script_runs_pieces_with_this_python_and_lists_them(tmp_path):
    """`gpu.sh` itself, with a Python that writes down what it is called with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$JAX_PLATFORMS $@"\nexit 3\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python)}
    ended = subprocess.run(
        ["bash", ROOT / "scripts/gpu.sh", "step", "--small"], env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (3, "cuda -m scripts.gpu step --small\n")


TESTS = """
import pathlib
import pytest

def test_passes():
    pathlib.Path("ran").open("a").write("x")

@pytest.mark.skip
def test_skips():
    pass

def test_fails_once():
    assert pathlib.Path("again").exists()
"""


def test_outcomes_of_tests_are_kept_and_only_what_did_not_pass_is_run_again(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    words = [
        sys.executable,
        "-m",
        "scripts.checks.numerics",
        "--output=out/fast.json",
        "-m",
        "not slow",
        "test_some.py",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # they take seconds to load
    counted = []
    for expected in (1, 0, 0):
        ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == expected, ended.stdout
        written = json.loads((tmp_path / "out/fast.json").read_text())
        counted.append((written["files"]["test_some.py"], written["failed"]))
        (tmp_path / "again").touch()
    assert counted[0] == ({"passed": 1, "failed": 1, "skipped": 1}, ["test_some.py::test_fails_once"])
    assert counted[1] == counted[2] == ({"passed": 2, "failed": 0, "skipped": 1}, [])
    assert (tmp_path / "ran").read_text() == "x"
