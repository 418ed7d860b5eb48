"""Devices: the one place that knows of pmap, replication and sharding.

In: the pure steps of `step.py` and host arrays. Out: compiled steps over all devices. Everything else is written for
one device with the axis name `AXIS`. Peers, measurements and confusion matrices are the same on every device and have no
axis of devices (`in_axes=None`, `out_axes=None`); batches and predictions have one, the first. To move from pmap to
`jax.shard_map`, change this file: tests/training/test_parallel.py compiles the same steps by it.
"""

import collections
import functools
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxseg.training.step import eval_step, predict, predict_labels, train_step

AXIS = "batch"
PROGRAMS = (
    16  # sizes of images that predicting is compiled for at once; of a U-Net about 8 MiB and 100 memory maps each
)


def compile_train_step(
    *,
    losses: Mapping,
    seed: int,
    accumulate_steps: int,
    updates: str = "together",
    skip_nonfinite: bool = False,
    devices: tuple | None = None,
):
    """`(replicated peers, sharded batch) -> (replicated peers, replicated measurements)`; the peers' memory is reused.

    That a device holds what the others hold is the step's doing (`lax.pmean`); pmap does not check it. devices: to compile for
    those; None: all there are.
    """

    def step(seed, peers, batch):
        options = {"accumulate_steps": accumulate_steps, "updates": updates, "skip_nonfinite": skip_nonfinite}
        return train_step(peers, batch, losses=losses, seed=seed, **options, axis_name=AXIS)

    # An argument, not a constant of the program: one entry of JAX's compilation cache then serves every seed.
    axes = {"in_axes": (None, None, 0), "out_axes": None}
    compiled = jax.pmap(step, axis_name=AXIS, **axes, donate_argnums=(1,), devices=devices)
    return functools.partial(compiled, np.uint32(seed))


def compile_eval_step(*, num_classes: int, devices: tuple | None = None):
    """`(replicated peers, sharded batch) -> (replicated confusions, predictions [devices, b, h, w])`."""
    step = functools.partial(eval_step, num_classes=num_classes, axis_name=AXIS)
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=devices)


def compile_predict():
    """`(replicated peer, image [devices, b, h, w, 3]) -> logits [devices, b, h, w, c]`."""
    return forgetting(predict)


def compile_predict_labels():
    """`(replicated peer, image [devices, b, h, w, 3]) -> class of every pixel, uint8 [devices, b, h, w]`."""
    return forgetting(predict_labels)


def forgetting(function: Callable) -> Callable:
    """`function(peer, image)` on all devices, as by pmap, with programs for at most `PROGRAMS` shapes of images: pictures
    may have any number of sizes, and each size's program stays in memory. pmap itself cannot let go of one."""

    def on_one_device(peer, image):
        return function(peer, image[0])[None]

    specs = {"in_specs": (jax.P(), jax.P(AXIS)), "out_specs": jax.P(AXIS)}
    return jit_for_few_shapes(jax.shard_map(on_one_device, mesh=local_mesh(), **specs, check_vma=False))


def jit_for_few_shapes(function: Callable) -> Callable:
    """`jax.jit`, with programs for at most `PROGRAMS` shapes of the second argument."""
    compiled = jax.jit(function)
    shapes = set()

    def call(first, x):
        if x.shape not in shapes and len(shapes) == PROGRAMS:
            compiled.clear_cache()
            shapes.clear()
        shapes.add(x.shape)
        return compiled(first, x)

    return call


# [1, b, ...] of one device -> [...] of image i, so that no more than that is copied to the host.
pick_image = jit_for_few_shapes(lambda i, x: lax.dynamic_index_in_dim(x[0], i, keepdims=False))


def local_mesh() -> jax.sharding.Mesh:
    """This host's devices, with the axis name of the compiled steps: what they return has the sharding of what they were
    given, and the second step does not compile again."""
    return jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))


def replicate(tree: Any) -> Any:
    """A copy on every local device."""
    # By way of NumPy: from a jax.Array, `device_put` keeps the first device's memory, which the first step would then reuse.
    return jax.device_put(jax.tree.map(np.asarray, tree), jax.NamedSharding(local_mesh(), jax.P()), may_alias=False)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy, as NumPy arrays of their own: the device's memory may be reused at once."""
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data), tree)


def shard(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """[b, ...] of this host -> [local devices, b / local devices, ...], on the devices; does not wait for the copy."""
    devices = jax.local_devices()
    sharding = jax.NamedSharding(local_mesh(), jax.P(AXIS))
    return {key: jax.device_put(x.reshape(len(devices), -1, *x.shape[1:]), sharding) for key, x in batch.items()}


def gather(x: jax.Array) -> np.ndarray:
    """[local devices, b, ...] -> [local devices · b, ...] of this host."""
    return np.concatenate([np.asarray(piece.data)[0] for piece in x.addressable_shards])


def gather_image(x: jax.Array, number: int) -> np.ndarray:
    """[local devices, b, ...] -> [...] of one image of this host, in the order of `gather`; the others stay on the devices."""
    device, row = divmod(number, x.shape[1])
    piece = x.addressable_shards[device].data
    return np.asarray(piece)[0, 0] if x.shape[1] == 1 else np.asarray(pick_image(np.int32(row), piece))


def shard_ahead(batches: Iterable, *, ahead: int = 2) -> Generator[dict[str, jax.Array]]:
    """Sharded batches, `ahead` of them already on their way to the devices."""
    waiting = collections.deque()
    for batch in batches:
        waiting.append(shard(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
