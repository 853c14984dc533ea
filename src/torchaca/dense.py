"""Dense output: the solution as a function of time, made of the interpolants of the accepted steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core import Method
from .layout import joined, ordered
from .methods.length import fraction
from .numbers import Time, combined, host_times, value
from .state import Structure
from .torch_internals import pytree
from .transforms import refuse_lanes


@dataclass(frozen=True)
class DenseOutput:
    """`y(t)` between the first and the last output time, of the method's own order.

    Parameters
    ----------
    method : Method
    structure : Structure
        How the user's state is packed.
    boundaries : sequence of float or Tensor
        Step times, n + 1 of them.
    bases : sequence of Tensor
        `Step.basis` of the n steps.
    y0 : Tensor
        Packed; the answer where there is no step.
    """

    method: Method
    structure: Structure
    boundaries: Sequence[Time]
    bases: Sequence[Tensor]
    y0: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> DenseOutput:
        """The values; a graph belongs to the original alone."""
        own = {name: detached(getattr(self, name)) for name in ("boundaries", "bases", "y0")}
        return replace(self, **own)

    def __call__(self, t: Any) -> Any:
        """The state at `t` (number, list, array or tensor of any shape): `(*t.shape, *y0.shape)`.

        Differentiable in everything the solve is differentiable in, and in `t`.

        Raises
        ------
        ValueError
            For times outside of the solve.
        """
        refuse_lanes(t, "t")
        at = host_times(t)
        wanted = np.array(at.detach().reshape(-1).tolist())  # a tensor of torch.func has no memory of its own
        ends = np.array([value(b) for b in self.boundaries])
        low, high = min(ends[0], ends[-1]), max(ends[0], ends[-1])
        # Times in the state's precision may lie one rounding outside; those in float64 not by a part of a coarse span.
        slack = torch.finfo(self.y0.dtype.to_real()).eps * max(abs(low), abs(high))
        if getattr(t, "dtype", torch.float64) in (torch.float64, np.float64):
            slack = min(slack, 1e-6 * (high - low))
        outside = ~((wanted >= low - slack) & (wanted <= high + slack))
        if outside.any():
            raise ValueError(f"t = {wanted[outside][0]} is outside of the solve, [{low}, {high}]")
        wanted = wanted.clip(low, high)
        if not self.bases or not wanted.size:
            packed = self.y0.expand(wanted.size, *self.y0.shape)
        else:
            packed = self._interpolated(at.reshape(-1), wanted, ends)
        return self.structure.unpack(packed.reshape(*at.shape, *self.y0.shape))

    def _interpolated(self, at: Tensor, wanted: np.ndarray, ends: np.ndarray) -> Tensor:
        index = find_steps(ends, wanted)
        order = np.argsort(index, kind="stable")
        parts = []
        for n in np.unique(index):
            mine = torch.from_numpy(np.flatnonzero(index == n))
            t0, t1 = self.boundaries[n], self.boundaries[n + 1]
            parts.append(interpolate(self.method.basis_weights, self.bases[n], t0, t1, at[mine]))
        ys = joined(parts, self.y0)
        if (order[1:] > order[:-1]).all():
            return ys
        return ordered(ys[torch.from_numpy(np.argsort(order))], self.y0)


def find_steps(ends: np.ndarray, times: Any) -> Any:
    """Which step each of `times` lies in, of those between `ends`; an end belongs to the step before it."""
    sign = -1.0 if ends[-1] < ends[0] else 1.0
    return (np.searchsorted(sign * ends, sign * times) - 1).clip(0, len(ends) - 2)


def interpolate(
    weights: Callable[[Tensor], Tensor],
    basis: Tensor,
    t0: Time,
    t1: Time,
    times: Sequence[Time] | Tensor,
) -> Tensor:
    """The solution at `times` in the step from `t0` to `t1`: `(len(times), *y0.shape)`.

    `weights` are those of the rows of `basis`, such as `Method.basis_weights` of `Step.basis`.
    """
    return combined(weights(fraction(t0, t1, times)), basis)


def detached(nested: Any) -> Any:
    """Nested tensors as copies without graph."""
    return pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, nested)
