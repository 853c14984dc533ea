"""What a compiled loop is made for: all that cannot change from call to call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core import Problem, tolerant
from ..loops.rule import StepRule
from ..methods.staged import Staged, staged
from ..state import Structure
from .outputs import inner_times


@dataclass(frozen=True)
class Spec:
    """What a compiled loop is made for.

    `inside`: there are outputs inside of steps, in those that they end (`closed`) as well; `timed`: times are
    differentiated. `kept`: the graph of the steps is kept, made for tensors of these shapes.
    `jumps`: there are times where f jumps.
    """

    method: Staged = field(hash=False)
    inside: bool
    autocast: torch.dtype | None
    rule: StepRule | None
    structure: Structure | None
    timed: bool = False
    closed: bool = False
    kept: tuple[torch.Size, ...] | None = None
    jumps: bool = False
    accept_at_dt_min: bool = False

    @staticmethod
    def of(
        p: Problem,
        structure: Structure,
        autocast: torch.dtype | None,
        timed: bool,
        kept: tuple[torch.Size, ...] | None,
    ) -> Spec:
        method, inside, closed = staged(p.method), bool(inner_times(p)), p.ts.tensor is not None
        assert method is not None
        control = tolerant(p.control)
        if control is None:
            return Spec(method, inside, autocast, None, None, timed, closed)
        mixed = not isinstance(control.norm, str)
        # The tolerances, and the numbers in `Limits`, may change from call to call.
        rule = replace(control.step_rule, rtol=0.0, atol=0.0, norm="rms" if mixed else control.norm)
        return Spec(
            method,
            inside,
            autocast,
            rule,
            structure if mixed else None,
            timed,
            closed,
            kept,
            bool(p.jumps),
            control.accept_at_dt_min,
        )

    def between(self, ts: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """Which of the `inner_times` are on the interpolant of the step from t0 to t1."""
        return (ts > t0) & ((ts <= t1) if self.closed else (ts < t1))

    @property
    def missing(self) -> int:
        """How many stages outputs inside a step need beyond those that every step evaluates."""
        method = self.method
        return method.dense_stages - (method.stages if self.rule else method.stages - method.fsal)

    @property
    def gives_f1(self) -> bool:
        """Whether f(t1, y1) is one of the missing stages."""
        index = self.method.f1_index
        return index is not None and index >= self.method.dense_stages - self.missing

    @property
    def carries(self) -> bool:
        """Whether the sweep hands f0 of a step to the step before, whose interpolant is linear in it."""
        index = self.method.f1_index
        linear = index is not None and index + 1 == self.method.dense_stages
        return self.inside and linear and self.kept is None

    @property
    def extra(self) -> int:
        """How many evaluations a replay of a step with outputs inside has beyond those of other replays."""
        method = self.method
        fewest = method.dense_stages - (method.stages - method.fsal)
        return fewest if self.inside and not self.carries else 0
