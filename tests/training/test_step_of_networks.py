"""Any two networks learn mutually, with RMI: each by the gradient of its own loss, the other's logits held fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.losses import mutual_kl, pixel_and_rmi_loss
from jaxseg.losses.objective import make_loss
from jaxseg.models.factory import fresh_variables, make_model
from jaxseg.training import parallel
from jaxseg.training.state import create_peer
from tests.configs import changed
from tests.steps import random_batch, single_device_step

CLASSES = 5
ON_RESNET14 = {"backbone": "resnet14", "stem_features": 4}
MODELS = {
    "unet": {"features": 4},
    "deeplabv3": ON_RESNET14,
    "deeplabv3plus": ON_RESNET14,
    "fcn": ON_RESNET14 | {"auxiliary": True},
    "fpn": ON_RESNET14,
    "pspnet": ON_RESNET14,
    "resnet_unet": ON_RESNET14,
}
PAIRS = [("unet", "fpn"), ("pspnet", "deeplabv3plus"), ("resnet_unet", "fcn"), ("deeplabv3", "pspnet")]


def network(name: str, *, axis_name: str | None):
    """Without dropout, which two programs would draw differently."""
    section = changed(model__name=name).model
    section.update(MODELS[name])
    made = make_model(section, num_classes=CLASSES, axis_name=axis_name)
    return made.clone(dropout=0.0) if hasattr(made, "dropout") else made


def gradients_by_hand(name: str, variables: dict, batch: dict, other_logits) -> tuple[float, dict]:
    """½ BCE + ½ RMI + ½ BCE of an auxiliary head + KL(other || own), and its gradient, of a network by itself."""

    def loss(params):
        inputs = {"params": params, "batch_stats": variables["batch_stats"]}
        mutable = ["batch_stats", "auxiliary"]
        logits, updated = network(name, axis_name=None).apply(inputs, batch["image"], train=True, mutable=mutable)
        total = pixel_and_rmi_loss(logits, batch["label"])[0]
        for head in jax.tree.leaves(updated.get("auxiliary", {})):
            total += 0.5 * pixel_and_rmi_loss(head, batch["label"])[1]["pixel"]
        return total + mutual_kl(logits, other_logits, batch["label"], pixels="valid")

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_each_of_a_pair_has_the_gradient_of_its_own_loss(pair):
    """Slow: compiles two networks together, and each alone.

    The optimizer only keeps the gradient that it is given.
    """
    config = changed(loss__name="pixel_and_rmi", loss__pixel="sigmoid")
    variables = {name: fresh_variables(network(name, axis_name=None), seed=i) for i, name in enumerate(pair)}
    peers, logits, batch = {}, {}, random_batch(0, size=4, classes=CLASSES)
    for name in pair:
        peers[name] = create_peer(network(name, axis_name=parallel.AXIS), optax.trace(0.9), variables[name])
        apply = jax.jit(lambda v, name=name: network(name, axis_name=None).apply(v, batch["image"], True, mutable=True))
        logits[name] = apply(variables[name])[0]
    losses = {name: make_loss(config.loss, config.mutual) for name in pair}
    updated, measured = single_device_step(losses=losses)(peers, batch)
    for name, other in (pair, pair[::-1]):
        value, expected = gradients_by_hand(name, variables[name], batch, logits[other])
        np.testing.assert_allclose(measured[f"{name}/loss"], value, rtol=1e-5)
        found = updated[name].opt_state.trace
        distance = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected))
        assert distance < 1e-3 * optax.tree.norm(expected), name
        assert measured[f"{name}/kl"] > 1e-3
        print(name, float(distance / optax.tree.norm(expected)), float(measured[f"{name}/kl"]))
