"""What a backward pass adds up, from the last step to the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layout import ordered
from ..numbers import Time
from .replay import BatchedTotals, MaybeTensors, Parts, Totals, vjp, without_detours


@dataclass
class Tally:
    """Vector-Jacobian products of steps, from the last one to the first.

    A product is a list: with respect to the step's start, its two boundaries, and everything else that f depends on.

    Attributes
    ----------
    totals : Totals or BatchedTotals
        The sums for everything else.
    lam : Tensor or None
        The product with respect to the start of the step that was added last, which is the cotangent of the end of the
        one before; None before the first.
    times : list
        Boundaries that are tensors, each with what belongs to it.
    """

    totals: Totals | BatchedTotals
    lam: Tensor | None = None
    times: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def incoming(self, end: Tensor) -> Tensor:
        """The cotangent of the end of the step that comes next, which is `end`."""
        return torch.zeros_like(end) if self.lam is None else self.lam

    def add(self, product: MaybeTensors, boundaries: Sequence[Time], start: Tensor) -> None:
        """Add the product of a step between these boundaries that started from `start`."""
        lam, *times = product[:3]
        for boundary, grad in zip(boundaries, times, strict=True):
            if grad is not None and isinstance(boundary, Tensor):
                self.times.append((boundary, grad))
        self.lam = torch.zeros_like(start) if lam is None else lam
        self.totals.add(product[3:])

    def finished(
        self, parts: Parts, wrt: Sequence[Tensor | None], at_start: Sequence[Tensor] = ()
    ) -> MaybeTensors:
        """Return the sums in the order of `parts`.

        Parameters
        ----------
        wrt : sequence of Tensor or None
            Everything else, in the order of the products.
        at_start : sequence of Tensor
            Further cotangents of y0.
        """
        lam = torch.zeros_like(parts.y0, requires_grad=False) if self.lam is None else self.lam
        if self.times:
            boundaries, grads = zip(*self.times, strict=True)
            self.totals.add(vjp(boundaries, wrt[: 1 + len(parts.control)], grads, keep=True))
        others, sums = len(wrt) - len(parts.captured), self.totals.sums
        if (
            lam.ndim > parts.y0.ndim
        ):  # of what a solve before this one has handed on: y0, and the last of the others
            sums[len(parts.control)] = lam[1:]
            lam = lam[0]
        for grad in at_start:
            lam = lam + grad
        return [
            ordered(lam, parts.y0),
            *sums[:others],
            *without_detours(parts.captured, sums[others:]),
        ]
