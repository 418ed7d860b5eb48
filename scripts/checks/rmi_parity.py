"""jaxseg's RMI loss beside PyTorch's float64 one: value and gradient, case by case. Exit status 1 on any mismatch.

    python -m scripts.checks.rmi_parity [--rmi-repo=CLONE] [--labels=FOLDER] [--classes=19] [--only=GLOB]
                                        [--output=FILE.json]

By default against `scripts/torch_reference/rmi.py`, a PyTorch version of our own, in float64 throughout; with --rmi-repo against
the authors' code in a clone of github.com/ZJULearning/RMI, which is left as it is. Label maps are random, and the PNG
masks of --labels (class ids; what is not below --classes is void), or rendered scenes where none are given. --only takes
the cases whose names, as printed, match. Needs jaxseg[torch].
"""

import argparse
import dataclasses
import fnmatch
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console

from jaxseg.data.synthetic import render_scene
from jaxseg.errors import InputError
from jaxseg.labels import CITYSCAPES
from jaxseg.losses import pixel_and_rmi_loss
from scripts.entry import make_table, result_options_of, run, write_result
from scripts.needs_torch import torch
from scripts.torch_reference.rmi import TorchRMI, authors_rmi

# Relative differences allowed: of the value, and of the gradient in units of its norm. Confident predictions leave a
# gradient below 1e-3, which float32 probabilities round to some 1e-4 of it.
TOLERANCE = {"float32": (2e-6, 2e-5), "float64": (1e-9, 1e-7)}
CONFIDENT = {"float32": (2e-6, 2e-3), "float64": (1e-6, 1e-5)}


@dataclasses.dataclass(frozen=True)
class Case:
    labels: str
    logits: str
    pixel: str
    pool: str
    pool_size: int
    radius: int

    def __str__(self):
        pool = self.pool if self.pool == "none" else f"{self.pool} {self.pool_size}"
        return f"{self.labels} {self.logits}, {self.pixel}, {pool}, {self.radius}"


def cases() -> list[Case]:
    """Every pool and pixel term at radius 3, every radius at max 3, every kind of prediction on every kind of labels."""
    pools = [("max", 3), ("max", 2), ("max", 4), ("avg", 3), ("avg", 2), ("interpolate", 3), ("none", 1)]
    found = [Case(la, lo, "sigmoid", "max", 3, 3) for la, lo in itertools.product(LABELS, LOGITS)]
    found += [Case("real", "noisy", pixel, *pool, 3) for pool in pools for pixel in ("sigmoid", "softmax")]
    found += [Case("real", "noisy", "sigmoid", "max", 2, radius) for radius in (1, 2, 4, 5, 7, 10)]
    return list(dict.fromkeys(found))


LABELS, LOGITS = ("random", "real"), ("random", "noisy", "smooth", "confident")


def label_maps(kind: str, folder: Path | None, classes: int, rng) -> np.ndarray:
    """int [2, 96, 120], 255 where void. Raises FileNotFoundError."""
    if kind == "random":
        return np.where(rng.random((2, 96, 120)) < 0.05, 255, rng.integers(classes, size=(2, 96, 120)))
    if folder is None:
        masks = [CITYSCAPES.train_id_of_raw[render_scene(number)[1]] for number in (0, 1)]
    else:
        files = sorted(folder.rglob("*.png"))[:2]
        if len(files) < 2:
            raise FileNotFoundError(f"--labels={folder}: {len(files)} PNG files there; at least 2 are needed")
        masks = [np.asarray(Image.open(file)) for file in files]
    maps = np.stack([np.asarray(Image.fromarray(m.astype(np.uint8)).resize((120, 96), Image.NEAREST)) for m in masks])
    return np.where(maps < classes, maps, 255).astype(int)


def predictions(kind: str, label: np.ndarray, classes: int, rng) -> np.ndarray:
    """Logits f32 [b, h, w, c]: blind, a noisy guess, a blurred guess, or right by 16 in all but noise."""
    noise = rng.standard_normal((*label.shape, classes))
    right = 2.0 * (label[..., None] == np.arange(classes)) - 1
    if kind == "smooth":
        kernel = np.exp(-((np.arange(-4, 5) / 2) ** 2) / 2)
        for axis in (1, 2):
            right = np.apply_along_axis(np.convolve, axis, right, kernel / kernel.sum(), mode="same")
    scale = {"random": (0, 3), "noisy": (2, 1), "smooth": (4, 0.3), "confident": (8, 0.5)}[kind]
    return (scale[0] * right + scale[1] * noise).astype(np.float32)


def in_torch(case: Case, logits: np.ndarray, label: np.ndarray, clone: Path | None):
    """(½ pixel + ½ RMI, RMI) and the gradient of the first: our version in float64, the authors' from float32 logits."""
    options = {"radius": case.radius, "pool": case.pool, "pool_size": case.pool_size, "pixel": case.pixel}
    function = authors_rmi(clone, classes=logits.shape[-1], **options) if clone else TorchRMI(**options)
    x = torch.tensor(logits, dtype=torch.float32 if clone else torch.float64).permute(0, 3, 1, 2).requires_grad_()
    pixel, rmi = function(x, torch.tensor(label))
    loss = 0.5 * pixel + 0.5 * rmi
    loss.backward()
    return (loss.item(), rmi.item()), x.grad.permute(0, 2, 3, 1).double().numpy()


def in_jaxseg(case: Case, logits: np.ndarray, label: np.ndarray, dtype: str):
    """The same, of jaxseg in `dtype`."""

    def loss(x):
        options = {"radius": case.radius, "pool": case.pool, "pool_size": case.pool_size, "pixel": case.pixel}
        return pixel_and_rmi_loss(x, label, **options)

    with jax.enable_x64(dtype == "float64"):
        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits, dtype))
        return (float(value), float(terms["rmi"])), np.asarray(gradient, np.float64)


def compare(case: Case, options) -> dict:
    """{"float32 value": …, "float32 gradient": …, …, "agrees": bool}: relative differences."""
    rng = np.random.default_rng(0)
    label = label_maps(case.labels, options.labels, options.classes, rng)
    logits = predictions(case.logits, label, options.classes, rng)
    expected, gradient = in_torch(case, logits, label, options.rmi_repo)
    row = {"agrees": True}
    for dtype in ("float32",) if options.rmi_repo else ("float32", "float64"):
        values, own_gradient = in_jaxseg(case, logits, label, dtype)
        value = max(abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True))
        of_norm = float(np.linalg.norm(own_gradient - gradient) / np.linalg.norm(gradient))
        allowed = (CONFIDENT if case.logits == "confident" else TOLERANCE)[dtype]
        row |= {f"{dtype} value": value, f"{dtype} gradient": of_norm}
        row["agrees"] &= value <= allowed[0] and of_norm <= allowed[1]  # NaN is no agreement
    return row


def main(options: argparse.Namespace) -> int:
    jax.config.update("jax_default_matmul_precision", "highest")
    chosen = [case for case in cases() if fnmatch.fnmatchcase(str(case), options.only)]
    if not chosen:
        raise InputError(f"--only={options.only}: matches none of {'; '.join(map(str, cases()))}.")
    try:
        rows = {str(case): compare(case, options) for case in chosen}
    except FileNotFoundError as error:
        raise InputError(str(error)) from error
    columns = [key for key in next(iter(rows.values())) if key != "agrees"]
    reference = "the authors' code" if options.rmi_repo else "PyTorch in float64"
    names = [column.replace(" ", "\n").replace("gradient", "grad").replace("float", "f") for column in columns]
    title = f"RMI of jaxseg against {reference}: relative differences"
    table = make_table(title, ["labels logits, pixel, pool, radius", *names])
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.0e}" for column in columns), style=None if row["agrees"] else "bold red")
    table.add_section()
    table.add_row("worst", *(f"{max(row[column] for row in rows.values()):.0e}" for column in columns))
    Console().print(table)
    differing = [name for name, row in rows.items() if not row["agrees"]]
    print(
        f"{len(rows) - len(differing)} of {len(rows)} cases agree" + "".join(f"\n  not: {name}" for name in differing)
    )
    tolerances = {"tolerance": TOLERANCE, "tolerance_confident": CONFIDENT}
    write_result(options.output, {"check": "rmi parity", **tolerances, "cases": rows}, packages=["torch"])
    return 1 if differing else 0


if __name__ == "__main__":
    parser = result_options_of(__doc__, classes=19)
    parser.add_argument("--only", default="*", metavar="GLOB")
    parser.add_argument("--rmi-repo", type=Path)
    parser.add_argument("--labels", type=Path)
    run(main, parser)
