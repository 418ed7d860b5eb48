"""The networks: image f32 [b, h, w, 3] in [0, 1] -> logits f32 [b, h, w, c]."""

from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.unet import UNet

__all__ = ["DeepLabV3", "UNet"]
