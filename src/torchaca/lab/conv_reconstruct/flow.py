"""dz/dt = act(conv(z)) with z(0) an image, to T and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import torchaca as aca

from ..cifar import find, first_images
from ..experiment import UsageError, check_name
from ..variants import StartSeen, gradient_of, relative_distance

DTYPE = torch.float64
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "linear": lambda x: x}


@dataclass(frozen=True)
class Settings:
    """Tolerances are the defaults of ode45; kernel, activations and times are chosen: the slides give none.

    `weight` is the standard deviation of the 3 x 3 kernels, drawn anew for every seed. `data` is where the
    images are.
    """

    data: str | None = None
    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-6
    activations: tuple[str, ...] = ("relu", "tanh", "linear")
    times: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 5.0)
    shown: str = "relu"
    images: int = 8
    seeds: int = 3
    weight: float = 0.5
    max_steps: int = 2000
    threads: int = 1


def check(settings: Settings) -> None:
    """Refuse settings without images, or without the activation that is shown.

    Raises
    ------
    UsageError
    """
    for name in (settings.shown, *settings.activations):
        check_name("activation", name, ACTIVATIONS)
    if settings.shown not in settings.activations:
        raise UsageError(f"shown = {settings.shown!r} is not among the activations")
    find(settings.data)


def load(settings: Settings) -> Tensor:
    """The images as z(0), `(images, 3, 32, 32)` in [0, 1]."""
    images = first_images(find(settings.data), settings.images)
    return torch.from_numpy(images.copy()).to(DTYPE).permute(0, 3, 1, 2) / 255


class Flow:
    """The right-hand side for batches of images."""

    def __init__(self, settings: Settings, activation: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        kernel = settings.weight * torch.randn(3, 3, 3, 3, generator=generator, dtype=DTYPE)
        self.kernel = kernel.requires_grad_()
        self.activation = ACTIVATIONS[activation]

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        return self.activation(conv2d(z, self.kernel, padding=1))


@dataclass(frozen=True)
class Trip:
    """z(0), z(T), the start that a solve back from z(T) ends with, and the one that ACA's backward pass starts from."""

    start: Tensor
    end: Tensor
    reverse: Tensor
    recorded: Tensor
    stats: aca.Stats
    stats_back: aca.Stats


def there_and_back(settings: Settings, z0: Tensor, activation: str, seed: int, T: float) -> Trip:
    """One trip of a batch of images.

    Raises
    ------
    SolverError
        From either solve.
    """
    f = StartSeen(Flow(settings, activation, seed))
    options: dict[str, Any] = {
        "method": settings.method,
        "rtol": settings.rtol,
        "atol": settings.atol,
        "max_steps": settings.max_steps,
    }
    forward = aca.solve(f, z0.clone().requires_grad_(), [0.0, T], gradient=gradient_of("aca"), **options)
    f.start = None
    end = forward.ys[-1]
    end.square().sum().backward()
    if f.start is None:
        raise RuntimeError(f"the backward pass of {settings.method} evaluates f nowhere at t = 0")
    recorded, end = f.start, end.detach()
    with torch.no_grad():
        back = aca.solve(f, end, [T, 0.0], **options)
    return Trip(z0, end, back.ys[-1], recorded, forward.stats, back.stats)


def errors(settings: Settings, z0: Tensor, activation: str, seed: int, T: float) -> dict[str, Any]:
    """The relative errors of both starts, and the steps of both solves."""
    trip = there_and_back(settings, z0, activation, seed, T)
    return {
        "activation": activation,
        "T": T,
        "seed": seed,
        "reverse": relative_distance(trip.reverse, z0),
        "recorded": relative_distance(trip.recorded, z0),
        "largest": float(trip.end.abs().max()),
        "nfe": trip.stats.nfe,
        "nfe_reverse": trip.stats_back.nfe,
    }
