"""The networks: image f32 [b, h, w, 3] in [0, 1] -> logits f32 [b, h, w, c]."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg.config import InputError
from jaxseg.models.torch_weights import unet_from_torch
from jaxseg.models.unet import LEVELS, UNet

__all__ = ["SIZE_MULTIPLE_PX", "UNet", "initial_variables", "make_model"]

SIZE_MULTIPLE_PX = 2**LEVELS  # heights and widths that every network here takes


def make_model(model: ConfigDict, *, num_classes: int, axis_name: str | None) -> UNet:
    """The network that `config.model` asks for."""
    return UNet(num_classes=num_classes, features=model.features, dtype=jnp.dtype(model.dtype), axis_name=axis_name)


def initial_variables(network: UNet, model: ConfigDict, *, seed: int) -> dict:
    """Fresh variables from `seed`, or those of the file `config.model.init_from`. Raises InputError."""
    image = jnp.zeros((1, SIZE_MULTIPLE_PX, SIZE_MULTIPLE_PX, 3))
    fresh = jax.jit(network.init, static_argnames="train")(jax.random.key(seed), image, train=False)
    if not model.init_from:
        return fresh
    try:
        return unet_from_torch(model.init_from, target=fresh)
    except InputError as error:
        raise InputError(f"config.model.init_from: {error}") from error
