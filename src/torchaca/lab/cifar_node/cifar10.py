"""`torchaca run cifar10`."""

from __future__ import annotations

from ..cifar import CIFAR10
from . import experiment

EXPERIMENT = experiment(CIFAR10)
