"""torchdyn as a contestant."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

import torchdyn.core
from torch import Tensor, nn

from .protocol import Run
from .torch_run import TorchRun, prepared
from .workloads import Counts, Workload

loop = importlib.import_module("torchdyn.numerics.odeint")  # as an attribute, the name is that of a function


def versions() -> dict[str, str]:
    return {"torchdyn": version("torchdyn")}


class WithArguments(nn.Module):
    """The field as torchdyn calls it."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, x: Tensor, args: object = None) -> Tensor:
        return self.field(t, x)


class StepCount:
    """Counts accepted and rejected steps, of which torchdyn's loop keeps no record, by its error norm."""

    def __init__(self) -> None:
        self.accepted = self.rejected = 0
        self.norm = loop.hairer_norm
        loop.hairer_norm = self

    def __call__(self, scaled_error: Tensor) -> Tensor:
        ratio = self.norm(scaled_error)
        accepted = bool(ratio <= 1)
        self.accepted += accepted
        self.rejected += not accepted
        return ratio

    def restore(self) -> None:
        loop.hairer_norm = self.norm


class TorchdynRun(TorchRun):
    """Only the untimed step counts."""

    def result(self) -> Any:
        count = StepCount()
        self.statistics = lambda: Counts(accepted=counted[0], rejected=counted[1])
        counted: list[int] = []
        solve = self.solve

        def counting(y0: Tensor) -> Tensor:
            count.accepted = count.rejected = 0
            y1 = solve(y0)
            counted[:] = [count.accepted, count.rejected]  # those of the forward pass alone
            return y1

        self.solve = counting
        try:
            return super().result()
        finally:
            self.solve = solve
            count.restore()


def build(w: Workload, variant: dict[str, Any], device: str) -> Run:
    """`variant`: `sensitivity`, "autograd", "adjoint" or "interpolated_adjoint"."""
    if w.method != "dopri5":
        raise ValueError("torchdyn has no Heun-Euler pair")
    field, t = prepared(w, device)
    tolerances = dict.fromkeys(("rtol", "atol", "rtol_adjoint", "atol_adjoint"), w.tolerance)
    model = torchdyn.core.NeuralODE(
        WithArguments(field),
        solver="dopri5",
        sensitivity=variant["sensitivity"],
        return_t_eval=False,
        **tolerances,
    )
    return TorchdynRun(w, field, lambda y0: model(y0, t)[-1], device=device)
