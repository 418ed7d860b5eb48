"""The networks: image f32 [b, h, w, 3] in [0, 1] -> logits f32 [b, h, w, c].

PyTorch's layers and numerics; README.md says how closely, and how its weights are loaded.
"""

from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.deeplabv3plus import DeepLabV3Plus
from jaxseg.models.fcn import FCN
from jaxseg.models.fpn import FPN
from jaxseg.models.pspnet import PSPNet
from jaxseg.models.resnet_unet import ResNetUNet
from jaxseg.models.unet import UNet

__all__ = ["FCN", "FPN", "DeepLabV3", "DeepLabV3Plus", "PSPNet", "ResNetUNet", "UNet"]
