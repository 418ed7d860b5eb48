"""The state of a peer: parameters, optimiser, BatchNorm statistics, step.

In: a network with its optimiser and first variables. Out: a `TrainState`; a run holds `{name: TrainState}`, its peers.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from flax.training import train_state


class TrainState(train_state.TrainState):
    """One peer: step, parameters, optimiser state (flax's) and BatchNorm statistics."""

    batch_stats: Any


Peers = dict[str, TrainState]


def create_peer(model, tx: optax.GradientTransformation, variables: Mapping) -> TrainState:
    """The state of a peer at step 0."""
    peer = TrainState.create(
        apply_fn=model.apply, params=variables["params"], batch_stats=variables["batch_stats"], tx=tx
    )
    return peer.replace(step=jnp.zeros((), jnp.int32))  # flax begins with a Python int
