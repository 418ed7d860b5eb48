"""Optimizer and learning rate of a peer.

In: `config.optim` and the number of steps. Out: an optax transformation and the schedule it follows. Names mean what they
mean in PyTorch: the decay of adam and sgd is added to the gradient, that of adamw is not.
"""

import jax
import optax
from ml_collections import ConfigDict

from jaxseg.config import step_shares

POLY_POWER = 0.9  # Chen et al., DeepLab (arXiv 1606.00915), section 4.1.1
MOMENTUM = 0.9  # of SGD: Krizhevsky et al. (2012), section 5, and since then in DeepLab, FCN and torchvision's recipes


def make_schedule(optim: ConfigDict, *, steps: int) -> optax.Schedule:
    """The learning rate by step, counted from 0.

    The first n = `warmup_steps` updates have 1/n, 2/n, …, n/n of the rate (torch.optim's LinearLR with start_factor=1/n);
    the schedule proper is laid out over the steps behind them, and its first update has the whole rate again.

    Args:
      optim: `config.optim`.
      steps: of the whole schedule, warm-up included.

    Returns:
      A function from step to rate: constant; cosine to 0; poly, (1 - step/steps)^0.9, to 0; or step, times `step_factor`
      from each of the shares `step_at` on.

    >>> from jaxseg.config import default
    >>> optim = default().optim
    >>> optim.update({"learning_rate": 0.5, "schedule": "cosine", "warmup_steps": 2})
    >>> schedule = make_schedule(optim, steps=4)
    >>> [round(float(schedule(step)), 3) for step in range(5)]
    [0.25, 0.5, 0.5, 0.25, 0.0]
    """
    rate = optim.learning_rate
    warmup = optim.warmup_steps
    decay = max(steps - warmup, 1)
    if optim.schedule == "constant":
        main = optax.constant_schedule(rate)
    elif optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, decay)
    elif optim.schedule == "poly":
        main = optax.polynomial_schedule(rate, 0.0, POLY_POWER, decay)
    else:
        main = optax.piecewise_constant_schedule(rate, step_factors(optim, steps=decay))
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(rate / warmup, rate, warmup - 1), main], [warmup])


def step_factors(optim: ConfigDict, *, steps: int) -> dict[int, float]:
    """Step -> what the rate is multiplied by from there on; in a very short run two shares may be one step."""
    factors = {}
    for share in step_shares(optim):
        step = round(share * steps)
        factors[step] = factors.get(step, 1.0) * optim.step_factor
    return factors


def make_optimizer(optim: ConfigDict, *, steps: int) -> optax.GradientTransformation:
    """PyTorch's Adam, AdamW (betas 0.9 and 0.999, eps 1e-8) or SGD with momentum 0.9, on clipped gradients.

    With gradient g, clipped, and parameter w: adam and sgd go by g + `weight_decay` · w, adamw goes by g and adds
    `weight_decay` · w to Adam's direction. The step is that direction times learning rate times the part's factor.

    Args:
      optim: `config.optim`.
      steps: what the schedule is laid out over.

    Returns:
      The transformation, to be used as any of optax's.
    """
    decay = [optax.add_decayed_weights(optim.weight_decay, decay_mask(optim))] if optim.weight_decay else []
    scale = optax.trace(decay=MOMENTUM) if optim.name == "sgd" else optax.scale_by_adam()
    return optax.chain(
        *([optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []),
        *([scale, *decay] if optim.name == "adamw" else [*decay, scale]),
        optax.scale_by_learning_rate(make_schedule(optim, steps=steps)),
        *factors_by_part(optim),
    )


def decay_mask(optim: ConfigDict):
    """None: all; else a function of the parameters, True where they are of more than one dimension, as in timm's
    `param_groups_weight_decay`: kernels are, biases and BatchNorm's scales are not."""
    return None if optim.decay_on == "all" else lambda params: jax.tree.map(lambda x: x.ndim > 1, params)


def factors_by_part(optim: ConfigDict) -> list[optax.GradientTransformation]:
    """The factors `backbone_rate` and `head_rate` on the updates; a part is found by the name of the network's module."""

    def is_backbone(params):
        return {name: name == "backbone" for name in params}

    def is_other(params):
        return {name: name != "backbone" for name in params}

    parts = ((optim.backbone_rate, is_backbone), (optim.head_rate, is_other))
    return [optax.masked(optax.scale(factor), mask) for factor, mask in parts if factor != 1]
