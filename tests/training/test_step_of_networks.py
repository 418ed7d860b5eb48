"""Any two networks learn mutually, with RMI: each by the gradient of its own loss, the other's logits held fixed.

In float64: in float32 two programs round differently, and on maps this small that moved FCN's gradient by 6e-3 of its norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.losses import mutual_kl, pixel_and_rmi_loss
from jaxseg.losses.objective import make_loss
from jaxseg.models.factory import make_model
from jaxseg.models.torch_tensors import shapes_of
from jaxseg.training import parallel
from jaxseg.training.state import create_peer
from tests.configs import changed
from tests.steps import random_batch, single_device_step

CLASSES = 5
ON_RESNET14 = {"backbone": "resnet14", "stem_features": 4}
MODELS = {
    "unet": {"features": 4},
    "deeplabv3plus": ON_RESNET14,
    "fcn": ON_RESNET14 | {"auxiliary": True},
    "fpn": ON_RESNET14,
    "pspnet": ON_RESNET14,
    "resnet_unet": ON_RESNET14,
}
PAIRS = [("unet", "fpn"), ("pspnet", "deeplabv3plus"), ("resnet_unet", "fcn")]


def network(name: str, *, axis_name: str | None):
    """Without dropout, which two programs would draw differently."""
    section = changed(model__name=name).model
    section.update(MODELS[name])
    made = make_model(section, num_classes=CLASSES, axis_name=axis_name)
    made = made.clone(dtype=jnp.dtype(jnp.float64))
    return made.clone(dropout=0.0) if hasattr(made, "dropout") else made


def draw_variables(name: str, seed: int) -> dict:
    """Kernels of He's deviation, scales and variances 1, all else 0; `init` would have to be compiled."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return jnp.ones(leaf.shape)
        if kind in ("bias", "mean"):
            return jnp.zeros(leaf.shape)
        return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape))

    return jax.tree.map_with_path(draw, shapes_of(network(name, axis_name=None)))


def losses_by_hand(pair: tuple[str, str], variables: dict, batch: dict) -> dict:
    """Of each network by itself ½ BCE + ½ RMI + ½ BCE of an auxiliary head + KL(other || own): (value, gradient)."""

    def forward(name, params):
        inputs = {"params": params, "batch_stats": variables[name]["batch_stats"]}
        model, mutable = network(name, axis_name=None), ["batch_stats", "auxiliary"]
        logits, updated = model.apply(inputs, batch["image"], train=True, mutable=mutable)
        return logits, jax.tree.leaves(updated.get("auxiliary", {}))

    def loss(params, name, other_logits):
        logits, heads = forward(name, params)
        total = pixel_and_rmi_loss(logits, batch["label"])[0]
        for head in heads:
            total += 0.5 * pixel_and_rmi_loss(head, batch["label"])[1]["pixel"]
        return total + mutual_kl(logits, other_logits, batch["label"], pixels="valid")

    @jax.jit
    def of_both(params):
        logits = {name: forward(name, params[name])[0] for name in pair}
        return {name: jax.value_and_grad(loss)(params[name], name, logits[other]) for name, other in (pair, pair[::-1])}

    return of_both({name: variables[name]["params"] for name in pair})


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_each_of_a_pair_has_the_gradient_of_its_own_loss(pair):
    """Slow: compiles two networks together, and again by hand.

    The optimizer only keeps the gradient that it is given.
    """
    with jax.enable_x64(True):
        check_gradients(pair)


def check_gradients(pair):
    config = changed(loss__name="pixel_and_rmi", loss__pixel="sigmoid")
    batch = random_batch(0, size=4, classes=CLASSES)
    batch["image"] = batch["image"].astype(np.float64)
    variables = {name: draw_variables(name, seed) for seed, name in enumerate(pair)}
    peers = {
        name: create_peer(network(name, axis_name=parallel.AXIS), optax.trace(0.9), variables[name]) for name in pair
    }
    losses = {name: make_loss(config.loss, config.mutual) for name in pair}
    updated, measured = single_device_step(losses=losses)(peers, batch)
    for name, (value, expected) in losses_by_hand(pair, variables, batch).items():
        np.testing.assert_allclose(measured[f"{name}/loss"], value, rtol=1e-9)
        assert measured[f"{name}/kl"] > 1e-3
        distance = optax.tree.norm(jax.tree.map(jnp.subtract, updated[name].opt_state.trace, expected))
        assert distance < 1e-9 * optax.tree.norm(expected), name
