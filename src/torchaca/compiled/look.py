"""The look at a suspect where loops go back over chunks of steps, and stop behind it; see `torchaca.gradients.look`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..gradients.look import Look
from ..gradients.replay import vjp
from .field_graph import FieldGraph
from .steps import GraphOf


class Looks:
    """The looks of one backward pass over chunks.

    Parameters
    ----------
    own
        What there is to look at.
    field, inputs, wanted
        f as a graph, the tensors that it reads, and which of them have a gradient.
    """

    def __init__(
        self, own: Look, field: FieldGraph, inputs: Sequence[Tensor], wanted: Sequence[bool]
    ) -> None:
        self.own = own
        self.inputs = [x.detach().requires_grad_(want) for x, want in zip(inputs, wanted, strict=True)]
        self.f = GraphOf(field, self.inputs)

    def pieces(self, first: int, n: int) -> list[tuple[int, int]]:
        """Cut n steps behind each suspect: pieces `(start, end)` of a chunk, the last one first.

        `first` is the number of the chunk's first step.
        """
        cuts = [i for i in range(n - 1, 0, -1) if first + i - 1 in self.own.steps]
        return [*zip([*cuts, 0], [n, *cuts], strict=True)] if n else []

    def look(
        self,
        n: int,
        start: Tensor,
        lam: Tensor,
        outputs: Iterable[Tensor],
        *,
        end: Tensor | None = None,
        mu: Tensor | None = None,
    ) -> None:
        """Measure step n, if it is a suspect.

        `lam` is the cotangent of its end, but for those of `outputs` there, and `mu` that of f at its end, where f is
        known. `end` is where it led, if somebody knows.
        """
        own = self.own
        if n not in own.steps:
            return
        lam, suspect, found = sum(outputs, start=lam), own.steps[n], len(own.found)
        p = replace(own.p, f=replace(own.p.f, call=self.f, f0=None))
        if end is None:
            with torch.no_grad():
                end = p.step(suspect.t0, suspect.t1, start.detach()).y1
        if mu is not None:
            lam = lam + self._product(suspect.t1, end, mu)
        own.measure(p, suspect, (start, end), lam.detach(), [x for x in self.inputs if x.requires_grad])
        p.stats.nfe_backward += p.method.stages if len(own.found) > found else 0

    def _product(self, t: float, y: Tensor, mu: Tensor) -> Tensor | float:
        """What the cotangent of f at y adds to that of y."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            k = self.f(t, y)
        (more,) = vjp([k], [y], [mu]) if k.requires_grad else (None,)
        return 0.0 if more is None else more
