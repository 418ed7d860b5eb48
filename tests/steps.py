"""A training step on one device, and batches for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.config import default
from jaxseg.losses.objective import make_loss
from jaxseg.training import parallel
from jaxseg.training.step import train_step

LOSSES = {"unet": make_loss(default().loss, default().mutual)}


def random_batch(seed, size=8, hw=32, classes=5):
    rng = np.random.default_rng(seed)
    label = np.where(
        rng.random((size, hw, hw)) < np.linspace(0, 0.9, size)[:, None, None],
        255,
        rng.integers(classes, size=(size, hw, hw)),
    )
    return {
        "image": rng.random((size, hw, hw, 3), dtype=np.float32),
        "label": label.astype(np.int32),
        "valid": label != 255,
    }


def single_device_step(accumulate_steps=1, losses=LOSSES, **options):
    """The step on one device, without pmap: vmap over an axis of size 1 gives it its axis name."""
    step = functools.partial(
        train_step, losses=losses, seed=0, accumulate_steps=accumulate_steps, axis_name=parallel.AXIS, **options
    )
    mapped = jax.jit(jax.vmap(step, axis_name=parallel.AXIS))

    def call(peers, batch):
        add, drop = (
            functools.partial(jax.tree.map, lambda x: jnp.asarray(x)[None]),
            functools.partial(jax.tree.map, lambda x: x[0]),
        )
        return drop(mapped(add(peers), add(batch)))

    return call


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
