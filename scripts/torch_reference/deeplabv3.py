"""DeepLabV3 in PyTorch, to measure and compare against. Needs jaxseg[torch]; nothing of the package uses it.

Tensor names and numerics are torchvision's, so that its state dict goes through `deeplabv3_from_torch`.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

DEPTHS = {"resnet14": (1, 1, 1, 1), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def conv(inputs: int, features: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, features, size, stride, dilation * (size // 2), dilation, bias=False)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, features: int, stride: int, dilation: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, features, 1), nn.BatchNorm2d(features)
        self.conv2, self.bn2 = conv(features, features, 3, stride, dilation), nn.BatchNorm2d(features)
        self.conv3, self.bn3 = conv(features, 4 * features, 1), nn.BatchNorm2d(4 * features)
        self.downsample = None
        if stride != 1 or inputs != 4 * features:
            self.downsample = nn.Sequential(conv(inputs, 4 * features, 1, stride), nn.BatchNorm2d(4 * features))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class Backbone(nn.Module):
    def __init__(self, depths: tuple[int, ...], stem: int, output_stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem)
        inputs = stem
        so_far = 4
        dilation = 1
        for stage, blocks in enumerate(depths, start=1):
            features = stem * 2 ** (stage - 1)
            stride = 1 if stage == 1 else 2
            first_dilation = dilation
            if so_far * stride > output_stride:
                dilation *= stride
                stride = 1
            so_far *= stride
            layers = [Bottleneck(inputs, features, stride, first_dilation)]
            inputs = 4 * features
            layers += [Bottleneck(inputs, features, 1, dilation) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class ASPP(nn.Module):
    def __init__(self, inputs: int, features: int, rates: tuple[int, ...], dropout: float):
        super().__init__()

        def norm_relu():
            return nn.BatchNorm2d(features), nn.ReLU()

        branches = [nn.Sequential(conv(inputs, features, 1), *norm_relu())]
        branches += [nn.Sequential(conv(inputs, features, 3, 1, rate), *norm_relu()) for rate in rates]
        branches.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(inputs, features, 1), *norm_relu()))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(conv(5 * features, features, 1), *norm_relu(), nn.Dropout(dropout))

    def forward(self, x):
        y = [branch(x) for branch in self.convs]
        y[-1] = y[-1].expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat(y, 1))


class TorchDeepLabV3(nn.Module):
    """image [b, 3, h, w] -> logits [b, c, h, w]."""

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        stem: int = 64,
        output_stride: int = 8,
        dropout: float = 0.5,
    ):
        super().__init__()
        rates = {8: (12, 24, 36), 16: (6, 12, 18)}[output_stride]
        width = 4 * stem
        self.backbone = Backbone(DEPTHS[backbone], stem, output_stride)
        self.classifier = nn.Sequential(
            ASPP(32 * stem, width, rates, dropout),
            conv(width, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.classifier(self.backbone(image))
        return F.interpolate(x, image.shape[2:], mode="bilinear", align_corners=False)
