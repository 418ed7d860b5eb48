"""Collects the wheels that a machine without network lacks; it is reached by one copied folder.

    python -m scripts.wheels --have=FREEZE.txt [--output=wheels] [--python=3.12] [--limit_mb=64]

FREEZE.txt is `pip freeze` of that machine, Linux on x86-64. What jaxseg and its tests need is resolved by pip, with what is
there as constraints; what is not there, or is too old for pyproject.toml, is downloaded into an empty folder, and listed
with sizes. There: `python -m pip install --no-index --no-deps --target=FOLDER wheels/*.whl`, and FOLDER on PYTHONPATH.

PyTorch and JAX's plugin for CUDA are larger than any such limit: they must be there. Exit status 2 where all together are
larger than the limit, with the largest named, and where pip finds no solution.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxseg.errors import InputError
from jaxseg.files import read_json
from scripts.entry import options_of, run

ROOT = Path(__file__).parents[1]
OF_TESTS = ("beartype", "hypothesis", "pytest", "pytest-xdist")  # of the extra dev
SOURCE_ONLY = ("promise",)  # tensorflow-datasets needs it; it has no wheel, and is pure Python: built here
GLIBC = (5, 12, 17, 24, 27, 28, 31, 34, 35)  # pip takes a wheel of a manylinux_2_N that is named, and of no lower one
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{n}" for n in GLIBC))


def needed_requirements() -> list[str]:
    """Of the package and of its tests, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dev = project["optional-dependencies"]["dev"]
    return project["dependencies"] + [line for line in dev if Requirement(line).name in OF_TESTS]


def parse_freeze(text: str) -> dict[str, str]:
    """Package -> version; "" where it came from a folder or an address, which has none.

    >>> parse_freeze("Jinja2==3.1.6\\ntorch==2.11.0+cu130\\nflax @ file:///src/flax\\n# comment\\n-e .")
    {'jinja2': '3.1.6', 'torch': '2.11.0+cu130', 'flax': ''}
    """
    there = {}
    for line in map(str.strip, text.splitlines()):
        if " @ " in line:
            there[canonicalize_name(line.split(" @ ")[0])] = ""
        elif "==" in line and not line.startswith(("-", "#")):
            name, version = line.split("==", 1)
            there[canonicalize_name(name)] = version
    return there


def too_old(requirements: Sequence[str], there: dict[str, str]) -> set[str]:
    """Packages whose version there is not one that is required."""
    found = set()
    for requirement in map(Requirement, requirements):
        version = there.get(name := canonicalize_name(requirement.name))
        if version and not requirement.specifier.contains(version, prereleases=True):
            found.add(name)
    return found


def pip(*words: str) -> None:
    """Raises InputError with the end of what pip says."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"pip {words[0]} ends with {done.returncode}:\n{done.stderr.strip()[-1000:]}")


def target_options(python: str) -> list[str]:
    """Wheels for that Python on Linux, x86-64."""
    platforms = [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]


def resolve(requirements: Sequence[str], there: dict[str, str], *, python: str, built: Path) -> dict[str, str]:
    """Package -> version of all that is needed, as pip would install it beside what is there."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in there.items()))
        report = Path(folder) / "report.json"
        options = [
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            f"--target={folder}",
            f"--report={report}",
            f"--find-links={built}",
        ]
        pip("install", *options, f"--constraint={constraints}", *target_options(python), *requirements)
        found = [item["metadata"] for item in read_json(report)["install"]]
    return {canonicalize_name(item["name"]): item["version"] for item in found}


def check_size(folder: Path, *, limit_mb: float) -> None:
    """Lists the wheels, the largest first. Raises InputError where they are larger than the limit."""
    sizes = sorted(((path.stat().st_size / 2**20, path.name) for path in folder.glob("*.whl")), reverse=True)
    for size, name in sizes:
        print(f"{size:8.2f} MiB  {name}")
    total = sum(size for size, _ in sizes)
    print(f"{total:8.2f} MiB  in {len(sizes)} wheels")
    if total > limit_mb:
        size, name = sizes[0]
        raise InputError(
            f"{total:.1f} MiB are more than --limit_mb={limit_mb:g}; the largest is {name}, {size:.1f} MiB."
        )


def main(options: argparse.Namespace) -> None:
    if options.output.exists() and any(options.output.iterdir()):
        raise InputError(
            f"--output={options.output} is not empty; wheels of two versions cannot be installed together."
        )
    there = parse_freeze(options.have.read_text())
    requirements = needed_requirements()
    old = too_old(requirements, there)
    kept = {name: version.split("+")[0] for name, version in there.items() if version and name not in old}
    options.output.mkdir(parents=True, exist_ok=True)
    if sources := [name for name in SOURCE_ONLY if name not in there]:
        pip("wheel", "--quiet", "--no-deps", f"--wheel-dir={options.output}", *sources)
    needed = resolve(requirements, kept, python=options.python, built=options.output)
    lacking = [f"{name}=={version}" for name, version in needed.items() if name in old or name not in there]
    if to_fetch := [line for line in lacking if line.split("==")[0] not in sources]:
        pip("download", "--quiet", "--no-deps", f"--dest={options.output}", *target_options(options.python), *to_fetch)
    check_size(options.output, limit_mb=options.limit_mb)


if __name__ == "__main__":
    parser = options_of(__doc__, limit_mb=64)
    parser.add_argument("--have", type=Path, required=True, metavar="FREEZE.txt", help="pip freeze of that machine")
    parser.add_argument("--output", type=Path, default=Path("wheels"), metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="of that machine")
    run(main, parser)
