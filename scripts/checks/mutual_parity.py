"""jaxseg's mutual terms beside PyTorch's `KLDivLoss`: value and gradient. Exit status 1 on any mismatch.

    python -m scripts.checks.mutual_parity [--classes=21] [--output=FILE.json]

`form="kl"` is compared with `KLDivLoss` given the peer's softmax. `form="released"` is what the study's released code had
from `KLDivLoss` given the peer's raw logits, in the PyTorch of its time (1.11): a target of 0 or less added nothing. That
is written out here, and compared. The last column is what the `KLDivLoss` of the PyTorch installed makes of the same
logits: from 1.13 on NaN, as soon as one of them is negative. Needs jaxseg[torch].
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxseg.losses import mutual_kl
from scripts.entry import make_table, result_options_of, run, write_result
from scripts.needs_torch import torch

TOLERANCE = 2e-6  # of float32: relative, of the gradient in units of its norm


def term_of_its_time(log_q: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`kl_div` of PyTorch up to 1.12, mean over all elements: target (log target - log q) where the target is above 0."""
    positive = target > 0
    log_target = torch.where(positive, target, 1.0).log()
    return torch.where(positive, target * (log_target - log_q), 0.0).mean()


def in_torch(form: str, logits: np.ndarray, peer: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Value, gradient [b, h, w, c] and what the installed `KLDivLoss` says, all from float64."""
    x, z = (torch.tensor(array, dtype=torch.float64).permute(0, 3, 1, 2) for array in (logits, peer))
    x.requires_grad_()
    log_q = torch.log_softmax(x, 1)
    if form == "kl":
        # mean over pixels, not elements: times the number of classes
        value = today = torch.nn.KLDivLoss(reduction="mean")(log_q, torch.softmax(z, 1)) * x.shape[1]
    else:
        value = term_of_its_time(log_q, z)
        today = torch.nn.KLDivLoss(reduction="mean")(log_q, z)
    value.backward()
    return value.item(), x.grad.permute(0, 2, 3, 1).numpy(), today.item()


def compare(form: str, lowest: float | None, classes: int) -> dict:
    """Relative differences of value and gradient. lowest: of the peer's logits, moved there; None: as drawn."""
    rng = np.random.default_rng(0)
    logits, peer = (rng.normal(0, 3, (2, 16, 16, classes)).astype(np.float32) for _ in range(2))
    if lowest is not None:
        peer += lowest - peer.min()
    label = jnp.zeros(logits.shape[:-1], int)
    value, gradient = jax.value_and_grad(mutual_kl)(jnp.asarray(logits), peer, label, form=form)
    expected, expected_gradient, today = in_torch(form, logits, peer)
    row = {
        "value": abs(float(value) - expected) / abs(expected),
        "gradient": float(np.linalg.norm(gradient - expected_gradient) / np.linalg.norm(expected_gradient)),
    }
    agrees = max(row.values()) <= TOLERANCE  # NaN is no agreement
    return row | {"jaxseg": float(value), "installed KLDivLoss": today, "agrees": bool(agrees)}


def main(options: argparse.Namespace) -> int:
    cases = {
        "kl": ("kl", None),
        "released, logits of both signs": ("released", None),
        "released, logits above 0": ("released", 0.1),
    }
    rows = {name: compare(*case, options.classes) for name, case in cases.items()}
    table = make_table(f"Mutual terms of jaxseg against PyTorch {torch.__version__}", ["form", *list(rows["kl"])[:-1]])
    for name, row in rows.items():
        cells = (f"{row['value']:.0e}", f"{row['gradient']:.0e}", f"{row['jaxseg']:.6f}")
        table.add_row(name, *cells, f"{row['installed KLDivLoss']:.6f}", style=None if row["agrees"] else "bold red")
    Console().print(table)
    differing = [name for name, row in rows.items() if not row["agrees"]]
    print(f"{len(rows) - len(differing)} of {len(rows)} agree" + "".join(f"\n  not: {name}" for name in differing))
    finite = {name: {k: v if v == v else None for k, v in row.items()} for name, row in rows.items()}
    write_result(
        options.output, {"check": "mutual parity", "tolerance": TOLERANCE, "cases": finite}, packages=["torch"]
    )
    return 1 if differing else 0


if __name__ == "__main__":
    run(main, result_options_of(__doc__, classes=21))
