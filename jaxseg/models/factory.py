"""The networks: image f32 [b, h, w, 3] in [0, 1] -> logits f32 [b, h, w, c]."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.torch_weights import (
    START_PX,
    Report,
    deeplabv3_from_torch,
    from_own_names,
    has_own_names,
    unet_from_torch,
)
from jaxseg.models.unet import LEVELS, UNet
from jaxseg.models.weights_io import read_state_dict

__all__ = ["SIZE_MULTIPLE_PX", "DeepLabV3", "UNet", "initial_variables", "make_model"]

SIZE_MULTIPLE_PX = {"unet": 2**LEVELS, "deeplabv3": 1}  # heights and widths that a network takes
# (mean, std) of red, green, blue: torchvision's transforms for all its weights
NORMALIZE = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def make_model(model: ConfigDict, *, num_classes: int, axis_name: str | None) -> UNet | DeepLabV3:
    """The network that `config.model` asks for."""
    mean, std = NORMALIZE[model.normalize]
    common = {"mean": mean, "std": std, "dtype": jnp.dtype(model.dtype), "axis_name": axis_name, "remat": model.remat}
    if model.name == "unet":
        return UNet(num_classes, model.features, **common)
    return DeepLabV3(num_classes, model.backbone, model.stem_features, model.output_stride, model.auxiliary, **common)


def initial_variables(network: UNet | DeepLabV3, model: ConfigDict, *, seed: int, report: Report | None = None) -> dict:
    """Fresh variables from `seed`, with those of the file `config.model.init_from` in their place where it names one.

    report: called with a line for every tensor of the file. Raises InputError.
    """
    image = jnp.zeros((1, START_PX, START_PX, 3))
    fresh = jax.jit(network.init, static_argnames="train")(jax.random.key(seed), image, train=False)
    fresh = {collection: fresh[collection] for collection in ("params", "batch_stats")}
    if not model.init_from:
        return fresh
    arrays, options = read_state_dict(model.init_from), {"target": fresh, "parts": model.init_parts, "report": report}
    if has_own_names(arrays):
        return from_own_names(arrays, **options)
    if model.name == "unet":
        return unet_from_torch(arrays, **options)
    return deeplabv3_from_torch(arrays, auxiliary=model.auxiliary, **options)
