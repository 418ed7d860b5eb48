"""The RMI loss in PyTorch, float64 as published, to measure and compare against. Needs jaxseg[torch].

`TorchRMI` is written from the paper (Zhao et al., arXiv 1910.12037) with the numerics of the authors' code; `authors_rmi`
wraps a clone of that code itself, untouched, for whatever PyTorch and device are there. Both: logits [b, c, h, w] and
labels [b, h, w] (what is not in 0..c-1 is void) -> (pixel term, RMI term).
"""

import contextlib
import importlib
import sys
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional

ALPHA, LEAST_PROB, PIVOT_OFFSET = 5e-4, 1e-6, 1e-8  # the authors'


class TorchRMI:
    """radius, pool ("max", "avg", "interpolate", "none"), pool_size and pixel ("sigmoid", "softmax") as in jaxseg."""

    def __init__(self, *, radius: int = 3, pool: str = "max", pool_size: int = 3, pixel: str = "sigmoid"):
        self.radius, self.pool, self.pool_size, self.pixel = radius, pool, pool_size, pixel

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        valid, truth = self.valid_and_truth(logits, labels)
        if self.pixel == "sigmoid":
            entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid[:, None]
            pixel = entropy.sum() / (valid.sum() + 1)
        else:
            pixel = functional.cross_entropy(logits, torch.where(valid, labels, 255), ignore_index=255)
        return pixel, self.rmi(logits, labels)

    def rmi(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The RMI term alone."""
        valid, truth = self.valid_and_truth(logits, labels)
        prob = torch.sigmoid(logits) * valid[:, None]
        prob = prob + LEAST_PROB if self.pixel == "sigmoid" else prob.clamp(min=LEAST_PROB)
        return self.bound(*self.downsampled(truth, prob)).sum(1).mean()

    def valid_and_truth(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """bool [b, h, w] and the one-hot labels [b, c, h, w], 0 where void."""
        valid = (labels >= 0) & (labels < logits.shape[1])
        truth = functional.one_hot(torch.where(valid, labels, 0), logits.shape[1]).permute(0, 3, 1, 2)
        return valid, (truth * valid[:, None]).to(logits.dtype)

    def downsampled(self, truth: torch.Tensor, prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.pool_size
        if self.pool == "none" or size == 1:
            return truth, prob
        if self.pool == "interpolate":
            to = (truth.shape[2] // size, truth.shape[3] // size)
            prob = functional.interpolate(prob, size=to, mode="bilinear", align_corners=True)
            return functional.interpolate(truth, size=to, mode="nearest"), prob
        pool = functional.max_pool2d if self.pool == "max" else functional.avg_pool2d
        return pool(truth, size, size, size // 2), pool(prob, size, size, size // 2)

    def regions(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> centred float64 [b, c, d, n]."""
        h, w = x.shape[2] - self.radius + 1, x.shape[3] - self.radius + 1
        shifted = [x[:, :, i : i + h, j : j + w] for i in range(self.radius) for j in range(self.radius)]
        x = torch.stack(shifted, 2).flatten(3).double()
        return x - x.mean(3, keepdim=True)

    def bound(self, truth: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
        """½ log det(M + αI) / d, M = Σyy - Σyp (Σpp + αI)⁻¹ Σypᵀ, of every image and class [b, c]."""
        y, p = self.regions(truth), self.regions(prob)
        ridge = ALPHA * torch.eye(self.radius**2, dtype=y.dtype, device=y.device)
        yp = y @ p.transpose(2, 3)
        m = y @ y.transpose(2, 3) - yp @ torch.linalg.inv(p @ p.transpose(2, 3) + ridge) @ yp.transpose(2, 3)
        pivots = torch.linalg.cholesky(m + ridge).diagonal(dim1=2, dim2=3)
        return (pivots + PIVOT_OFFSET).log().sum(2) / self.radius**2


def authors_rmi(clone: Path, *, radius: int, pool: str, pool_size: int, pixel: str, classes: int):
    """The `RMILoss` of a clone of github.com/ZJULearning/RMI, as a function like TorchRMI. Raises FileNotFoundError.

    The code imports itself as package RMI from the folder above, whatever the clone is called, casts to
    `torch.cuda.DoubleTensor` and calls `torch.cholesky`, which current PyTorch lacks: all three are stood in for while it
    runs. It returns λ pixel + (1 - λ) RMI; λ = 1 and λ = 0 give the terms.
    """
    if not (clone / "losses" / "rmi" / "rmi.py").is_file():
        raise FileNotFoundError(f"{clone}: no clone of github.com/ZJULearning/RMI (losses/rmi/rmi.py is missing)")
    with package("RMI", clone):
        module = importlib.import_module("RMI.losses.rmi.rmi")
    ways = {"max": 0, "avg": 1, "interpolate": 2, "none": 0}
    size = 1 if pool == "none" else pool_size
    options = {"rmi_radius": radius, "rmi_pool_way": ways[pool], "rmi_pool_size": size, "rmi_pool_stride": size}

    def term(weight, logits, labels):
        loss = module.RMILoss(num_classes=classes, loss_weight_lambda=weight, lambda_way=1, **options)
        forward = loss.forward_sigmoid if pixel == "sigmoid" else loss.forward_softmax_sigmoid
        double = torch.DoubleTensor if logits.device.type == "cpu" else torch.cuda.DoubleTensor
        with (
            mock.patch.object(torch.cuda, "DoubleTensor", double),
            mock.patch.object(torch, "cholesky", torch.linalg.cholesky, create=True),
        ):
            return forward(logits, labels)

    return lambda logits, labels: (term(1.0, logits, labels), term(0.0, logits, labels))


@contextlib.contextmanager
def package(name: str, folder: Path):
    """`folder` importable as package `name`, with sub-folders that hold no __init__.py, leaving nothing in sys.path."""
    module = type(sys)(name)
    module.__path__ = [str(folder)]
    with mock.patch.object(sys, "dont_write_bytecode", True), mock.patch.dict(sys.modules, {name: module}):
        yield
