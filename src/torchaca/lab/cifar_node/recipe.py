"""How the networks are trained: every setting, the schedules of the learning rate, and which rows there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from ..cifar import Data, Kind, load, place
from ..engine import SHARDED, check_hardware
from ..experiment import UsageError, check_name
from ..rows import Row
from ..variants import gradient_of
from .models import Classifier, node18, resnet18

MODELS = ("resnet18", "node18", "anode18")
SCHEDULES = ("step", "cosine", "one-cycle")
MILESTONES = (1 / 3, 2 / 3)  # of the epochs, where "step" divides the learning rate by 10


@dataclass(frozen=True)
class Settings:
    """The recipe of the paper where it is known; `euler_steps` and `momentum_f` are chosen.

    Attributes
    ----------
    width : int
        Channels of the first stage.
    euler_steps : int
        Equal steps of a block of ANODE18.
    momentum_f : float
        Of the running statistics inside f, which move with every accepted evaluation.
    side : int
        Pixels of an image's side: 32, or fewer, to which tiles of the image are averaged.
    train_images, test_images : int, optional
        As many of the first images; all of them by default.
    ema : float
        Decay of an average of the weights, which is then what is tested; 0 is without.
    dt, tolerances : tuple of float
        Of the other solvers that the trained networks are tested with.
    tensorboard : bool
        Also log for TensorBoard.
    """

    data: str | None = None
    download: bool = False
    model: tuple[str, ...] = MODELS
    gradient: tuple[str, ...] = ("aca", "adjoint", "naive")
    seeds: int = 3
    width: int = 64
    method: str = "heun_euler"
    rtol: float = 1e-2
    atol: float = 1e-2
    euler_steps: int = 5
    momentum_f: float = 0.01
    side: int = 32
    train_images: int | None = None
    test_images: int | None = None
    batch: int = 128
    epochs: int = 90
    schedule: str = "step"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.0
    dt: tuple[float, ...] = (0.5, 0.2, 0.1)
    tolerances: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    precision: str = "32"
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    channels_last: bool = False
    compile: bool = False
    tensorboard: bool = False
    time_limit: float | None = None
    threads: int = 1


def row_of(model: str, gradient: str | None, seed: int) -> Row:
    """A network, for "node18" with a gradient method, from the weights of a seed; labelled as in `node18-aca`."""
    return Row(model, gradient, seed, between="-")


def rows(settings: Settings) -> list[Row]:
    """All rows, seed by seed, so that a run that is cut short has as many seeds of each as of any other."""
    kinds = [
        (model, gradient)
        for model in settings.model
        for gradient in (settings.gradient if model == "node18" else (None,))
    ]
    return [
        row_of(model, gradient, seed) for seed, (model, gradient) in product(range(settings.seeds), kinds)
    ]


def solver(settings: Settings, row: Row) -> dict[str, Any]:
    """The options of `torchaca.solve` that the row's blocks are trained with."""
    if row.model == "anode18":
        return {"method": "euler", "n_steps": settings.euler_steps, "gradient": gradient_of("aca")}
    return {
        "method": settings.method,
        "rtol": settings.rtol,
        "atol": settings.atol,
        "gradient": gradient_of(row.gradient or "aca"),
    }


def build(settings: Settings, row: Row, classes: int) -> Classifier:
    """The row's network with its initial weights, which depend on the seed alone."""
    torch.manual_seed(row.seed)
    if row.model == "resnet18":
        return resnet18(settings.width, classes)
    return node18(settings.width, classes, settings.momentum_f, solver(settings, row))


def schedule(settings: Settings, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate over `steps` steps of the optimizer."""
    if settings.schedule == "step":
        return MultiStepLR(optimizer, [round(steps * part) for part in MILESTONES], gamma=0.1)
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return OneCycleLR(optimizer, settings.lr, total_steps=steps)


def check(settings: Settings, kind: Kind) -> None:
    """Refuse what cannot be trained, before anything is written; the images are read for that.

    Raises
    ------
    UsageError
    """
    for name in settings.model:
        check_name("model", name, MODELS)
    check_name("schedule", settings.schedule, SCHEDULES)
    for name in ("width", "epochs", "batch", "euler_steps"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} = {getattr(settings, name)}: a whole number above 0 is needed")
    if not 0 <= settings.ema < 1:
        raise UsageError(f"--ema {settings.ema:g}: a decay from 0 to below 1 is needed")
    if settings.ema and settings.strategy == SHARDED:
        raise UsageError(f"--ema averages whole weights: leave it out with --strategy {SHARDED}")
    if "node18" in settings.model and not settings.gradient:
        raise UsageError("node18 needs a gradient method: give one with --gradient")
    if "mali" in settings.gradient:
        raise UsageError("--gradient mali undoes the steps of reversible methods only: it has no row here")
    if settings.side < 8 or 32 % settings.side:
        raise UsageError(f"side = {settings.side}: it has to be 8, 16 or 32")
    check_hardware(settings)
    data = loaded(settings, kind)
    for split, wanted in {"train": settings.train_images, "test": settings.test_images}.items():
        there = len(getattr(data, split))
        if wanted is not None and wanted > there:
            raise UsageError(f"{data.source} has {there} {split} images, {wanted} are wanted")


def loaded(settings: Settings, kind: Kind) -> Data:
    """All images of the data set.

    Raises
    ------
    UsageError
    """
    return load(place(settings.data, kind, download=settings.download), kind)


def of_checkpoint(values: Mapping[str, Any]) -> Settings:
    """Settings from what JSON or a checkpoint has made of them."""
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Settings(**given)
