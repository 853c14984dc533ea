"""What cannot be compiled, in one sentence each, before anything is solved."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core import Control, Gradient, Problem, tolerant
from ..gradients import Facts
from ..methods.staged import staged
from ..numbers import value
from ..state import Structure

STEPS, CUDA_GRAPHS = "steps", "cuda-graphs"


def refuse_loops(p: Problem, gradient: Gradient, transformed: bool) -> str | None:
    """Say why the solve has no compiled loop; None if it has one."""
    control = p.control
    norm = getattr(tolerant(control), "norm", "rms")
    known_norm = isinstance(norm, str) or getattr(norm, "__func__", None) is Structure.mixed_rms
    facts = Facts.of(gradient)
    reasons = {
        "gradient='aca' with all checkpoints or none, and 'direct', are compiled so far": not facts.replaceable,
        "the graph of all steps is kept compiled for adaptive FSAL methods (dopri5, tsit5, bosh3), times that "
        "require no gradient and f that do not jump so far": facts.records is True and not keeps_graphs(p),
        "dense output is not compiled": p.dense,
        "debug=True is not compiled": p.trace is not None,
        "callbacks of f, and progress=True, are not compiled": p.watch is not None,
        f"a control of your own ({type(control).__name__}) is compiled only if it knows all step times "
        "beforehand and has a method times(ts)": not _has_loop(control),
        "a norm of your own is not compiled": not known_norm,
        f"the device {p.y0.device.type!r} has no compiled loop": p.y0.device.type != "cpu",
        "an output where a step's end is differentiated (grid, jump_ts) is not compiled": _ends_move(p),
    }
    possible = "use compile=False, or compile='steps' where that can be"
    return _first({**_in_general(p, transformed), **reasons}, possible)


def refuse_steps(
    p: Problem, gradient: Gradient, mode: str, transformed: bool, *, jumps: bool = False
) -> str | None:
    """Say why the steps of the solve cannot be graphs; None if they can. `jumps`: f jumps for some of its samples."""
    device, facts = p.y0.device.type, Facts.of(gradient)
    if mode == CUDA_GRAPHS and device != "cuda":
        return f"compile={mode!r} is for a GPU, and y0 is on {device!r}: use compile={STEPS!r}"
    reasons = {
        f"gradient={gradient.name!r} integrates backwards, which is not compiled": not (
            facts.moves or facts.records
        ),
        "stagewise=True replays stages, not steps": facts.stagewise,
        "f that jump are not compiled step by step": jumps or bool(p.jumps),
    }
    return _first({**_in_general(p, transformed), **reasons}, "use compile=False")


def _in_general(p: Problem, transformed: bool) -> dict[str, bool]:
    return {
        "explicit Runge-Kutta methods are compiled so far": staged(p.method) is None,
        "a solve inside a torch.func transform is not compiled": transformed,
        "a solve on one side of all jumps is not compiled": p.one_sided,
        "complex states are not compiled": p.y0.is_complex(),
    }


def _first(reasons: dict[str, bool], possible: str) -> str | None:
    """The first reason that holds, and what is possible instead."""
    return next((f"{reason}: {possible}" for reason, holds in reasons.items() if holds), None)


def keeps_graphs(p: Problem) -> bool:
    """Whether there is a compiled loop that keeps the graphs of the steps."""
    method = staged(p.method)
    plain = method is not None and method.fsal and method.dense_stages == method.stages
    return plain and p.control.adaptive and not is_timed(p) and not p.jumps


def is_timed(p: Problem) -> bool:
    """Whether times are differentiated."""
    return p.ts.tensor is not None or bool(p.control.tensors)


def _ends_move(p: Problem) -> bool:
    """Whether an output, whose own time is a constant, is at the end of a step that is differentiated."""
    control: Any = p.control
    if p.ts.moving or not control.tensors:
        return False
    ends = control.times(p.ts) if hasattr(control, "times") else getattr(control, "jump_ts", ())
    return not {value(t) for t in ends if isinstance(t, Tensor)}.isdisjoint(p.ts.values)


def _has_loop(control: Control) -> bool:
    """Whether a compiled loop can take the control's steps: between times, or by the formulas of `Adaptive`."""
    if control.adaptive:
        return getattr(control, "step_rule", None) is not None
    return callable(getattr(control, "times", None))
