"""PyTorch's training step, to take turns with jaxseg's.

In: networks, a loss of their logits, a batch as `timing.random_batch` gives. Out: contestants of `timing.take_turns`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from scripts.bench.timing import Contestants, torch_device
from scripts.needs_torch import torch


def torch_steps(
    make_models: Callable[[], Sequence[torch.nn.Module]],
    loss_of: Callable[..., torch.Tensor],
    batch: dict[str, np.ndarray],
) -> Contestants:
    """Steps in float32, eager; on a GPU also compiled, and compiled with autocast to bfloat16.

    Args:
      make_models: makes the networks, image [b, 3, h, w] -> logits [b, c, h, w].
      loss_of: (logits of each network in float32, label [b, h, w] with 255 where void) -> loss.
      batch: image f32 [b, h, w, 3] and label int [b, h, w].
    """
    variants = {"PyTorch eager float32": {}}
    if torch_device() == "cuda":
        variants["PyTorch compiled float32"] = {"compiled": True}
        variants["PyTorch compiled bfloat16"] = {"compiled": True, "autocast": True}
    return {name: torch_step(make_models(), loss_of, batch, **how) for name, how in variants.items()}


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
        return loss.item()

    return run
