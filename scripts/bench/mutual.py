"""Time of one mutual-learning step, both networks in one call, beside their own steps and beside PyTorch, in one run.

    python -m scripts.bench.mutual [--batch=10] [--size=224] [--rounds=5] [--steps=3] [--torch=all|eager]
                                   [--output=FILE.json]

U-Net (32 features) and DeepLabV3 (ResNet-50), 21 classes, cross-entropy and KL both ways, Adam; batch already on the
device. "alone": each network trained by itself on the same batch; the step of both should cost no more than their sum.
PyTorch: both forward passes, one backward pass of the summed losses, two optimisers, channels_last, eager; on a GPU and
with --torch=all also compiled and under bfloat16 autocast; jaxseg on a GPU in bfloat16, too. Needs jaxseg[torch].
"""

import argparse

import numpy as np

from jaxseg.config import default, use_mutual_learning
from scripts.bench.timing import (
    CLASSES,
    Contestants,
    drop_failing,
    dtypes,
    jaxseg_step,
    print_table,
    random_batch,
    take_turns,
    write_rows,
)
from scripts.bench.torch_step import REFERENCE, add_torch_option, torch_steps
from scripts.entry import result_options_of, run
from scripts.needs_torch import torch
from scripts.torch_reference.deeplabv3 import TorchDeepLabV3
from scripts.torch_reference.unet import TorchUNet

BOTH = "both in one step"
STUDENT = "U-Net alone"
TEACHER = "DeepLabV3 alone"


def jaxseg_steps(batch: dict, dtype: str) -> Contestants:
    """The three contestants of jaxseg."""
    both = default()
    use_mutual_learning(both)
    both.model.dtype = both.peers.teacher.model.dtype = dtype
    teacher = default()
    teacher.model.update({"name": "deeplabv3", "dtype": dtype})
    student = default()
    student.model.dtype = dtype
    configs = {BOTH: both, STUDENT: student, TEACHER: teacher}
    return {f"jaxseg {dtype}, {name}": jaxseg_step(config, batch) for name, config in configs.items()}


def mutual_loss(student: torch.Tensor, teacher: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of both, and the KL divergence of each from the other, which is held fixed."""
    functional = torch.nn.functional
    valid = label != 255

    def own_loss(logits, other):
        log_probs = functional.log_softmax(logits, 1)
        target = functional.log_softmax(other.detach(), 1)
        kl = functional.kl_div(log_probs, target, reduction="none", log_target=True)
        return functional.cross_entropy(logits, label, ignore_index=255) + kl.sum(1)[valid].mean()

    return own_loss(student, teacher) + own_loss(teacher, student)


def share_of_sum(seconds: dict[str, list[float]], dtype: str) -> dict[str, float]:
    """The step of both over the sum of their own, round by round: what slows the machine slows all three."""
    both, student, teacher = (np.array(seconds[f"jaxseg {dtype}, {name}"]) for name in (BOTH, STUDENT, TEACHER))
    ratios = both / (student + teacher)
    return {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())}


def main(options: argparse.Namespace) -> None:
    batch = random_batch(options.batch, options.size)
    contestants = torch_steps(
        lambda: [TorchUNet(CLASSES), TorchDeepLabV3(CLASSES)], mutual_loss, batch, which=options.torch
    )
    for dtype in dtypes():
        contestants |= jaxseg_steps(batch, dtype)
    contestants, failures = drop_failing(contestants, reference=REFERENCE)
    seconds = take_turns(contestants, rounds=options.rounds, steps=options.steps)
    title = f"mutual-learning step, {options.batch} × {options.size}×{options.size}"
    rows = print_table(title, seconds, reference=REFERENCE, failures=failures)
    shares = {dtype: share_of_sum(seconds, dtype) for dtype in dtypes()}
    for dtype, share in shares.items():
        print("{}: both in one step take {median:.3f} of the sum of their own steps"
              " (rounds: {min:.3f} to {max:.3f})".format(dtype, **share))  # fmt: skip
    write_rows(options, "mutual_step", rows, both_over_sum=shares)


if __name__ == "__main__":
    run(main, add_torch_option(result_options_of(__doc__, batch=10, size=224, rounds=5, steps=3)))
