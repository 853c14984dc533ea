"""torchode as a contestant: every sample has its own steps.

It runs in its eager loop. TorchScript, for which the loop was written, fails in present PyTorch, and the
`torch.compile(solver)` of its readme leaves `solver.solve` as it is.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torchode
from torch import Tensor, nn

from .protocol import Run
from .torch_run import TorchRun, prepared
from .workloads import Counts, Workload

METHODS = {"dopri5": torchode.Dopri5, "heun_euler": torchode.Heun}


class Flat(nn.Module):
    """The field between the matrices `(batch, features)` that torchode solves for."""

    def __init__(self, field: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.field, self.shape = field, shape

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(t, y.reshape(y.shape[:-1] + self.shape)).reshape(y.shape)


class FlatOne(Flat):
    """The same where the whole state is one sample."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(t, y.reshape(self.shape)).reshape(y.shape)


def versions() -> dict[str, str]:
    return {"torchode": version("torchode")}


def build(w: Workload, variant: dict[str, Any], device: str) -> Run:
    """`variant`: `adjoint`, "autodiff", "backsolve" or "joint"."""
    field, t = prepared(w, device)
    one = w.field == "gravity"
    samples = 1 if one else len(w.y0)
    flat = FlatOne(field, w.y0.shape) if one else Flat(field, w.y0.shape[1:])
    term = torchode.ODETerm(flat, with_stats=False)
    method = METHODS[w.method](term=term)
    control = torchode.IntegralController(atol=w.tolerance, rtol=w.tolerance, term=term)
    solver: Any
    if variant["adjoint"] == "autodiff":
        solver = torchode.AutoDiffAdjoint(method, control, backprop_through_step_size_control=False)
    elif variant["adjoint"] == "backsolve":
        solver = torchode.BacksolveAdjoint(term, method, control)
    else:
        solver = torchode.JointBacksolveAdjoint(term, method, control)
    start, end = (x.expand(samples).contiguous() for x in t)
    last: list[dict[str, Any]] = []

    def solve(y0: Tensor) -> Tensor:
        solution = solver.solve(torchode.InitialValueProblem(y0.reshape(samples, -1), start, end, None))
        last[:] = [solution.stats]
        return solution.ys[:, -1].reshape(y0.shape)

    def statistics() -> Counts:
        trials, accepted = (last[-1][name].double().mean().item() for name in ("n_steps", "n_accepted"))
        return Counts(accepted=accepted, rejected=trials - accepted)

    return TorchRun(w, field, solve, statistics, device)
