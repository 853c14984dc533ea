"""The measurement: gradients of L = z(T)^2 by each method, and their errors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import torchaca as aca

from ..cases import attempt
from ..run import Run
from ..variants import gradient_of

PARAMETERS = ("dz0", "dk")


@dataclass(frozen=True)
class Settings:
    """The settings of the toy experiment; the slides give the equation, the range of T is [0, 20].

    "mali" needs `mali_method`, whose order is lower and whose steps are many: it is measured at fewer T.
    """

    gradient: tuple[str, ...] = ("naive", "direct", "adjoint", "aca", "mali")
    dtype: tuple[str, ...] = ("float32", "float64")
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    z0: float = 1.0
    k: tuple[float, ...] = (1.0, -1.0)
    times: tuple[float, ...] = tuple(float(t) for t in range(1, 21))
    mali_method: str = "alf"
    mali_times: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)
    threads: int = 1


@dataclass(frozen=True)
class Case:
    """One solve of the experiment."""

    k: float
    dtype: str
    T: float

    def name(self, gradient: str) -> str:
        """The name of its row in the metrics."""
        return f"k={self.k:+g} {self.dtype} T={self.T:g} {gradient}"


def measure(run: Run, settings: Settings, case: Case, gradients: list[str]) -> None:
    """Log the gradients of one case, with their errors.

    The discrete reference is `direct` with the same solver.
    """
    exact = exact_gradient(case, settings.z0)
    references: dict[str, dict[str, Any]] = {}
    for gradient in gradients:
        method = method_of(settings, gradient)
        if method not in references:
            references[method] = _attempt(settings, case, "direct", method)
        discrete = references[method]
        found = discrete if gradient == "direct" else _attempt(settings, case, gradient, method)
        line: dict[str, Any] = {"row": case.name(gradient), **asdict(case), "gradient": gradient, **found}
        for kind, reference in (("exact", exact), ("discrete", discrete)):
            for name in PARAMETERS:
                line[f"{kind} {name}"] = relative_error(found[name], reference[name])
        run.log(line)


def method_of(settings: Settings, gradient: str) -> str:
    """The solver that a gradient method is measured with."""
    return settings.mali_method if gradient == "mali" else settings.method


def exact_gradient(case: Case, z0: float) -> dict[str, float]:
    """dL/dz0 = 2 z0 exp(2 k T) and dL/dk = 2 T z0^2 exp(2 k T)."""
    growth = math.exp(2 * case.k * case.T)
    return {"dz0": 2 * z0 * growth, "dk": 2 * case.T * z0**2 * growth}


def relative_error(value: float | None, reference: float | None) -> float | None:
    """|value - reference| / |reference|, None where one of them is missing."""
    if value is None or reference is None:
        return None
    return abs(value - reference) / abs(reference)


def _attempt(settings: Settings, case: Case, gradient: str, method: str) -> dict[str, Any]:
    """The gradients and what they cost, or None and why the solve failed."""
    found = attempt(partial(gradients, settings, case, gradient, method))
    return {"dz0": None, "dk": None, **found}


def gradients(settings: Settings, case: Case, gradient: str, method: str) -> dict[str, Any]:
    """dL/dz0 and dL/dk by one gradient method and solver, and the counts of the solve.

    Raises
    ------
    SolverError
        From the forward or the backward solve.
    """
    dtype = getattr(torch, case.dtype)
    z0 = torch.tensor(settings.z0, dtype=dtype, requires_grad=True)
    k = torch.tensor(case.k, dtype=dtype, requires_grad=True)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return k * z

    sol = aca.solve(
        f,
        z0,
        [0.0, case.T],
        method=method,
        rtol=settings.rtol,
        atol=settings.atol,
        gradient=gradient_of(gradient),
    )
    dz0, dk = torch.autograd.grad(sol.ys[-1] ** 2, (z0, k))
    return {"dz0": dz0.item(), "dk": dk.item(), **asdict(sol.stats)}
