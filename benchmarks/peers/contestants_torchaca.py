"""torchaca as a contestant."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

import torchaca as aca

from .by_hand import ByHand
from .fields_torch import FORMULAS
from .protocol import Run
from .torch_run import TorchRun, prepared
from .workloads import Counts, Workload

GRADIENTS = {
    "aca": aca.ACA(),
    "none": aca.ACA(checkpoints="none"),
    "adjoint": aca.Adjoint(),
}


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "torchaca": version("torchaca")}


def build(w: Workload, variant: dict[str, Any], device: str) -> Run:
    """`variant`: `gradient`, `compile`, and `lanes` for steps of each sample, by `torch.func.vmap` or, with `batch`, by
    `batch=1`; or `by_hand`.
    """
    if variant.get("by_hand"):
        return ByHand(w)
    field, _ = prepared(w, device)
    options = {
        "method": w.method,
        "rtol": w.tolerance,
        "atol": w.tolerance,
        "gradient": GRADIENTS[variant["gradient"]],
    }
    if variant.get("compile"):
        options["compile"] = variant["compile"]
        warnings.filterwarnings("error", "compile=")  # a solve that falls back to the eager loop is no result
    last: list[aca.Stats] = []

    def shared(y0: Tensor) -> Tensor:
        solution = aca.solve(field, y0, [0.0, w.t1], **options)
        last[:] = [solution.stats]
        return solution.ys[-1]

    rows = tuple(field.parameters())

    def lane(y0: Tensor, *own: Tensor) -> Tensor:
        solution = aca.solve(FORMULAS[w.field], y0, [0.0, w.t1], args=own, **options)
        last[:] = [solution.stats]
        return solution.ys[-1]

    def lanes(y0: Tensor) -> Tensor:
        return torch.func.vmap(lane)(y0, *rows)

    def batch(y0: Tensor) -> Tensor:
        solution = aca.solve(FORMULAS[w.field], y0, [0.0, w.t1], batch=1, rows=rows, **options)
        last[:] = [solution.stats]
        return solution.ys[-1]

    def statistics() -> Counts:
        s = last[-1]
        return Counts(s.nfe, s.nfe_backward, s.accepted, s.rejected)

    solve = batch if variant.get("batch") else lanes if variant.get("lanes") else shared
    return TorchRun(w, field, solve, statistics, device)
