"""Cotangents of dense output as those of values inside the steps, which any steps over the same stretch have.

The interpolant of a step is a polynomial: what a loss wants of its coefficients it can say of as many values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Method, Step
from ..numbers import Time, combined
from .recorded import polynomials


@dataclass(frozen=True)
class Inner:
    """Cotangents of values inside a step.

    Attributes
    ----------
    parts : sequence of float
        Where: parts of the step, increasing, inside of (0, 1).
    grads : Tensor
        `(len(parts), *y0.shape)`.
    """

    parts: Sequence[float]
    grads: Tensor

    def within(self, low: float, high: float) -> Inner:
        """Those of a part of the step, in parts of that."""
        here = [i for i, x in enumerate(self.parts) if low < x <= high]
        return Inner([(self.parts[i] - low) / (high - low) for i in here], self.grads[here])

    def add(self, step: Step, outs: list[Tensor], cotangents: list[Tensor]) -> None:
        """Add them to the outputs of the step."""
        if self.parts:
            times: list[Time] = [step.t0 + (step.t1 - step.t0) * part for part in self.parts]
            outs.append(step.at(times))
            cotangents.append(self.grads)


def inner_of(method: Method, dense: Sequence[Tensor | None]) -> dict[int, Inner]:
    """By step, the cotangents of values that say what those of its `Step.basis` say."""
    degree = polynomials(method).shape[1]
    parts = [0.5 - 0.5 * math.cos(math.pi * (i + 0.5) / degree) for i in range(degree)]
    weights = method.basis_weights(torch.tensor(parts, dtype=torch.float64, device="cpu"))
    inverse = torch.linalg.pinv(weights.T)
    return {n: Inner(parts, combined(inverse, grad)) for n, grad in enumerate(dense) if grad is not None}
