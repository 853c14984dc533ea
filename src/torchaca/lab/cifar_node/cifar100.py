"""`torchaca run cifar100`."""

from __future__ import annotations

from ..cifar import CIFAR100
from . import experiment

EXPERIMENT = experiment(CIFAR100)
