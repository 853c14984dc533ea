"""The van der Pol equation y1' = y2, y2' = (mu - y1^2) y2 - y1, to T and back, and gradients of |y(T)|^2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import torchaca as aca
from torchaca.control import Adaptive
from torchaca.core import Gradient, Method

from ..variants import StartSeen, Variant, relative_distance

DTYPE = torch.float64
REFERENCE = "reference"
CONTROLS = ("ode45", "torchaca")


@dataclass(frozen=True)
class Settings:
    """mu, y(0) and T as recalled from the paper; `rtol` and `atol` are the defaults of ode45.

    `tolerances` are the pairs (rtol, atol) of the gradients. `eta` damps ALF, the solver of "mali": undamped, it does
    not get to T where the equation contracts.
    """

    gradient: tuple[str, ...] = ("aca", "direct", "naive", "adjoint", "mali")
    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-6
    mu: float = 0.15
    y0: tuple[float, ...] = (2.0, 0.0)
    T: float = 25.0
    times: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0, 25.0)
    tolerances: tuple[tuple[float, float], ...] = ((1e-3, 1e-6), (1e-5, 1e-5), (1e-7, 1e-7), (1e-9, 1e-9))
    reference_method: str = "dopri8"
    reference_tolerance: float = 1e-12
    eta: float = 0.98
    threads: int = 1


def van_der_pol(mu: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The right-hand side for states `(..., 2)`."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        y1, y2 = y.unbind(-1)
        return torch.stack((y2, (mu - y1 * y1) * y2 - y1), -1)

    return f


def control_of(name: str, settings: Settings, T: float) -> Adaptive:
    """The step-size rules of this library, or those of ode45.

    ode45 takes the largest component of the error, a safety factor of 0.8, factors from 0.1 to 5, steps up to T/10.
    The first step, and what follows a second rejection in a row, are this library's.
    """
    rtol, atol = settings.rtol, settings.atol
    if name == "torchaca":
        return Adaptive(rtol, atol)
    return Adaptive(rtol, atol, norm="max", safety=0.8, factor_min=0.1, factor_max=5.0, dt_max=T / 10)


def there_and_back(settings: Settings, control: str, T: float, points: int = 2) -> tuple[Any, Any]:
    """The solution from 0 to T, and the one from its end back to 0, each at `points` equal times."""
    ts = torch.linspace(0, T, points, dtype=DTYPE)
    start = torch.tensor(settings.y0, dtype=DTYPE)
    f, steps = van_der_pol(settings.mu), control_of(control, settings, T)
    with torch.no_grad():
        forward = aca.solve(f, start, ts, method=settings.method, control=steps)
        reverse = aca.solve(f, forward.ys[-1], ts.flip(0), method=settings.method, control=steps)
    return forward, reverse


def recover(settings: Settings, control: str, T: float) -> dict[str, Any]:
    """The start as the reverse solve recovers it, and how far it is from y(0)."""
    forward, reverse = there_and_back(settings, control, T)
    recovered, start = reverse.ys[-1], forward.ys[0]
    return {
        "control": control,
        "T": T,
        "recovered": recovered.tolist(),
        "error": float((recovered - start).norm()),
        "steps": forward.stats.accepted,
        "steps_back": reverse.stats.accepted,
    }


def gradients(
    settings: Settings, gradient: Gradient, method: Method, tolerance: tuple[float, float]
) -> dict[str, Any]:
    """d|y(T)|^2 with respect to y(0) and mu, and the counts of the solve.

    `start_error` is how far the state at t = 0 that the backward pass evaluated f at is from y(0); None where
    it evaluates f nowhere at t = 0.
    """
    y0 = torch.tensor(settings.y0, dtype=DTYPE, requires_grad=True)
    mu = torch.tensor(settings.mu, dtype=DTYPE, requires_grad=True)
    f = StartSeen(van_der_pol(mu))
    rtol, atol = tolerance
    sol = aca.solve(f, y0, [0.0, settings.T], method=method, rtol=rtol, atol=atol, gradient=gradient)
    f.start = None
    dy0, dmu = torch.autograd.grad(sol.ys[-1].square().sum(), (y0, mu))
    return {
        "gradient": [*dy0.tolist(), dmu.item()],
        "start_error": None if f.start is None else float((f.start - y0.detach()).norm()),
        **asdict(sol.stats),
    }


def reference(settings: Settings) -> dict[str, Any]:
    """The gradient by a method of high order at the reference tolerance."""
    tolerance = (settings.reference_tolerance, settings.reference_tolerance)
    return gradients(settings, aca.Direct(), aca.METHODS[settings.reference_method], tolerance)


def row_of(variant: str, tolerance: tuple[float, float]) -> str:
    """The name of a gradient's row in the metrics."""
    return f"{variant} rtol={tolerance[0]:g} atol={tolerance[1]:g}"


def gradient_error(
    settings: Settings, variant: Variant, tolerance: tuple[float, float], truth: list[float]
) -> dict[str, Any]:
    """A gradient of one method at one tolerance, with its error relative to `truth`."""
    row = {"variant": variant.name, "rtol": tolerance[0], "atol": tolerance[1]}
    found = gradients(settings, variant.gradient, variant.method, tolerance)
    error = relative_distance(torch.tensor(found["gradient"], dtype=DTYPE), torch.tensor(truth, dtype=DTYPE))
    return {**row, **found, "error": error}
