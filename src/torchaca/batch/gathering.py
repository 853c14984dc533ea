"""Samples that rest are left out of the batch that f gets, where that pays.

What it saves is their share of each step to come; it costs to gather what is known of the others, about `PRICE` trials
(measured). Nobody knows beforehand how long the others take, so samples are left out once as much
has been computed for nothing: at most twice of what was necessary is lost. An f may not allow it: if it has captured a
tensor with a row for each sample, it is for a batch of that size alone. So f of the samples that are left is compared
with f of all, beside the start, before they are left alone for the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..core import Problem, VectorField
from ..events.guard import Guard
from ..loops.rows import PRICE, Samples, Spans, beside, differing
from .home import Home, Part


class Gathering:
    """Whether, and how, a problem is solved for some of its samples."""

    def __init__(
        self, p: Problem, samples: Samples, spans: Spans, *, wanted: bool, guards: Sequence[Guard] = ()
    ) -> None:
        self.p, self.samples, self.spans, self.wanted, self.guards = p, samples, spans, wanted, guards
        self.known: bool | None = None

    def allowed(self, index: Tensor) -> bool:
        """Whether samples may be left out; these are the first that are left."""
        if self.known is None:
            self.known = self.wanted and self._keeps(index)
        return self.known

    @torch.no_grad()
    def _keeps(self, index: Tensor) -> bool:
        """Whether f, and g of events, of these samples are what they are of all, beside the start; not counted."""
        p, f = self.p, cast("Any", self.p.f.call)
        t, y = beside(self.spans, p.y0.detach())
        t = self.samples.spread(t)
        try:
            some, left = f.fewer(index), (t[index], y[index])
            pairs = [(some.evaluate(*left), f.evaluate(t, y)[index])]
            pairs += [(replace(guard, field=some)(*left), guard(t, y)[index]) for guard in self.guards]
        except Exception:  # whatever f minds there, it is no answer
            return False
        return all(a.shape == b.shape and not bool(differing(a, b).any()) for a, b in pairs)

    def of(self, index: Tensor) -> VectorField | None:
        """The function f of these samples, if they may be alone."""
        own: Any = self.p.f.call
        return own.fewer(index) if self.allowed(index) else None


class Parts:
    """Which samples each step computes, of a solve between `times` `(N + 1, B, 1, ..., 1)`."""

    def __init__(self, times: Tensor, home: Home, gathering: Gathering) -> None:
        self.home, self.times, self.ndim, self.device = home, times, times.ndim - 1, times.device
        self.rests = (times[1:] == times[:-1]).flatten(1).cpu().numpy()
        self.index = self._chosen(~self.rests, gathering)
        self.homes: dict[int, Home] = {}
        self.known: dict[tuple[int, int], Part] = {}
        self.first = 0
        self.steps: list[tuple[Part, tuple[Tensor, Tensor]]] = []

    def step(self, n: int) -> tuple[Part, tuple[Tensor, Tensor]]:
        """That of step n, and between which times its samples go; those at rest are at home."""
        if not 0 <= n - self.first < len(self.steps):
            self._enter(n)
        return self.steps[n - self.first]

    def _enter(self, n: int) -> None:
        """Prepare the steps around number n that compute the same samples, all at once, and forget others."""
        index, first, last = self.index[n], n, n + 1
        while first and self.index[first - 1] is index:
            first -= 1
        while last < len(self.index) and self.index[last] is index:
            last += 1
        home, times, rests = self.home, self.times[first : last + 1], self.rests[first:last]
        if index is not None:
            home, times, rests = (
                self._home_of(index),
                times.index_select(1, index),
                rests[:, index.cpu().numpy()],
            )
        mask = torch.from_numpy(rests).to(self.device).reshape(times[1:].shape)
        ends = [torch.where(mask, home.t, t).unbind() for t in (times[:-1], times[1:])]
        some: list[bool] = np.any(rests, axis=1).tolist()
        masks = [own if so else None for own, so in zip(mask.unbind(), some, strict=True)]
        parts = [Part(home, self.ndim, index, own, len(self.home.y)) for own in masks]
        self.first, self.steps = first, list(zip(parts, zip(*ends, strict=True), strict=True))

    def between(self, first: int, last: int) -> Part:
        """That of a step that makes, or lies in, the steps from number `first` to `last`."""
        if last == first + 1:
            return self.step(first)[0]
        key = first, last
        if key not in self.known:
            self.known[key] = self._part(np.logical_and.reduce(self.rests[first:last]))
        return self.known[key]

    def resting(self, n: int) -> Part:
        """All samples, where those that rest in step n are at home."""
        return self._part(self.rests[n])

    def _part(self, rest: np.ndarray) -> Part:
        """All samples, of which these rest."""
        mask = None
        if rest.any():
            mask = torch.from_numpy(rest).to(self.device).reshape(-1, *[1] * (self.ndim - 1))
        return Part(self.home, self.ndim, None, mask, len(self.home.y))

    def _home_of(self, index: Tensor) -> Home:
        key = id(index)
        if key not in self.homes:
            self.homes[key] = self.home.row(index)
        return self.homes[key]

    def _chosen(self, moving: np.ndarray, gathering: Gathering) -> list[Tensor | None]:
        """The samples of each step, None for all."""
        chosen: list[Tensor | None] = []
        index, mine, idle = None, np.ones(moving.shape[1], dtype=bool), 0
        for now in moving:
            if (now & ~mine).any():
                index, mine = None, np.ones_like(now)
            n, active = int(mine.sum()), int(now.sum())
            if 0 < active < n and idle >= PRICE * n:
                left = torch.from_numpy(np.flatnonzero(now)).to(self.device)
                if not gathering.allowed(left):
                    return [None] * len(moving)
                index, mine, idle, n = left, now, 0, active
            idle += n - active
            chosen.append(index)
        return chosen
