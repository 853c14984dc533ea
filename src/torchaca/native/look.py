"""Looks at steps whose derivative nobody has checked, between the sweeps in C; see `torchaca.gradients.look`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..compiled.field_graph import FieldGraph
from ..compiled.steps import GraphOf
from ..core import Problem
from ..gradients.look import Look
from .graphs import Wanted
from .run import Chunk
from .tables import Route


class Looks:
    """The looks of one backward pass of a native solve.

    Parameters
    ----------
    own
        What there is to look at.
    field, inputs, wanted
        f as a graph, the tensors that it reads, and which of them have a gradient.
    route
        The problem's.
    """

    def __init__(
        self, own: Look, field: FieldGraph, inputs: Sequence[Tensor], wanted: Wanted, route: Route
    ) -> None:
        self.own, self.route = own, route
        self.inputs = [x.detach().requires_grad_(want) for x, want in zip(inputs, wanted.inputs, strict=True)]
        self.f = GraphOf(field, self.inputs)

    def pieces(self, chunks: Iterable[Chunk], last: int) -> Iterator[Chunk]:
        """Cut the chunks, the last one first, behind each suspect; `last` steps are in them."""
        for chunk in chunks:
            first = last - chunk.n
            cuts = sorted(n + 1 - first for n in self.own.steps if first <= n < last - 1)
            for a, b in zip([*cuts[::-1], 0], [chunk.n, *cuts[::-1]], strict=True):
                stages = None if chunk.K is None else chunk.K[a:b]
                yield replace(chunk, n=b - a, times=chunk.times[a : b + 1], Y=chunk.Y[a : b + 1], K=stages)
            last = first

    def look(self, n: int, chunk: Chunk, lam: Tensor, grad_ys: Tensor) -> None:
        """Measure step n of the solve, the last of this chunk, if it is a suspect.

        `lam` is the cotangent of its end, but for outputs there, which `grad_ys` are the cotangents of.
        """
        own = self.own
        if n not in own.steps:
            return
        suspect, whole = own.steps[n], own.p
        for i, grad in enumerate(grad_ys):
            if self.route.exact[i] and whole.ts.values[i] == suspect.t1:
                lam = lam + grad
        p: Problem = replace(whole, f=replace(whole.f, call=self.f, f0=None))
        start, found = chunk.Y[chunk.n - 1], len(own.found)
        with torch.no_grad():
            end = chunk.Y[chunk.n] if chunk.known else p.step(suspect.t0, suspect.t1, start).y1
        own.measure(p, suspect, (start, end), lam.detach(), [x for x in self.inputs if x.requires_grad])
        p.stats.nfe_backward += p.method.stages if len(own.found) > found else 0
