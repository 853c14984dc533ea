"""Fixed steps of samples that are watched for events: where they end, found without a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..core import CarryingStep, Problem
from ..errors import SolverError
from ..loops.row_steps import trial_of
from ..loops.rows import Samples, Spans
from .failures import Failures
from .watch import RowWatch


@dataclass
class March:
    """Where the samples are; `failed` ones stop there, and `failure` is that of the first."""

    p: Problem
    samples: Samples
    spans: Spans
    failures: Failures
    t: Tensor
    failed: Tensor
    failure: SolverError | None = None
    index: Tensor | None = None

    @torch.no_grad()
    def boundaries(self, times: Tensor, watch: RowWatch) -> Tensor:
        """The `times` `(N + 1, B)` between which samples step, up to its first event."""
        p, spread, made = self.p, self.samples.spread, [times[0]]
        y, f0, start = p.y0.detach(), p.f0, p.y0.detach()
        if p.carrying is not None:
            start = p.carrying.lift(p.f.call, spread(self.t), y, f0)
        done = torch.zeros_like(self.failed)
        for later in times[1:]:
            t1 = torch.where(done, self.t, later)
            active, ends = t1 != self.t, (spread(self.t), spread(t1))
            step = trial_of(p, ends, start, f0, None)
            t1, found = watch(self, step, t1, active)
            done = done | found | self.failed
            self.t = torch.where(self.failed, self.t, t1)
            made.append(self.t)
            here, f1 = spread(active & ~done), step.hint
            f0 = None if f1 is None else torch.where(here, f1, step.f0)
            if p.carrying is None:
                start = torch.where(here, step.y1, start)
            else:
                start = torch.where(here, cast("CarryingStep", step).carry, start)
        return torch.stack(made)

    def fail(self, reason: str, mask: Tensor) -> None:
        """Stop the samples of the mask.

        Raises
        ------
        SolverError
            If failures are to be raised.
        """
        failed = mask.nonzero()[:, 0].tolist()
        failure = self.failures.of_event(reason, failed, self.t[failed[0]].item(), 0.0, self.p)
        if self.p.log.on_failure == "raise":
            raise failure
        self.failure = self.failure or failure
        self.failed = self.failed | mask
