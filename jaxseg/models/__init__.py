"""The networks: image f32 [b, h, w, 3] in [0, 1] -> logits f32 [b, h, w, c].

PyTorch's layers and numerics; README.md says how closely, and how its weights are loaded.
"""

from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.unet import UNet

__all__ = ["DeepLabV3", "UNet"]
