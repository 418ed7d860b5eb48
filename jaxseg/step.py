"""The one training step and the one evaluation step, for any number of peers.

In: the peers' states `{name: TrainState}` and one device's share of the batch. Out: the new states and measurements,
or confusion matrices. Pure functions of one device; `axis_name` is the axis over which devices agree. Mutual learning
is more peers, RMI another loss; neither is another step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from jax import lax

from jaxseg.losses import LossFn
from jaxseg.metrics import confusion_matrix

Batch = Mapping[str, jax.Array]


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


def train_step(
    peers: Peers, batch: Batch, *, losses: Mapping[str, LossFn], seed: int, accumulate_steps: int, axis_name: str
) -> tuple[Peers, dict[str, jax.Array]]:
    """One update of all peers from one global batch.

    Every peer runs forward once. The sum of the peers' losses is differentiated in one pass: a peer's loss depends on
    its own parameters only, so each gets the gradient of its own loss. Gradients are the mean over devices and, with
    accumulate_steps > 1, over as many slices of the share, through which BatchNorm sees one slice after another.

    Returns the new peers and float32 scalars "peer/loss", "peer/TERM", "peer/grad_norm", "peer/param_norm",
    "peer/update_norm".
    """
    slices = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), batch)
    parts = accumulate_steps * lax.axis_size(axis_name)
    pixels = lax.psum(batch["valid"].sum(), axis_name).astype(jnp.float32)
    step = next(iter(peers.values())).step
    rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), lax.axis_index(axis_name))

    def slice_gradients(batch_stats, slice_and_index):
        batch, index = slice_and_index

        def total_loss(params):
            logits, new_stats = {}, {}
            for name, peer in peers.items():
                logits[name], updated = peer.apply_fn(
                    {"params": params[name], "batch_stats": batch_stats[name]},
                    batch["image"],
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.fold_in(rng, index)},
                )
                new_stats[name] = updated["batch_stats"]
            loss, terms = {}, {}
            for name in peers:
                loss[name], own_terms = losses[name](logits[name], batch, pixels=pixels, parts=parts)
                terms |= {f"{name}/{term}": value for term, value in own_terms.items()} | {f"{name}/loss": loss[name]}
            return sum(loss.values()), (new_stats, terms)

        params = {name: peer.params for name, peer in peers.items()}
        grads, (batch_stats, terms) = jax.grad(total_loss, has_aux=True)(params)
        return batch_stats, (grads, terms)

    batch_stats = {name: peer.batch_stats for name, peer in peers.items()}
    grads, batch_stats, terms = over_slices(slice_gradients, batch_stats, slices, accumulate_steps)
    grads, terms = lax.pmean((grads, terms), axis_name)
    return apply_gradients(peers, grads, batch_stats, terms)


def over_slices(slice_gradients: Callable, batch_stats, slices: Batch, accumulate_steps: int):
    """Mean gradients and terms over the slices, BatchNorm statistics passed from one to the next."""
    if accumulate_steps == 1:
        first = jax.tree.map(lambda x: x[0], slices)
        batch_stats, (grads, terms) = slice_gradients(batch_stats, (first, 0))
        return grads, batch_stats, terms

    def body(carry, slice_and_index):
        batch_stats, total = carry
        batch_stats, new = slice_gradients(batch_stats, slice_and_index)
        return (batch_stats, jax.tree.map(jnp.add, total, new)), None

    index = jnp.arange(accumulate_steps)
    shapes = jax.eval_shape(slice_gradients, batch_stats, jax.tree.map(lambda x: x[0], (slices, index)))[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (batch_stats, total), _ = lax.scan(body, (batch_stats, zeros), (slices, index))
    grads, terms = jax.tree.map(lambda x: x / accumulate_steps, total)
    return grads, batch_stats, terms


def apply_gradients(
    peers: Peers, grads: Mapping, batch_stats: Mapping, terms: dict
) -> tuple[Peers, dict[str, jax.Array]]:
    """Each peer's optimiser update, and the norms of what went in and out."""
    new_peers, measurements = {}, dict(terms)
    for name, peer in peers.items():
        updates, opt_state = peer.tx.update(grads[name], peer.opt_state, peer.params)
        params = optax.apply_updates(peer.params, updates)
        new_peers[name] = peer.replace(
            step=peer.step + 1, params=params, opt_state=opt_state, batch_stats=batch_stats[name]
        )
        measurements[f"{name}/grad_norm"] = optax.tree.norm(grads[name])
        measurements[f"{name}/param_norm"] = optax.tree.norm(params)
        measurements[f"{name}/update_norm"] = optax.tree.norm(updates)
    return new_peers, measurements


def eval_step(
    peers: Peers, batch: Batch, *, num_classes: int, axis_name: str
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Confusion matrix of every peer, summed over devices, and its predictions, uint8 [b, h, w], of this device."""
    confusions, predictions = {}, {}
    label = jnp.where(batch["valid"], batch["label"], -1)
    for name, peer in peers.items():
        logits = peer.apply_fn({"params": peer.params, "batch_stats": peer.batch_stats}, batch["image"], train=False)
        prediction = logits.argmax(-1)
        confusions[name] = lax.psum(confusion_matrix(prediction, label, num_classes), axis_name)
        predictions[name] = prediction.astype(jnp.uint8)
    return confusions, predictions
