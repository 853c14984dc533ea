"""A trained network with other solvers: the error rate without any more training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import torchaca as aca

from ..experiment import UsageError, check_name
from .images import Samples
from .module import Training
from .recipe import Settings

TITLES = {
    "euler": "Euler",
    "midpoint": "RK2",
    "rk4": "RK4",
    "heun_euler": "HeunEuler",
    "bosh3": "RK23",
    "dopri5": "RK45",
}
"""The solvers of the paper's table, by the names of `torchaca.METHODS`."""
ALIASES = {title.lower(): name for name, title in TITLES.items()}


@dataclass(frozen=True)
class Solver:
    """A method at a step size (fixed-step methods) or a tolerance (adaptive ones)."""

    method: str
    value: float

    @property
    def adaptive(self) -> bool:
        """Whether `value` is a tolerance."""
        return aca.METHODS[self.method].adaptive

    @property
    def options(self) -> dict[str, Any]:
        """As options of `torchaca.solve`."""
        if self.adaptive:
            return {"method": self.method, "rtol": self.value, "atol": self.value}
        return {"method": self.method, "dt": self.value}

    @property
    def title(self) -> str:
        """As in the tables."""
        return f"{TITLES.get(self.method, self.method)} {'tol' if self.adaptive else 'h'}={self.value:g}"


def solvers(methods: Sequence[str], dt: Sequence[float], tolerances: Sequence[float]) -> list[Solver]:
    """Every method at each of its step sizes or tolerances; the names of the paper are known as well.

    Raises
    ------
    UsageError
        For a name that does not exist, or a value that is not above 0.
    """
    for option, values in (("--dt", dt), ("--tolerances", tolerances)):
        for value in values:
            if not value > 0:
                raise UsageError(f"{option} {value:g}: a number above 0 is needed")
    found = []
    for given in methods:
        name = ALIASES.get(given.lower(), given)
        check_name("method", name, aca.METHODS)
        values = tolerances if aca.METHODS[name].adaptive else dt
        found += [Solver(name, value) for value in values]
    return found


@torch.no_grad()
def error_rate(module: Training, test: Samples, options: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The share of the test images that is classified wrongly, and evaluations of f per image batch.

    Parameters
    ----------
    module : Training
        On its device.
    test : Samples
    options : mapping, optional
        Of `torchaca.solve` for all blocks; without it, as in training.
    """
    model = module.tested
    wrong, nfe, batches = 0, 0, 0
    with _tested(module, options):
        for images, labels, _ in map(test.__getitem__, _parts(len(test), module.settings.batch)):
            with half_precision(module):
                scores = module(images.to(module.device))
            wrong += int((scores.argmax(1).cpu() != labels).sum())
            nfe += sum(stats.nfe for stats in model.stats())
            batches += 1
    return {"error": wrong / len(test), "nfe": nfe / batches}


@contextmanager
def _tested(module: Training, options: Mapping[str, Any] | None) -> Iterator[None]:
    """In evaluation mode, with these options in its blocks."""
    blocks = module.tested.blocks()
    before, training = [block.options for block in blocks], module.training
    try:
        module.eval()
        if options is not None:
            module.tested.solve_with(**options)
        yield
    finally:
        module.train(training)
        for block, own in zip(blocks, before, strict=True):
            block.options = own


def place_of(settings: Settings) -> torch.device:
    """The device that `accelerator` means."""
    if settings.accelerator == "cpu":
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def half_precision(module: Training) -> torch.autocast:
    """Autocast to bfloat16 where the network is trained with it, else nothing."""
    half = module.settings.precision == "bf16-mixed"
    return torch.autocast(module.device.type, torch.bfloat16, enabled=half)


def _parts(count: int, size: int) -> Iterator[range]:
    for first in range(0, count, size):
        yield range(first, min(first + size, count))
