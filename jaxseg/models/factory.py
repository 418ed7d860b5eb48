"""The network that a config asks for, and its first variables.

In: `config.model`. Out: a linen module, and {"params": …, "batch_stats": …}, drawn from a seed or read from a file.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg.config import ON_DILATED_RESNET
from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.deeplabv3plus import DeepLabV3Plus
from jaxseg.models.fcn import FCN
from jaxseg.models.fpn import FPN
from jaxseg.models.pspnet import PSPNet
from jaxseg.models.resnet_unet import ResNetUNet
from jaxseg.models.torch_tensors import START_PX, LoadReport
from jaxseg.models.torch_weights import has_own_names, load_deeplabv3, load_network, load_own_names, load_unet
from jaxseg.models.unet import UNet
from jaxseg.models.weights_io import read_state_dict

# (mean, std) of red, green, blue: torchvision's transforms for all its weights
NORMALIZE = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


NETWORKS = {
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "fcn": FCN,
    "fpn": FPN,
    "pspnet": PSPNet,
    "resnet_unet": ResNetUNet,
}


def make_model(model: ConfigDict, *, num_classes: int, axis_name: str | None) -> nn.Module:
    """The network that `config.model` asks for."""
    mean, std = NORMALIZE[model.normalize]
    common = {"mean": mean, "std": std, "dtype": jnp.dtype(model.dtype), "axis_name": axis_name, "remat": model.remat}
    if model.name == "unet":
        return UNet(num_classes, model.features, **common)
    common |= {"backbone": model.backbone, "stem_features": model.stem_features}
    if model.name in ON_DILATED_RESNET:
        common |= {"output_stride": model.output_stride, "auxiliary": model.auxiliary}
    return NETWORKS[model.name](num_classes, **common)


def fresh_variables(network: nn.Module, *, seed: int) -> dict:
    """Variables drawn from `seed`: {"params": …, "batch_stats": …}."""
    image = jnp.zeros((1, START_PX, START_PX, 3))
    fresh = jax.jit(network.init, static_argnames="train")(jax.random.key(seed), image, train=False)
    return {collection: fresh[collection] for collection in ("params", "batch_stats")}


def load_variables(model: ConfigDict, *, target: dict, file: Path | None = None) -> tuple[dict, LoadReport]:
    """The variables in the file `config.model.init_from`.

    Args:
      model: `config.model`, whose `init_parts` says which tensors are taken.
      target: variables of the network, which the others are taken from.
      file: where it is, if `init_from` is not its path (`jaxseg.models.pretrained`).

    Returns:
      The variables, and what became of every tensor.

    Raises:
      InputError: where the file does not fit, naming the tensors.
    """
    state_dict = read_state_dict(file or model.init_from)
    options = {"target": target, "parts": model.init_parts}
    if has_own_names(state_dict):
        return load_own_names(state_dict, **options)
    if model.name == "unet":
        return load_unet(state_dict, **options)
    if model.name == "deeplabv3":
        return load_deeplabv3(state_dict, auxiliary=model.auxiliary, **options)
    return load_network(make_model(model, num_classes=1, axis_name=None), state_dict, **options)
