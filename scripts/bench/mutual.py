"""Time of one mutual-learning step, both networks in one call, beside their own steps and beside PyTorch, in one run.

    python scripts/bench/mutual.py [--batch=10] [--size=224] [--rounds=5] [--steps=3] [--output=FILE.json]

U-Net (32 features) and DeepLabV3 (ResNet-50), 21 classes, cross-entropy and KL both ways, Adam; batch already on the
device. "own steps": each network trained alone on the same batch; the step of both should cost no more than their sum.
PyTorch: both forward passes, one backward pass of the summed losses, two optimisers, channels_last, eager; on a GPU also
compiled and under bfloat16 autocast, and jaxseg in bfloat16. Needs jaxseg[torch].
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads must not spin while it is jaxseg's turn
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share the GPU's memory
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from jaxseg.config import default, use_mutual_learning
from scripts.bench.step import CLASSES, print_table, random_batch, step_of, take_turns, write_results
from scripts.torch_reference.deeplabv3 import TorchDeepLabV3
from scripts.torch_reference.unet import TorchUNet

BOTH, STUDENT, TEACHER = "both in one step", "U-Net alone", "DeepLabV3 alone"


def jaxseg_steps(batch: dict, dtype: str) -> dict:
    """The three contestants of jaxseg."""
    both = default()
    use_mutual_learning(both)
    both.model.dtype = both.peers.teacher.model.dtype = dtype
    teacher = default()
    teacher.model.update({"name": "deeplabv3", "dtype": dtype})
    student = default()
    student.model.dtype = dtype
    configs = {BOTH: both, STUDENT: student, TEACHER: teacher}
    return {f"jaxseg {dtype}, {name}": step_of(config, batch) for name, config in configs.items()}


def torch_step(batch: dict, device: str, *, compiled: bool = False, autocast: bool = False):
    """A function that does one step of both networks and waits for it."""
    image = torch.tensor(batch["image"]).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
    label = torch.tensor(batch["label"]).long().to(device)
    models = [TorchUNet(CLASSES), TorchDeepLabV3(CLASSES)]
    models = [model.to(device, memory_format=torch.channels_last) for model in models]
    optimizers = [torch.optim.Adam(model.parameters(), 1e-3) for model in models]
    forwards = [torch.compile(model) for model in models] if compiled else models

    def own_loss(logits, other):
        kl = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(other.detach(), 1), reduction="none", log_target=True)
        valid = label != 255
        return F.cross_entropy(logits, label, ignore_index=255) + kl.sum(1)[valid].mean()

    def run():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            student, teacher = (forward(image) for forward in forwards)
        loss = own_loss(student.float(), teacher.float()) + own_loss(teacher.float(), student.float())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 10), ("size", 224), ("rounds", 5), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    batch, gpu = random_batch(options.batch, options.size), jax.default_backend() == "gpu"
    device = "cuda" if gpu else "cpu"
    contestants = {"PyTorch eager float32": torch_step(batch, device)} | jaxseg_steps(batch, "float32")
    if gpu:
        contestants |= {
            "PyTorch compiled float32": torch_step(batch, device, compiled=True),
            "PyTorch compiled bfloat16": torch_step(batch, device, compiled=True, autocast=True),
        } | jaxseg_steps(batch, "bfloat16")
    seconds = take_turns(contestants, rounds=options.rounds, steps=options.steps)
    title = f"mutual-learning step, {options.batch} × {options.size}×{options.size}"
    rows = print_table(title, seconds, reference="PyTorch eager float32")
    shares = {}
    for dtype in ("float32", "bfloat16") if gpu else ("float32",):
        turns = [np.array(seconds[f"jaxseg {dtype}, {name}"]) for name in (BOTH, STUDENT, TEACHER)]
        ratios = turns[0] / (turns[1] + turns[2])  # of each round: what slows the machine slows all three
        shares[dtype] = {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())}
        print(f"{dtype}: both in one step take {np.median(ratios):.3f} of the sum of their own steps"
              f" (rounds: {ratios.min():.3f} to {ratios.max():.3f})")  # fmt: skip
    write_results(options, "mutual_step", rows, both_over_sum=shares)


if __name__ == "__main__":
    main()
