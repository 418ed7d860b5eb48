"""PyTorch's training step, to take turns with jaxseg's.

In: networks, a loss of their logits, a batch as `timing.random_batch` gives. Out: contestants of `timing.take_turns`.
In float32 both frameworks multiply as they do by default: on a GPU convolutions in TF32.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from scripts.bench.timing import Contestants, torch_device
from scripts.needs_torch import torch

REFERENCE = "PyTorch eager float32"
VARIANTS = {  # what PyTorch can be told to do, as options of `torch_step`
    "eager float32": {},
    "eager bfloat16": {"autocast": True},
    "compiled float32": {"compiled": True},
    "compiled bfloat16": {"compiled": True, "autocast": True},
}


def add_torch_option(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """--torch: which of `VARIANTS` there are."""
    parser.add_argument("--torch", choices=("all", "eager"), help="default: all on a GPU, eager float32 on a CPU")
    return parser


def variants(which: str | None) -> dict[str, dict]:
    """Those of `VARIANTS` that --torch asks for."""
    everything = torch_device() == "cuda" if which is None else which == "all"
    return VARIANTS if everything else {"eager float32": {}}


def torch_steps(
    make_models: Callable[[], Sequence[torch.nn.Module]],
    loss_of: Callable[..., torch.Tensor],
    batch: dict[str, np.ndarray],
    *,
    which: str | None,
) -> Contestants:
    """Steps in float32 and with autocast to bfloat16, eager and compiled.

    Args:
      make_models: makes the networks, image [b, 3, h, w] -> logits [b, c, h, w].
      loss_of: (logits of each network in float32, label [b, h, w] with 255 where void) -> loss.
      batch: image f32 [b, h, w, 3] and label int [b, h, w].
      which: "all", "eager" or None, as --torch says.
    """
    torch.backends.cudnn.benchmark = True  # XLA, too, times its convolutions before it chooses
    steps = variants(which)
    return {f"PyTorch {name}": torch_step(make_models(), loss_of, batch, **how) for name, how in steps.items()}


def torch_step(models, loss_of, batch, *, compiled: bool = False, autocast: bool = False) -> Callable[[], float]:
    """A function that does one step, channels_last, one Adam a network, and waits for it."""
    device = torch_device()
    models = [model.to(device, memory_format=torch.channels_last) for model in models]
    optimizers = [torch.optim.Adam(model.parameters(), 1e-3) for model in models]
    forwards = [torch.compile(model) for model in models] if compiled else models
    image = torch.tensor(batch["image"]).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
    label = torch.tensor(batch["label"]).long().to(device)

    def run():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = [forward(image) for forward in forwards]
        loss = loss_of(*(x.float() for x in logits), label)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()  # waits for the optimizers, too: they were asked for before

    return run
