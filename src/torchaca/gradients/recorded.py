"""The forward solution as a function of time, from the interpolants of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import Method, Step
from ..dense import find_steps
from ..methods.length import fraction
from ..numbers import combined


def polynomials(method: Method) -> Tensor:
    """`(m, r)`, float64 on the CPU: orthonormal columns that span the method's `basis_weights`.

    A step's interpolant is a polynomial of degree r - 1, and `Step.basis` has an entry for every stage: r of their
    combinations say the same.
    """
    weights = method.basis_weights(torch.linspace(0, 1, 64, dtype=torch.float64, device="cpu"))
    _, sizes, rows = torch.linalg.svd(weights, full_matrices=False)
    return rows[sizes > 1e-12 * sizes[0]].T.contiguous()


@dataclass
class Recorded:
    """The forward solution `y(t)` from the interpolants of its steps: `coefficients[n]` is `(r, *y0.shape)`."""

    method: Method
    times: Sequence[float] = ()
    coefficients: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        self.columns, self.ends = polynomials(self.method), np.array(self.times)

    def taking(
        self,
        accepted: Iterable[Step],
        into: list[Tensor],
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[Step]:
        """The same steps; their coefficients are put into the list, evaluated `aside` (see `Problem.aside`)."""
        for step in accepted:
            with aside():
                into.append(combined(self.columns.T, step.basis()))
            yield step

    def __call__(self, t: float) -> Tensor:
        """The state at `t`, shape of y0."""
        n = find_steps(self.ends, t)
        theta = fraction(self.times[n], self.times[n + 1], [t])
        return combined(self._weights(theta), self.coefficients[n])[0]

    def _weights(self, theta: Tensor) -> Tensor:
        """`(n, r)`: those of the coefficients."""
        return (self.method.basis_weights(theta)[..., None] * self.columns).sum(1)
