"""Runs tests, writes every outcome as it comes, and goes on where it was stopped.

    python -m scripts.checks.numerics --output=FILE.json [-m MARKER] TEST …

FILE.json has the outcome of every test and, by file, how many passed, failed and were skipped. The same command again runs
those that are not in it, and those that failed. Exit status: 0 none failed, 1 one did, else pytest's.
"""

import argparse
import collections
import json
import os
import sys
from pathlib import Path

import pytest  # and nothing of jaxseg or JAX: tests/conftest.py sets the environment before they are imported

EMPTY = pytest.ExitCode.NO_TESTS_COLLECTED  # all were done before


class Outcomes:
    """A pytest plugin: leaves out the tests that are done, and writes each outcome at once."""

    def __init__(self, output: Path):
        self.output = output
        self.tests = json.loads(output.read_text())["tests"] if output.exists() else {}

    def pytest_collection_modifyitems(self, config, items):
        done = [item for item in items if self.tests.get(item.nodeid) in ("passed", "skipped")]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in set(done)]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:  # set-up and tear-down count where they fail or skip
            self.tests[report.nodeid] = report.outcome
            self.write()

    def write(self) -> None:
        files = collections.defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0})
        for test, outcome in self.tests.items():
            files[test.split("::")[0]][outcome] += 1
        failed = [test for test, outcome in self.tests.items() if outcome == "failed"]
        self.output.parent.mkdir(parents=True, exist_ok=True)
        written = self.output.with_suffix(".part")
        written.write_text(json.dumps({"files": files, "failed": failed, "tests": self.tests}, indent=1) + "\n")
        os.replace(written, self.output)

    def status(self, ended: int) -> int:
        if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, EMPTY):
            return int(ended)
        return int("failed" in self.tests.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("-m", dest="marker", default="", help="as of pytest")
    parser.add_argument("tests", nargs="+", metavar="TEST")
    options = parser.parse_args()
    outcomes = Outcomes(options.output)
    return outcomes.status(pytest.main(["-m", options.marker, *options.tests], plugins=[outcomes]))


if __name__ == "__main__":
    sys.exit(main())
