"""`torchaca run cifar10 | cifar100`: NODE18 beside ResNet18.

Zhuang et al., ICML 2020, section 4.2: the test errors of the table and, without retraining, with other solvers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..cifar import Kind
from ..experiment import Experiment
from .loggers import check_tensorboard
from .outcome import main
from .recipe import Settings, check

SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "width": 4,
        "side": 8,
        "train_images": 100,
        "test_images": 100,
        "batch": 50,
        "epochs": 1,
        "seeds": 1,
        "schedule": "one-cycle",
        "dt": (0.5,),
        "tolerances": (1e-2,),
    },
    "cpu": {
        "width": 8,
        "side": 16,
        "train_images": 20_000,
        "test_images": 2000,
        "batch": 64,
        "epochs": 5,
        "schedule": "one-cycle",
    },
    "gpu": {
        "model": ("resnet18", "node18"),
        "gradient": ("aca",),
        "seeds": 1,
        "epochs": 30,
        "schedule": "one-cycle",
        "precision": "bf16-mixed",
        "accelerator": "gpu",
        "channels_last": True,
    },
    "paper": {"accelerator": "auto"},
}


def experiment(kind: Kind) -> Experiment:
    """The experiment on one of the two data sets."""
    return Experiment(
        name=kind.name,
        about=f"{kind.title}: ResNet18, NODE18 by gradient method, and ANODE18, tested with other solvers.",
        defaults=Settings(),
        sizes=SIZES,
        main=partial(main, kind=kind),
        check=partial(_check, kind=kind),
        shared=True,
    )


def _check(settings: Settings, kind: Kind) -> None:
    if settings.tensorboard:
        check_tensorboard()
    check(settings, kind)
