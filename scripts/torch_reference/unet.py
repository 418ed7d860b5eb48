"""The study's U-Net in PyTorch, to measure and compare against. Needs jaxseg[torch]; nothing of the package uses it.

Tensor names are those of the brain-segmentation U-Net, so that its state dict goes through `unet_from_torch`.
"""

import collections

import torch
from torch import nn


def block(inputs: int, features: int, name: str) -> nn.Sequential:
    layers = []
    for i, channels in ((1, inputs), (2, features)):
        layers.append((f"{name}conv{i}", nn.Conv2d(channels, features, 3, padding=1, bias=False)))
        layers.append((f"{name}norm{i}", nn.BatchNorm2d(features)))
        layers.append((f"{name}relu{i}", nn.ReLU(inplace=True)))
    return nn.Sequential(collections.OrderedDict(layers))


class TorchUNet(nn.Module):
    """image [b, 3, h, w] -> logits [b, c, h, w]."""

    def __init__(self, num_classes: int, features: int = 32):
        super().__init__()
        widths = [features * 2**level for level in range(5)]
        for level in range(1, 5):
            self.add_module(
                f"encoder{level}", block(3 if level == 1 else widths[level - 2], widths[level - 1], f"enc{level}")
            )
            self.add_module(f"upconv{level}", nn.ConvTranspose2d(widths[level], widths[level - 1], 2, stride=2))
            self.add_module(f"decoder{level}", block(2 * widths[level - 1], widths[level - 1], f"dec{level}"))
        self.bottleneck = block(widths[3], widths[4], "bottleneck")
        self.conv = nn.Conv2d(features, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        skips = []
        for level in range(1, 5):
            x = getattr(self, f"encoder{level}")(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for level in range(4, 0, -1):
            x = getattr(self, f"upconv{level}")(x)
            x = getattr(self, f"decoder{level}")(torch.cat([x, skips[level - 1]], dim=1))
        return self.conv(x)
