"""ResNet18 for images of 32 x 32, and the same network with every second block an ODE.

The residual network is that of He et al., CVPR 2016, in the form common for CIFAR: a 3 x 3 convolution without
stride in front, then four stages of two blocks each. NODE18 (Zhuang et al., ICML 2020) keeps the first block of each
stage and turns the second one into dz/dt = f(z), t in [0, 1]; ANODE18 (Gholami et al., IJCAI 2019) solves the same
ODE with a few steps of Euler's method. At width 64 with 10 classes all of them have 11,173,962 parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ...core import Stats
from ...nn import NeuralODE

STRIDES = (1, 2, 2, 2)


class Residual(nn.Module):
    """relu(g(x) + shortcut(x)); the shortcut is the identity where the shapes allow."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(channels_in, channels, stride),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv(channels, channels),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.layers(x) + self.shortcut(x)).relu()


class Dynamics(nn.Module):
    """f(t, z) of an ODE block, `(N, channels, H, W)`: a residual block without its shortcut; t is not used.

    Every evaluation in training mode normalises by its own batch statistics; an accepted one moves the running
    statistics, which evaluation mode uses at all times t. A solve evaluates f many times for a batch, so
    `momentum` is smaller than in the other layers, where a batch moves them once.
    """

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(channels, channels),
            nn.BatchNorm2d(channels, momentum=momentum),
            nn.ReLU(),
            conv(channels, channels),
            nn.BatchNorm2d(channels, momentum=momentum),
            nn.ReLU(),
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.layers(z)


class Classifier(nn.Module):
    """Scores `(N, classes)` of images `(N, 3, H, W)`.

    Parameters
    ----------
    width : int
        Channels of the first stage; the others have 2, 4 and 8 times as many.
    second : callable
        `second(channels)` is the second block of a stage.
    """

    def __init__(self, width: int, classes: int, second: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width), nn.BatchNorm2d(width), nn.ReLU())
        before = width
        stages = []
        for i, stride in enumerate(STRIDES):
            channels = width * 2**i
            stages.append(nn.Sequential(Residual(before, channels, stride), second(channels)))
            before = channels
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))

    def blocks(self) -> list[NeuralODE]:
        """The ODE blocks, from input to output; none in a ResNet."""
        return [module for module in self.modules() if isinstance(module, NeuralODE)]

    def stats(self) -> list[Stats]:
        """What the last forward pass, and its backward pass, cost in each ODE block."""
        return [block.stats for block in self.blocks()]

    def solve_with(self, **options: Any) -> None:
        """Solve every ODE block with these options of `torchaca.solve` from now on, and no others."""
        for block in self.blocks():
            block.options = options


def conv(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3, without a bias: batch normalisation follows."""
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)


def resnet18(width: int, classes: int) -> Classifier:
    """The residual network, whose weights are as random as those of `node18`: the same draws in the same order."""
    return Classifier(width, classes, lambda channels: Residual(channels, channels, 1))


def node18(width: int, classes: int, momentum: float, options: Mapping[str, Any]) -> Classifier:
    """With ODE blocks that `torchaca.solve` solves with these options."""
    return Classifier(width, classes, lambda channels: NeuralODE(Dynamics(channels, momentum), **options))
