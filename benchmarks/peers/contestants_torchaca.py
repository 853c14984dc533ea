"""torchaca as a contestant."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

import torchaca as aca

from .by_hand import ByHand
from .fields_torch import oscillator
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
    """`variant`: `gradient`, `compile`, and `lanes` for the steps of each sample by `torch.func.vmap`; or `by_hand`."""
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

    def lane(y0: Tensor, mu: Tensor) -> Tensor:
        solution = aca.solve(oscillator, y0, [0.0, w.t1], args=(mu,), **options)
        last[:] = [solution.stats]
        return solution.ys[-1]

    def lanes(y0: Tensor) -> Tensor:
        return torch.func.vmap(lane)(y0, field.mu)

    def statistics() -> Counts:
        s = last[-1]
        return Counts(s.nfe, s.nfe_backward, s.accepted, s.rejected)

    return TorchRun(w, field, lanes if variant.get("lanes") else shared, statistics, device)
