"""Optimizer and learning rate of a peer.

In: `config.optim` and the number of steps. Out: an optax transformation and the schedule it follows.
"""

import optax
from ml_collections import ConfigDict

POLY_POWER = 0.9  # Chen et al., DeepLab (arXiv 1606.00915), section 4.1.1


def make_schedule(optim: ConfigDict, *, steps: int) -> optax.Schedule:
    """The learning rate by step, counted from 0, with linear warm-up from 0 in front.

    Args:
      optim: `config.optim`.
      steps: of the whole schedule, warm-up included.

    Returns:
      A function from step to rate: constant, cosine to 0, or poly, (1 - step/steps)^0.9, to 0.

    >>> optim = ConfigDict({"learning_rate": 0.5, "schedule": "cosine", "warmup_steps": 2})
    >>> schedule = make_schedule(optim, steps=4)
    >>> [round(float(schedule(step)), 3) for step in range(5)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    warmup = optim.warmup_steps
    decay = max(steps - warmup, 1)
    if optim.schedule == "constant":
        main = optax.constant_schedule(optim.learning_rate)
    elif optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(optim.learning_rate, decay)
    else:
        main = optax.polynomial_schedule(optim.learning_rate, 0.0, POLY_POWER, decay)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, optim.learning_rate, warmup), main], [warmup])


def make_optimizer(optim: ConfigDict, *, steps: int) -> optax.GradientTransformation:
    """Adam (betas 0.9 and 0.999, eps 1e-8: PyTorch's defaults and optax's) or SGD with momentum 0.9.

    Args:
      optim: `config.optim`.
      steps: what the schedule is laid out over.

    Returns:
      The transformation, to be used as any of optax's.
    """
    scale = optax.scale_by_adam() if optim.name == "adam" else optax.trace(decay=0.9)
    decay = [optax.add_decayed_weights(optim.weight_decay)] if optim.weight_decay else []
    return optax.chain(scale, *decay, optax.scale_by_learning_rate(make_schedule(optim, steps=steps)))
