"""The solution of a batch as a function of time: of all samples at one, or of each at its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import Method, Problem
from ..layout import stacked
from ..methods.interpolants import slopes_of
from ..numbers import host_times
from ..state import Structure
from ..torch_internals import pytree
from .clock import Clock
from .interpolants import combined_rows, fraction_of, weights_at


@dataclass(frozen=True, eq=False)
class SampleDense:
    """`y(t)` of each sample between the ends of its own times, of the method's own order.

    Parameters
    ----------
    method : Method
    structure : Structure
        How the user's state is packed.
    times : Tensor
        `(N + 1, B)`, between which the samples step, padded with their ends.
    span : Tensor
        `(2, B)`, where they start, and where they would end if none had failed.
    bases : sequence of Tensor
        `Step.basis` of the N steps.
    y0 : Tensor
        Packed.
    """

    method: Method
    structure: Structure
    times: Tensor
    span: Tensor
    bases: Sequence[Tensor]
    y0: Tensor

    @staticmethod
    def of(p: Problem, clock: Clock, times: Tensor, bases: Sequence[Tensor]) -> SampleDense:
        """That of a problem with these steps; see the parameters."""
        call: Any = p.f.call
        span = torch.stack([clock.wanted[0], clock.wanted[-1]])
        return SampleDense(p.method, call.structure, times, span, bases, p.y0)

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleDense:
        """The values; a graph belongs to the original alone."""
        own = {name: getattr(self, name) for name in ("times", "span", "bases", "y0")}
        return replace(copy(self), **pytree.tree_map(lambda x: x.detach().clone(), own))

    def __call__(self, t: Any) -> Any:
        """The states at `t`, one time or `(n,)` of all samples, or `(B, n)` of each: `(n, B, ...)`, without n for one.

        Differentiable in everything the solve is differentiable in, and in `t`. The state at a time that is nan, or
        that a sample did not reach, is nan.

        Raises
        ------
        ValueError
            For times outside of a sample's own.
        """
        return self._at(t, lambda theta, size: self.method.basis_weights(theta))

    def derivative(self, t: Any) -> Any:
        """The derivative by time of the same."""
        return self._at(t, lambda theta, size: slopes_of(self.method, theta) / size[:, None])

    def _at(self, t: Any, weights: Callable[[Tensor, Tensor], Tensor]) -> Any:
        given = host_times(t)
        at, n = self.of_each(given).to(self.times.device), len(self.bases)
        self.refuse_outside(at.detach(), self.span)
        if not n:
            ys = self.y0.expand(len(at), *self.y0.shape)
        else:
            times = self.times.detach()
            sign = torch.where(times[-1] < times[0], -1.0, 1.0).to(times)[:, None]
            ends = (sign * times[1:].T).contiguous()
            index = torch.searchsorted(ends, (sign * at.detach().T).contiguous()).T
            missed, index = (index == n) | at.isnan(), index.clamp(max=n - 1)
            sample = torch.arange(at.shape[1], device=at.device)
            start, end = self.times[index, sample], self.times[index + 1, sample]
            still = start == end
            theta = fraction_of(at, start, end)
            size = torch.where(still, 1.0, end - start).flatten().cpu()
            own = weights_at(lambda theta: weights(theta, size), theta, self.y0)
            rows = stacked(self.bases)[index, :, sample].movedim(2, 0)
            ys = combined_rows(own, rows)
            each = (*at.shape, *[1] * (self.y0.ndim - 1))
            ys = torch.where(still.reshape(each), self.y0, ys)
            ys = torch.where(missed.reshape(each), torch.nan, ys)
        ys = ys if given.ndim else ys[0]
        return self.structure.unpack(ys)

    def of_each(self, t: Tensor) -> Tensor:
        """Times `(n, B)`."""
        size = len(self.y0)
        if t.ndim == 2:
            if len(t) != size:
                raise ValueError(
                    f"batch sizes differ: the solution has {size} samples and t has {len(t)} rows (t of shape (B, n) "
                    "has one for each)"
                )
            return t.T
        if t.ndim > 2:
            raise ValueError(
                f"t is one time, times (n,) of all samples or (B, n) of each; got shape {tuple(t.shape)}"
            )
        return t.reshape(-1, 1).expand(-1, size)

    def refuse_outside(self, t: Tensor, span: Tensor) -> None:
        low, high = span.amin(0), span.amax(0)
        slack = torch.finfo(self.y0.dtype.to_real()).eps * torch.maximum(low.abs(), high.abs())
        slack = torch.minimum(slack, 1e-6 * (high - low))
        outside = (t < low - slack) | (t > high + slack)
        if bool(outside.any()):
            i, sample = outside.nonzero()[0].tolist()
            raise ValueError(
                f"t = {t[i, sample].item():g} is outside of the solve of sample {sample}, [{low[sample].item():g}, "
                f"{high[sample].item():g}]"
            )
