"""Every malformed input of `tests/bad_inputs.py` ends with a sentence and status 2, and harms nothing."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT
from tests.bad_inputs import CASES, table

NAMES = [f"{case.group}: {case.name}" for case in CASES]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By name, what came of each; on one device, in a process that has computed nothing yet."""
    output = tmp_path_factory.mktemp("bad_inputs") / "results.json"
    command = [sys.executable, "-m", "tests.bad_inputs", f"--json={output}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert output.exists(), done.stderr
    rows = json.loads(output.read_text())
    return {f"{row['group']}: {row['name']}": row for row in rows}


def test_there_are_sixty_of_many_kinds():
    assert len(set(NAMES)) == len(NAMES) >= 60
    kinds = {
        "image",
        "mask",
        "folder",
        "archive",
        "records",
        "run",
        "checkpoint",
        "weights",
        "picture",
        "page",
        "config",
        "experiment file",
    }
    assert {case.group for case in CASES} == kinds


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(results, name):
    assert results[name]["problems"] == [], results[name]["said"]


def test_the_committed_table_is_of_these_cases():
    committed = (ROOT / "results/bad_inputs.md").read_text().splitlines()
    rows = [{"group": case.group, "name": case.name, "message": ""} for case in CASES]
    fresh = table(rows).splitlines()
    assert [line.split("|")[1] for line in committed if line.startswith("|")] == [
        line.split("|")[1] for line in fresh if line.startswith("|")
    ]
