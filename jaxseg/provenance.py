"""What is written of a result: scores, and where they come from.

In: a confusion matrix, the config, the prepared data. Out: a JSON of numbers with command, commit, versions, device,
data fingerprint and resolved config, so that it can be made again.
"""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxseg import __version__
from jaxseg.data.records import Prepared

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "pillow")


def provenance(config: ConfigDict, prepared: Prepared) -> dict:
    """Where a result comes from: command, code, versions, device, config, data."""
    data = {
        "name": prepared.name,
        "fingerprint": prepared.fingerprint,
        "train": prepared.images("train"),
        "val": prepared.images("val"),
    }
    return origin(config) | {"data": data}


def origin(config: ConfigDict) -> dict:
    """The same without data."""
    return {
        "command": command(),
        "commit": commit(),
        "versions": {"python": platform.python_version(), "jaxseg": __version__}
        | {p: metadata.version(p) for p in PACKAGES},
        "device": {
            "platform": jax.devices()[0].platform,
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
        },
        "config": config.to_dict(),
    }


def command() -> str:
    """The command line, as it would be typed."""
    module = sys.modules["__main__"].__spec__  # None unless it was started by -m
    started = ["-m", module.name.removesuffix(".__main__")] if module else [Path(sys.argv[0]).name]
    return shlex.join(["python", *started, *sys.argv[1:]])


def commit() -> str | None:
    """The checkout's commit, "+changes" where files differ from it; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:  # installed inside someone else's repository
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
