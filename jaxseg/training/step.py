"""The one training step and the one evaluation step, for any number of peers.

In: the peers' states `{name: TrainState}` and one device's share of the batch, as bytes, of which networks' input is made
here, on the device. Out: the new states and measurements, or confusion matrices. Pure functions of one device;
`axis_name` is the axis over which devices agree. Mutual learning is more peers, RMI another loss; neither is another
step.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from jaxseg.losses.objective import LossFn
from jaxseg.metrics import count_pixels
from jaxseg.training.state import Peers, TrainState, averaged, update_average

Batch = Mapping[str, jax.Array]


def train_step(
    peers: Peers,
    batch: Batch,
    *,
    losses: Mapping[str, LossFn],
    seed: ArrayLike,
    accumulate_steps: int,
    updates: str = "together",
    skip_nonfinite: bool = False,
    axis_name: str,
) -> tuple[Peers, dict[str, jax.Array]]:
    """One update of all peers that have a loss, from one global batch; a peer without one is a teacher, held fixed.

    "together": every peer runs forward once. The sum of the peers' losses is differentiated in one pass: a peer's loss
    sees the others' logits as constants, so each gets the gradient of its own loss. "in_turn": one peer after the other,
    in the order of `turns`, as in algorithm 1 of arXiv 1706.00384. For each turn all trained peers run forward again, those
    that had theirs with their new parameters; so a step moves the running statistics of every BatchNorm, and draws
    dropout, as often as there are turns.

    Args:
      peers: `{name: TrainState}`, the same on every device.
      batch: this device's share of the global batch: image uint8 [b, h, w, 3] or float, as in `to_float`, label an integer
        [b, h, w], valid bool [b, h, w].
      losses: the loss of every peer that is trained, by name, the reported one first.
      seed: of dropout.
      accumulate_steps: microbatches that the share is cut into, and that BatchNorm sees one after another; gradients are
        the mean over them and over devices. A turn sees all of them before the next one begins.
      updates: "together" or "in_turn".
      skip_nonfinite: where a measurement is not finite, leave the peers as they were, their step aside.
      axis_name: over which devices agree.

    Returns:
      The new peers and, for each trained one, float32 scalars "peer/loss", "peer/TERM", "peer/grad_norm",
      "peer/param_norm", "peer/update_norm", of its own turn; with skip_nonfinite also "skipped", 0 or 1.

    Raises:
      ValueError: while tracing, where the peers' logits differ in shape.
    """
    batch = decode_batch(batch)
    microbatches = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), batch)
    whole = {
        "num_parts": accumulate_steps * lax.axis_size(axis_name),
        "pixels": lax.psum(batch["valid"].sum(), axis_name).astype(jnp.float32),
        "weights": lax.psum({name: loss_fn.weights_of(batch) for name, loss_fn in losses.items()}, axis_name),
    }
    step = next(iter(peers.values())).step
    rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), lax.axis_index(axis_name))
    new_peers, measurements = peers, {}
    batch_stats = {name: peers[name].batch_stats for name in losses}
    for turn, names in enumerate(turns(losses, updates)):
        objective = functools.partial(total_loss, peers=new_peers, losses=losses, axis_name=axis_name, **whole)
        params = {name: new_peers[name].params for name in names}
        passes = {"rng": rng, "first_pass": turn * accumulate_steps, "accumulate_steps": accumulate_steps}
        grads, batch_stats, terms = accumulate_gradients(objective, params, batch_stats, microbatches, **passes)
        new_peers, measured = apply_gradients(new_peers, *lax.pmean((grads, terms), axis_name))
        measurements |= measured
    new_peers = finish_step(new_peers, batch_stats)
    return skip_where_not_finite(peers, new_peers, measurements) if skip_nonfinite else (new_peers, measurements)


def turns(losses: Mapping[str, Any], updates: str) -> list[list[str]]:
    """Which peers are updated at once, one list after the other. "in_turn": the reported peer, the first, comes last.

    >>> turns(dict.fromkeys(["student", "teacher", "third"]), "in_turn")
    [['teacher'], ['third'], ['student']]
    >>> turns(dict.fromkeys(["student", "teacher", "third"]), "together")
    [['student', 'teacher', 'third']]
    """
    reported, *others = losses
    return [[name] for name in (*others, reported)] if updates == "in_turn" else [[reported, *others]]


def total_loss(
    params: Mapping,
    batch_stats: Mapping,
    batch: Batch,
    *,
    peers: Peers,
    losses: Mapping[str, LossFn],
    rng: jax.Array,
    pixels: jax.Array,
    weights: Mapping[str, jax.Array | None],
    num_parts: int,
    axis_name: str,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """Sum of the losses of the peers that learn, on one microbatch; with it new BatchNorm statistics and terms.

    params: of the peers that learn, by name. batch_stats: of all trained ones, those with a loss; these run forward in
    training, the rest as when predicting. pixels: valid ones of the global batch, over `num_parts` microbatches. weights:
    by peer, the sum of its class weights over these pixels, or None.
    """
    logits = {name: predict(peer, batch["image"]) for name, peer in peers.items() if name not in losses}
    auxiliary, new_stats, terms = {}, {}, {}
    total = 0.0
    for name in losses:
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        variables = {"params": params.get(name, peers[name].params), "batch_stats": batch_stats[name]}
        logits[name], auxiliary[name], new_stats[name] = forward(peers[name], variables, batch["image"], key)
    check_shapes(logits)
    for name, loss_fn in ((name, losses[name]) for name in losses if name in params):
        others = [logits[other] for other in peers if other != name]
        whole = {"pixels": pixels, "weights": weights[name], "num_parts": num_parts, "axis_name": axis_name}
        heads = {"peer_logits": others, "auxiliary": auxiliary[name]}
        loss, own_terms = loss_fn(logits[name], batch, **heads, **whole, step=peers[name].step)
        total += loss
        terms |= {f"{name}/{term}": value for term, value in own_terms.items()} | {f"{name}/loss": loss}
    return total, (new_stats, terms)


def forward(peer: TrainState, variables: Mapping, image: jax.Array, key: jax.Array) -> tuple[jax.Array, list, Any]:
    """A training pass: logits, logits of auxiliary heads, new BatchNorm statistics (the old ones where these are frozen)."""
    mutable = ["auxiliary"] if peer.freeze_batchnorm else ["batch_stats", "auxiliary"]
    logits, updated = peer.apply_fn(variables, image, train=True, mutable=mutable, rngs={"dropout": key})
    new_stats = updated.get("batch_stats", variables["batch_stats"])
    return logits, jax.tree.leaves(updated.get("auxiliary", {})), new_stats


def decode_batch(batch: Batch) -> Batch:
    """What travelled as bytes as networks and losses take it: image f32, label i32."""
    return dict(batch) | {"image": to_float(batch["image"]), "label": batch["label"].astype(jnp.int32)}


def to_float(image: jax.Array) -> jax.Array:
    """Bytes as float32 in [0, 1], value / 255 to the last bit, as NumPy and torchvision's ToTensor divide; a float image as
    it is.

    XLA makes of a division by a constant a product with its reciprocal, which is an ulp off for half of the values. So 1/255
    is a sum of two parts: 65793 is 1 + 2^8 + 2^16, both products fit 24 bits, and only their sum is rounded, fused or not.

    >>> float(to_float(jnp.uint8(51)))
    0.20000000298023224
    """
    if image.dtype != jnp.uint8:
        return image
    exact = image.astype(jnp.float32)
    return exact * np.float32(65793 / 2**24) + exact * np.float32(65793 / 2**48)


def predict(peer: TrainState, image: jax.Array) -> jax.Array:
    """Logits of a pass that changes nothing: running BatchNorm statistics, no dropout. image: as in `to_float`."""
    return peer.apply_fn({"params": peer.params, "batch_stats": peer.batch_stats}, to_float(image), train=False)


def predict_labels(peer: TrainState, image: jax.Array) -> jax.Array:
    """The class of every pixel, uint8 [b, h, w]."""
    return predict(peer, image).argmax(-1).astype(jnp.uint8)


def check_shapes(logits: Mapping[str, jax.Array]) -> None:
    if len({value.shape for value in logits.values()}) > 1:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in logits.items())
        raise ValueError(
            f"peers learn from each other pixel by pixel and class by class, but their logits are {shapes}"
        )


def accumulate_gradients(
    objective: Callable,
    params: Mapping,
    batch_stats: Mapping,
    microbatches: Batch,
    *,
    rng: jax.Array,
    first_pass: int,
    accumulate_steps: int,
) -> tuple[dict, dict, dict]:
    """Mean gradients and terms over the microbatches, BatchNorm statistics passed from one to the next.

    objective: `total_loss`. first_pass: how many forward passes of the step came before; each has dropout of its own.
    """

    def microbatch_gradients(batch_stats, microbatch_and_index):
        microbatch, index = microbatch_and_index
        gradients = jax.grad(functools.partial(objective, rng=jax.random.fold_in(rng, index)), has_aux=True)
        grads, (batch_stats, terms) = gradients(params, batch_stats, microbatch)
        return batch_stats, (grads, terms)

    if accumulate_steps == 1:
        first = jax.tree.map(lambda x: x[0], microbatches)
        batch_stats, (grads, terms) = microbatch_gradients(batch_stats, (first, first_pass))
        return grads, batch_stats, terms

    def body(carry, microbatch_and_index):
        batch_stats, total = carry
        batch_stats, new = microbatch_gradients(batch_stats, microbatch_and_index)
        return (batch_stats, jax.tree.map(jnp.add, total, new)), None

    index = first_pass + jnp.arange(accumulate_steps)
    shapes = jax.eval_shape(microbatch_gradients, batch_stats, jax.tree.map(lambda x: x[0], (microbatches, index)))[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (batch_stats, total), _ = lax.scan(body, (batch_stats, zeros), (microbatches, index))
    grads, terms = jax.tree.map(lambda x: x / accumulate_steps, total)
    return grads, batch_stats, terms


def apply_gradients(peers: Peers, grads: Mapping, terms: dict) -> tuple[Peers, dict[str, jax.Array]]:
    """The optimizer update of the peers that have a gradient, and the norms of what went in and out."""
    new_peers = dict(peers)
    measurements = dict(terms)
    for name, peer in ((name, peers[name]) for name in grads):
        updates, opt_state = peer.tx.update(grads[name], peer.opt_state, peer.params)
        params = optax.apply_updates(peer.params, updates)
        new_peers[name] = peer.replace(params=params, opt_state=opt_state)
        measurements[f"{name}/grad_norm"] = optax.tree.norm(grads[name])
        measurements[f"{name}/param_norm"] = optax.tree.norm(params)
        measurements[f"{name}/update_norm"] = optax.tree.norm(updates)
    return new_peers, measurements


def finish_step(peers: Peers, batch_stats: Mapping) -> Peers:
    """What happens once in a step, however many turns it has: it is counted, and averages move on. Teachers count only."""
    new_peers = {}
    for name, peer in peers.items():
        new_peers[name] = peer.replace(step=peer.step + 1)
        if name in batch_stats:
            updated = new_peers[name].replace(batch_stats=batch_stats[name])
            new_peers[name] = update_average(updated, step=peer.step)
    return new_peers


def skip_where_not_finite(
    peers: Peers, new_peers: Peers, measurements: Mapping[str, jax.Array]
) -> tuple[Peers, dict[str, jax.Array]]:
    """`new_peers` where every measurement is finite, else `peers` with the step counted; "skipped", 0 or 1, beside."""
    finite = jnp.isfinite(jnp.stack(list(measurements.values()))).all()
    counted = {name: peer.replace(step=new_peers[name].step) for name, peer in peers.items()}
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_peers, counted)
    return kept, dict(measurements) | {"skipped": 1.0 - finite}


def eval_step(
    peers: Peers, batch: Batch, *, num_classes: int, axis_name: str
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Confusion matrix of every peer, summed over devices, and its predictions, uint8 [b, h, w], of this device.

    A peer with a moving average predicts by that; what peers learn from each other in training is as they are.
    """
    confusions, predictions = {}, {}
    for name, peer in peers.items():
        prediction = predict_labels(averaged(peer), batch["image"])
        confusions[name] = lax.psum(count_pixels(prediction, batch["label"], batch["valid"], num_classes), axis_name)
        predictions[name] = prediction
    return confusions, predictions
