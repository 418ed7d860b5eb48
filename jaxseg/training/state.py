"""The state of a peer: parameters, optimizer, BatchNorm statistics, step; and their moving average, where one is kept.

In: a network with its optimizer and first variables. Out: a `TrainState`; a run holds `{name: TrainState}`, its peers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state


class TrainState(train_state.TrainState):
    """One peer: step, parameters, optimizer state (flax's) and BatchNorm statistics.

    ema: the average {"params": …, "batch_stats": …}, or None, which is no leaf. ema_decay: d of it. freeze_batchnorm:
    whether training passes use the running statistics and leave them as they are.
    """

    batch_stats: Any
    ema: Any = None
    ema_decay: float = struct.field(pytree_node=False, default=0.0)
    freeze_batchnorm: bool = struct.field(pytree_node=False, default=False)


Peers = dict[str, TrainState]


def create_peer(
    model,
    tx: optax.GradientTransformation,
    variables: Mapping,
    *,
    ema_decay: float = 0.0,
    freeze_batchnorm: bool = False,
) -> TrainState:
    """The state of a peer at step 0; with `ema_decay` its average starts at the first variables."""
    peer = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=tx,
        # copies: the step gives back the memory of all that it is given, of each array once
        ema=jax.tree.map(jnp.copy, _variables(variables["params"], variables["batch_stats"])) if ema_decay else None,
        ema_decay=ema_decay,
        freeze_batchnorm=freeze_batchnorm,
    )
    return peer.replace(step=jnp.zeros((), jnp.int32))  # flax begins with a Python int


def update_average(peer: TrainState, *, step: jax.Array) -> TrainState:
    """`peer` with its average moved on: ema + (1 - d) (now - ema), d = min(ema_decay, (1 + step) / (10 + step)).

    The bound on d lets the average follow early on, as TensorFlow's `ExponentialMovingAverage(num_updates=…)`. All of the
    network's state is averaged, BatchNorm's statistics too, as in timm's `ModelEma` and torchvision's
    `ExponentialMovingAverage` (use_buffers=True).

    Args:
      peer: behind an update.
      step: how many came before that one.
    """
    if peer.ema is None:
        return peer
    weight_of_now = jnp.maximum(1 - peer.ema_decay, 9 / (10 + step.astype(jnp.float32)))
    now = _variables(peer.params, peer.batch_stats)
    return peer.replace(ema=optax.incremental_update(now, peer.ema, weight_of_now))


def averaged(peer: TrainState) -> TrainState:
    """`peer` as it is scored, predicts and is exported: by its average where there is one, else as it is."""
    return peer if peer.ema is None else peer.replace(**peer.ema, ema=None)


def _variables(params, batch_stats) -> dict:
    return {"params": params, "batch_stats": batch_stats}
