"""torchdiffeq as a contestant."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torchdiffeq
from torch import Tensor

from .protocol import Run
from .torch_run import TorchRun, prepared
from .workloads import Counts, Workload

METHODS = {"dopri5": "dopri5", "heun_euler": "adaptive_heun"}


def versions() -> dict[str, str]:
    return {"torchdiffeq": version("torchdiffeq")}


def build(w: Workload, variant: dict[str, Any], device: str) -> Run:
    """`variant`: `landing` on t1 (`step_t`), or `adjoint`, "default" or "seminorm"."""
    field, t = prepared(w, device)
    options: dict[str, Any] = {"method": METHODS[w.method], "rtol": w.tolerance, "atol": w.tolerance}
    solver = torchdiffeq.odeint
    if variant.get("landing"):
        options["options"] = {"step_t": t[1:]}
    if variant.get("adjoint"):
        solver = torchdiffeq.odeint_adjoint
        if variant["adjoint"] == "seminorm":
            options["adjoint_options"] = {"norm": "seminorm"}
    steps = {"accepted": 0, "rejected": 0}
    forward_steps: dict[str, int] = {}

    def counting(kind: str) -> Any:
        def count(*_: object) -> None:
            steps[kind] += 1

        return count

    field.callback_accept_step = counting("accepted")
    field.callback_reject_step = counting("rejected")

    def solve(y0: Tensor) -> Tensor:
        steps.update(accepted=0, rejected=0)
        y1 = solver(field, y0, t, **options)[-1]
        forward_steps.update(steps)
        return y1

    return TorchRun(w, field, solve, lambda: Counts(**forward_steps), device)
