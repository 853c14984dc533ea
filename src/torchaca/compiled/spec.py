"""What a compiled loop is made for: all that cannot change from call to call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..control import Adaptive
from ..core import Problem
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
    control: Adaptive | None
    structure: Structure | None
    timed: bool = False
    closed: bool = False
    kept: tuple[torch.Size, ...] | None = None
    jumps: bool = False

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
        if not isinstance(p.control, Adaptive):
            return Spec(method, inside, autocast, None, None, timed, closed)
        mixed = not isinstance(p.control.norm, str)
        # Of a control only what is no number in `Limits`.
        control = Adaptive(
            pid=p.control.pid,
            safety=p.control.safety,
            factor_min=p.control.factor_min,
            factor_max=p.control.factor_max,
            norm="rms" if mixed else p.control.norm,
            accept_at_dt_min=p.control.accept_at_dt_min,
        )
        return Spec(
            method,
            inside,
            autocast,
            control,
            structure if mixed else None,
            timed,
            closed,
            kept,
            bool(p.jumps),
        )

    def between(self, ts: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """Which of the `inner_times` are on the interpolant of the step from t0 to t1."""
        return (ts > t0) & ((ts <= t1) if self.closed else (ts < t1))

    @property
    def missing(self) -> int:
        """How many stages outputs inside a step need beyond those that every step evaluates."""
        method = self.method
        return method.dense_stages - (method.stages if self.control else method.stages - method.fsal)

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
