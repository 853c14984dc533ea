"""Why samples of a batch cannot go on: what can be said of each without solving again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..core import Problem
from ..errors import KINDS as WHAT
from ..errors import SolverError
from ..loops.diagnosis import FAST, GROWTH, NEAR
from ..loops.pace import KINDS, WORDS, Limits
from ..loops.rows import Rows, Spans
from ..loops.rule import largest
from ..norms import each

MOST = 5  # samples named in a message
OF_EVENTS = {
    "event": (
        "g of an event is nan or inf in the step from there, so that nobody can say where it crosses zero",
        "a g that is finite for every y that the solve may pass through",
    ),
    "grazing": (
        "an event only grazes zero: g does not change along the solution, so its time has no derivative",
        "a g that crosses zero with a slope, or torch.no_grad() if the values are all that is wanted",
    ),
    "zeno": (
        "three events in a row with no time between them: they come in ever shorter intervals",
        "an event that ends the solve where motion is slow, or an apply that takes the state off the guard",
    ),
}
"""What was seen of an event that stops samples, and what to try, by the kind of the failure."""


class Where(Protocol):
    """Where samples are, those of the `index` alone if there is one: a search, or what was left of one."""

    p: Problem
    y: Tensor
    t: Tensor
    dt: Tensor
    limits: Limits
    spans: Spans
    index: Tensor | None

    @property
    def rows(self) -> Rows: ...


class Failures:
    """Explains failures of samples, and notes their kinds by their numbers."""

    def __init__(self, kinds: dict[int, str] | None = None) -> None:
        self.kinds = {} if kinds is None else kinds

    def __call__(self, search: Where, reason: str, mask: Tensor) -> SolverError:
        """The failure of the samples of the mask; see `row_search.Explain`."""
        found = mask.nonzero()[:, 0].tolist()
        numbers = range(len(mask)) if search.index is None else search.index.tolist()
        failed, t = [numbers[i] for i in found], search.t[found[0]].item()
        dt = search.dt[found[0]].item()
        if reason in OF_EVENTS:
            return self.of_event(reason, failed, t, dt, search.p)
        kinds = self._kinds(search, KINDS.get(reason, reason))
        self.kinds |= {numbers[i]: kinds[i] for i in found}
        first, kind = failed[0], kinds[found[0]]
        words = WORDS[reason].format(**vars(search.limits))
        message = (
            f"{_named(failed)} stopped at t = {t:.10g}: {words}. {WHAT[kind][0].upper()}{WHAT[kind][1:]}.\n  try: "
            "on_failure='status', with which the others go on and sol.status says which stopped; or a solve of "
            f"y0[{first}] alone, which says more."
        )
        return SolverError(kind, message, t=t, dt=dt, stats=search.p.stats)

    def of_event(self, kind: str, failed: Sequence[int], t: float, dt: float, p: Problem) -> SolverError:
        """The failure of these samples by an event, of a kind of `OF_EVENTS`; the first one's was at t."""
        seen, advice = OF_EVENTS[kind]
        self.kinds |= dict.fromkeys(failed, kind)
        message = (
            f"{_named(failed)} stopped at t = {t:.10g}: {seen}.\n  try: {advice}; or on_failure='status', with which "
            "the others go on and sol.status says which stopped."
        )
        return SolverError(kind, message, t=t, dt=dt, stats=p.stats)

    @staticmethod
    def _kinds(search: Where, usual: str) -> list[str]:
        """What can be seen of each sample; one more evaluation of f where they are."""
        p, y, sign = search.p, search.y, search.spans.sign
        y0 = p.y0 if search.index is None else p.y0[search.index]
        k = p.f.call(search.rows.spread(search.t), y)
        passed = (search.t - search.spans.start).abs()
        size, start, steepest = (largest(x, 1).double() for x in (y, y0, k))
        outwards = sign * each((y.conj() * k).real, 1).sum(1) > 0
        doubling = size / steepest
        leaves = (doubling < NEAR * passed) | ((size > GROWTH * start) & (doubling < FAST * passed))
        found = {
            "y0": ~each(torch.isfinite(y0), 1).all(1),
            "f": ~each(torch.isfinite(k), 1).all(1),
            "blow-up": outwards & leaves,
        }
        masks = list(zip(*(mask.tolist() for mask in found.values()), strict=True))
        return [next((kind for kind, so in zip(found, some, strict=True) if so), usual) for some in masks]


def _named(samples: Sequence[int]) -> str:
    if len(samples) == 1:
        return f"sample {samples[0]}"
    rest = f" and {len(samples) - MOST} more" if len(samples) > MOST else ""
    return f"samples {', '.join(map(str, samples[:MOST]))}{rest}"
