"""Every malformed input of `tests/bad_inputs.py` ends with a sentence and status 2, and harms nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.bad_inputs import CASES, row

NAMES = [f"{case.group}: {case.name}" for case in CASES]


FIRST = list({case.group: f"{case.group}: {case.name}" for case in reversed(CASES)}.values())[::-1]  # of each group
REST = [name for name in NAMES if name not in FIRST]
COMMITTED = (ROOT / "results/bad_inputs.md").read_text().splitlines()


def tried(names: list[str], folder: Path) -> dict[str, dict]:
    """By name, what came of each; on one device, in a process that has computed nothing yet."""
    only, output = folder / "names.json", folder / "results.json"
    only.write_text(json.dumps(names))
    command = [sys.executable, "-m", "tests.bad_inputs", f"--names={only}", f"--json={output}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert output.exists(), done.stderr
    return {f"{row['group']}: {row['name']}": row for row in json.loads(output.read_text())}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return tried(FIRST, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    return tried(REST, tmp_path_factory.mktemp("rest"))


def check(result: dict) -> None:
    """Status, message and folders as they should be; and the row of the committed table."""
    assert result["problems"] == [], result["said"]
    assert row(result) in COMMITTED


def test_there_are_sixty_of_many_kinds():
    assert len(set(NAMES)) == len(NAMES) >= 60
    kinds = "image mask folder archive records run checkpoint weights picture page config"
    assert {case.group for case in CASES} == {*kinds.split(), "experiment file", "own folder"}


@pytest.mark.parametrize("name", FIRST)
def test_one_bad_input_of_every_kind(first, name):
    check(first[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_bad_input(rest, name):
    """Slow: a process with a copy of the world for each of more than a hundred."""
    check(rest[name])


def test_the_committed_table_has_no_other_rows():
    rows = [line for line in COMMITTED if line.startswith("| ")][2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == NAMES
    assert COMMITTED[2].startswith(f"{len(CASES)} malformed inputs")
