"""Dense output: the solution as a function of time, made of the interpolants of the accepted steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.serialization import add_safe_globals

from .core import Method
from .layout import joined, ordered, stacked, unstacked
from .loops.rows import Lanes
from .methods import METHODS
from .methods.interpolants import slopes_of
from .methods.length import fraction, on_cpu, span
from .numbers import Time, combined, has_lanes, host_times, value
from .state import Structure, structure_of
from .torch_internals import plain, pytree
from .transforms import refuse_lanes

Weights: TypeAlias = Callable[[Any, Any, Tensor], Tensor]
"""Of a step's ends and times in it, `(n,)`: the weights `(n, m)` of the step's basis there, or their derivatives."""


@dataclass(frozen=True)
class DenseOutput:
    """`y(t)` between the first and the last output time, of the method's own order.

    Copies, pickles and files hold its values; a graph belongs to the original alone. `torch.load` reads it as it reads
    tensors (`weights_only=True`), once torchaca is imported.

    Parameters
    ----------
    method : Method
    structure : Structure
        How the user's state is packed.
    boundaries : sequence of float or Tensor
        Step times, n + 1 of them; with lanes where the lanes of `torch.func.vmap` have steps of their own.
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
        own = {name: detached(getattr(self, name)) for name in ("boundaries", "bases", "y0")}
        return replace(self, **own)

    def __reduce__(self) -> tuple[Any, ...]:
        """Values in plain containers, and the method by its name if that is in the table."""
        method = self.method.name if METHODS.get(self.method.name) == self.method else self.method
        times = [value(t) for t in self.boundaries]
        bases = stacked(self.bases).detach() if self.bases else None
        return restored, (method, times, bases, detached(self.structure.unpack(self.y0)))

    def __call__(self, t: Any) -> Any:
        """The state at `t` (number, list, array or tensor of any shape): `(*t.shape, *y0.shape)`.

        Differentiable in everything the solve is differentiable in, and in `t`.

        Raises
        ------
        ValueError
            For times outside of the solve.
        """
        return self._at(t, self._weights)

    def derivative(self, t: Any) -> Any:
        """The derivative by time of `y(t)`, of the same shape and differentiable as it is.

        At the end of a step it is that of the step before, which differs from that of the next one where f jumps, and
        where the method's interpolants are not smooth from step to step.

        Raises
        ------
        ValueError
            For times outside of the solve, and where there is no step.
        """
        if not self.bases:
            raise ValueError("the solve has no step, whose derivative this would be: it ends where it starts")
        return self._at(t, self._slopes)

    def _weights(self, t0: Any, t1: Any, times: Tensor) -> Tensor:
        return self.method.basis_weights(fraction(t0, t1, times))

    def _slopes(self, t0: Any, t1: Any, times: Tensor) -> Tensor:
        size = span(t0, t1)
        by_theta = slopes_of(self.method, fraction(t0, t1, times))
        return by_theta / (size[:, None] if isinstance(size, Tensor) and size.ndim else size)

    def _at(self, t: Any, weights: Weights) -> Any:
        refuse_lanes(t, "t")
        at = host_times(t)
        wanted = np.array(at.detach().reshape(-1).tolist())  # a tensor of torch.func has no memory of its own
        end = self.boundaries[-1]
        lanes = Lanes.of(end) if isinstance(end, Tensor) and has_lanes(end) else None
        ends = np.array([value(b) for b in self.boundaries]) if lanes is None else self._ends(lanes)
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
        elif lanes is None:
            packed = self._combined(weights, at.reshape(-1), wanted, ends)
        else:
            packed = self._in_lanes(weights, at.reshape(-1), wanted, ends)
        return self.structure.unpack(packed.reshape(*at.shape, *self.y0.shape))

    def _combined(self, weights: Weights, at: Tensor, wanted: np.ndarray, ends: np.ndarray) -> Tensor:
        index = find_steps(ends, wanted)
        order = np.argsort(index, kind="stable")
        parts = []
        for n in np.unique(index):
            mine = torch.from_numpy(np.flatnonzero(index == n))
            own = weights(self.boundaries[n], self.boundaries[n + 1], at[mine])
            parts.append(combined(own, self.bases[n]))
        ys = joined(parts, self.y0)
        if (order[1:] > order[:-1]).all():
            return ys
        return ordered(ys[torch.from_numpy(np.argsort(order))], self.y0)

    def _ends(self, lanes: Lanes) -> np.ndarray:
        """Where the lanes start, and where the one that got farthest ends."""
        with plain():
            ends = (self.boundaries[0], self.boundaries[-1])
            first, last = (lanes.gathered(b).cpu().numpy().reshape(-1) for b in map(torch.as_tensor, ends))
        return np.array([first[0], last[np.abs(last - first).argmax()]])

    def _in_lanes(self, weights: Weights, at: Tensor, wanted: np.ndarray, ends: np.ndarray) -> Tensor:
        """Each lane from its own steps; nan where it failed before."""
        sign, times = (-1.0 if ends[-1] < ends[0] else 1.0), torch.from_numpy(wanted)
        bounds = torch.stack([on_cpu(b) for b in self.boundaries])
        index = (sign * bounds[1:, None] < sign * times).sum(0)
        missed, index = index == len(self.bases), index.clamp(max=len(self.bases) - 1)
        own, rows = weights(bounds[index], bounds[index + 1], at), stacked(self.bases)
        each = [1] * self.y0.ndim
        own = own.to(rows.device, rows.dtype).reshape(*own.shape, *each)
        ys = (own * rows[index.to(rows.device)]).sum(1)
        return torch.where(missed.to(rows.device).reshape(-1, *each), torch.nan, ys)


def restored(method: Method | str, times: list[float], bases: Tensor | None, y0: Any) -> DenseOutput:
    """The dense output of which these are the values, as `DenseOutput.__reduce__` gives them."""
    structure = structure_of(y0)
    known = METHODS[method] if isinstance(method, str) else method
    return DenseOutput(known, structure, times, () if bases is None else unstacked(bases), structure.pack(y0))


add_safe_globals([restored])  # it makes nothing but values of what it is handed


def find_steps(ends: np.ndarray, times: Any) -> Any:
    """Which step each of `times` lies in, of those between `ends`; an end belongs to the step before it."""
    sign = -1.0 if ends[-1] < ends[0] else 1.0
    return (np.searchsorted(sign * ends, sign * times) - 1).clip(0, len(ends) - 2)


def detached(nested: Any) -> Any:
    """Nested tensors as copies without graph."""
    return pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, nested)
