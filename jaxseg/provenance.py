"""What is written of a result: scores, and where they come from.

In: a confusion matrix, the config, the prepared data. Out: a JSON of numbers with command, commit, versions, device,
data fingerprint and resolved config, so that it can be made again.
"""

import json
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import __version__, metrics
from jaxseg.config import InputError
from jaxseg.data.prepare import Prepared

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "pillow")


def scores(confusion: np.ndarray, names: tuple[str, ...]) -> dict:
    """The metrics of one confusion matrix, ready for JSON; an absent class is null."""
    iou = metrics.iou_per_class(confusion)
    summary = {
        "mean_iou": metrics.mean_iou(confusion),
        "pixel_accuracy": metrics.pixel_accuracy(confusion),
        "mean_accuracy": metrics.mean_accuracy(confusion),
        "frequency_weighted_iou": metrics.frequency_weighted_iou(confusion),
    }
    return {
        **{key: None if np.isnan(value) else value for key, value in summary.items()},
        "classes_present": int((~np.isnan(iou)).sum()),
        "pixels": int(confusion.sum()),
        "iou": by_name(names, iou),
        "accuracy": by_name(names, metrics.class_accuracy(confusion)),
        "confusion": confusion.tolist(),
    }


def by_name(names: tuple[str, ...], values: np.ndarray) -> dict[str, float | None]:
    """A number per class, null where it is NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}


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
    module = Path(sys.argv[0])
    folder = module.absolute().parent.name
    name = f"-m {folder}.{module.stem}" if folder in ("jaxseg", "scripts") else module.name
    return shlex.join(["python", *name.split(), *sys.argv[1:]])


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


def make_parent(output: Path) -> None:
    """The folder that a result goes into, before it is computed. Raises InputError."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={output}: its folder cannot be made ({error.strerror}).") from error


def write_json(path: Path, content: dict) -> None:
    """Writes beside and renames, so that no reader finds half a file."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    part.rename(path)
