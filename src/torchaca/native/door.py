"""What has no native solve, in one sentence each, before anything is evaluated."""

from __future__ import annotations

from typing import Any

from ..core import Gradient, Problem, tolerant
from ..gradients import Facts
from ..torch_internals import transformed
from .driver import C_TYPES
from .tables import has_norm, has_table


def is_timed(p: Problem) -> bool:
    """Whether times are differentiated."""
    return p.ts.tensor is not None or bool(p.control.tensors)


def refuse(p: Problem) -> str | None:
    """Say why the solve has no native loop; None if it has one."""
    gradient, control, own = p.gradient, p.control, tolerant(p.control)
    ruled = own is not None and own.step_rule is not None
    checks = (
        (gradient is None or not takes(gradient), GRADIENT),
        (
            not has_table(p.method),
            "{method} is no explicit Runge-Kutta method, which alone have native solves so far",
        ),
        (p.y0.device.type != "cpu", "the device {device!r} has no native solves"),
        (p.y0.dtype not in C_TYPES, "states of {dtype} have no native solves"),
        (p.trace is not None, "debug=True has no native solves"),
        (p.one_sided, "a solve on one side of all jumps has no native one"),
        (transformed(), "a solve inside a torch.func transform has no native one"),
        (control.adaptive and not ruled, "a control of your own ({control}) has no native loop"),
        (
            not control.adaptive and not hasattr(control, "times"),
            "the steps of {control} are not known beforehand",
        ),
        (own is not None and not has_norm(own.norm), "a norm of your own has no native loop"),
    )
    reason = next((reason for holds, reason in checks if holds), None)
    if reason is None:
        return None
    kind = type(control).__name__
    return reason.format(method=p.method.name, device=p.y0.device.type, dtype=p.y0.dtype, control=kind)


SECOND = "second derivatives of a native solve are not available: use compile=False"
GRADIENT = "gradients that go from step to step of the solve ('aca', 'direct') have native solves so far"


def takes(gradient: Gradient) -> bool:
    """Whether there is a native solve under a gradient: one in its place, or its own, on native steps."""
    facts = Facts.of(gradient)
    return facts.replaceable or facts.states is not None or (facts.moves and facts.records is False)


def inside_steps(p: Problem) -> bool:
    """Whether an output may lie inside of a step."""
    ends: Any = p.ts.values[0], p.ts.values[-1]
    return p.dense or p.ts.moving or any(t not in ends for t in p.ts.values)
