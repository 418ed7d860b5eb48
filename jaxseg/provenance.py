"""Where a result comes from: command, commit, versions, device, data, settings.

In: the config, and what is known of the data. Out: a dict for JSON, with which the result can be made again.
"""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxseg.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "pillow")
PROGRAMS = ("jaxseg ", "python -m ")  # how `sys.argv[0]` begins where jaxseg.__main__ or jaxseg.cli has set it


def provenance(config: ConfigDict, data: Mapping | None = None) -> dict:
    """What a result's JSON says of its origin.

    Args:
      config: the resolved config.
      data: name, fingerprint and number of images (`Prepared.provenance`); None where there are none.

    Returns:
      command, commit, versions, device and config, and "data" where it is given.
    """
    versions = {"python": platform.python_version(), "jaxseg": __version__}
    device = jax.devices()[0]
    origin = {
        "command": command(),
        "commit": commit(),
        "versions": versions | {package: metadata.version(package) for package in PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "config": config.to_dict(),
    }
    return origin if data is None else origin | {"data": dict(data)}


def command() -> str:
    """The command line, as it was typed."""
    program, *words = sys.argv
    if not program.startswith(PROGRAMS):  # `python -m MODULE`, or `python FILE`
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        program = (
            f"python -m {spec.name.removesuffix('.__main__')}" if spec else shlex.join(["python", Path(program).name])
        )
    return " ".join([program, *map(shlex.quote, words)])


def commit() -> str | None:
    """The checkout's commit, "+changes" where files differ from it; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, errors="surrogateescape", check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:  # installed inside someone else's repository
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
