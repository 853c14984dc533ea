"""One step inside of a compiled loop: f on the right side of its jumps, its stages, its interpolant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import VectorField
from ..methods.staged import Staged, StagedStep
from ..numbers import Time, value
from .field_graph import FieldGraph
from .halves import Halves
from .spec import Spec


def one_sided(
    func: FieldGraph, inputs: Sequence[Tensor], jumps: Tensor, t0: Tensor, t1: Tensor
) -> VectorField:
    """f in the step from t0 to t1, strictly inside of it at those of its ends where f jumps; see `Problem.between`."""
    at_start, at_end = (jumps == t0).any(), (jumps == t1).any()

    def f(t: Any, y: Tensor) -> Tensor:
        exact = t.to(y.dtype)
        now, start, end = (x.detach().to(y.dtype) for x in (t, t0, t1))
        before = torch.where(at_end & (t == t1), torch.nextafter(now, start), now)
        moved = torch.where(at_start & (t == t0), torch.nextafter(now, end), before)
        return func(exact + (moved - now), y, inputs)

    return f


def step_of(
    f: VectorField,
    method: Staged,
    split: Halves | None,
    start: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> tuple[StagedStep, Sequence[Tensor]]:
    """The step from `(t0, t1, y, f0)`, and its residuals where its stages are split."""
    t0, t1, y, f0 = start
    if split is None:
        return method.step(f, t0, t1, y, f0), ()
    stages, residuals = split.forward(t0, t1, y, f0, *inputs)
    return method.complete(f, t0, t1, y, (f0, *stages)), residuals


def basis_and_f1(f: VectorField, spec: Spec, step: StagedStep, within: Tensor) -> tuple[Tensor, Tensor]:
    """A step's basis, and f(t1, y1) if that is one of the missing stages, else zeros.

    Where stages are missing, both are zeros in a step without outputs inside, which evaluates none of them.
    """
    method = spec.method
    if not spec.missing:
        return step.basis(), torch.zeros_like(step.y1)

    def whole(t0: Tensor, t1: Tensor, y0: Tensor, *stages: Tensor) -> Any:
        own = method.complete(f, t0, t1, y0, stages)
        basis, f1 = own.basis(), own.hint
        return basis, f1.clone() if spec.gives_f1 and f1 is not None else torch.zeros_like(y0)

    def nothing(t0: Tensor, t1: Tensor, y0: Tensor, *stages: Tensor) -> Any:
        return y0.new_zeros((method.dense_stages + 1, *y0.shape)), torch.zeros_like(y0)

    return torch.cond(within, whole, nothing, (step.t0, step.t1, step.y0, *step.known))


def beside(t: Time, other: float, dtype: torch.dtype) -> Tensor:
    """The next number after t towards another one, as f gets it."""
    return torch.nextafter(
        torch.tensor(t, dtype=dtype, device="cpu"), torch.tensor(other, dtype=dtype, device="cpu")
    )


@dataclass(frozen=True)
class GraphOf:
    """f as a graph, with its inputs, for a step of its own in Python; beside a jump if it has to be."""

    field: FieldGraph
    inputs: Sequence[Tensor]

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        now = torch.as_tensor(t, dtype=y.dtype, device="cpu")
        now = now if nudge is None else beside(value(t), value(nudge), y.dtype)
        return self.field(now, y, self.inputs)
