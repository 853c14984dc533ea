"""Why did the solve stop? Cheap tests on the failing step, first match wins."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .control import Adaptive, largest
from .core import Problem
from .errors import SolverError
from .places import label
from .reach import reach

RECENT = 10  # accepted step sizes remembered
GROWTH = 1e6  # growth of |y| since the start that counts as leaving to infinity
NEAR = 1e-3  # y doubling within this part of the time solved so far counts as well


@dataclass
class History:
    """What the loop remembers for the case that it has to explain itself. Nothing here reads the device."""

    sizes: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    rejections: int = 0
    rejected_size: float = math.inf

    def accept(self, size: float) -> None:
        self.sizes.append(size)
        self.rejections = 0
        self.rejected_size = math.inf

    def reject(self, size: float) -> None:
        self.rejections += 1
        self.rejected_size = size


@torch.no_grad()
def diagnose(
    p: Problem, control: Adaptive, history: History, reason: str, t: float, dt: float, y: Tensor
) -> SolverError:
    """The `SolverError` that says where the solve stopped, what was seen there, and what to try."""
    kind, seen, advice = _first_match(p, control, history, reason, t, dt, y)
    stats, (start, end) = p.stats, (p.ts.values[0], p.ts.values[-1])
    message = (
        f"stopped at t = {t:.10g} of [{start:g}, {end:g}] after {stats.accepted} accepted and {stats.rejected} "
        f"rejected steps ({p.method.name}, {_tolerances(control)}).\n"
        f"  step size {dt:.2g}; {_reasons(control)[reason]}\n  {seen}\n  try: {advice}"
    )
    return SolverError(kind, message, t=t, dt=dt, stats=stats)


def _tolerances(control: Adaptive) -> str:
    parts = (
        f"{name} {value:g}" if not isinstance(value, Tensor) else f"{name} per component"
        for name, value in (("rtol", control.rtol), ("atol", control.atol))
    )
    return ", ".join(parts)


ADVICE = {
    "step-size": "a looser tolerance, a float64 state, or jump_ts=[...] where f or its derivatives jump.",
    "first-step": "dt0=..., a looser tolerance, or a float64 state.",
    "max-steps": "a larger max_steps, a looser tolerance, or a method of higher order.",
    "dt-min": "a smaller dt_min, or a looser tolerance.",
}


def _reasons(control: Adaptive) -> dict[str, str]:
    return {
        "step-size": "a smaller one is lost in the rounding of t.",
        "first-step": "there is no first one.",
        "max-steps": f"max_steps = {control.max_steps} trials are used up.",
        "dt-min": f"the error is too large at dt_min = {control.dt_min:g}.",
    }


def _first_match(
    p: Problem, control: Adaptive, history: History, reason: str, t: float, dt: float, y: Tensor
) -> tuple[str, str, str]:
    bad = _bad_entry(p, p.y0)
    if bad:
        return "y0", f"y0 is not finite: {bad}.", "look at what made y0; nothing was solved."
    for time in (t, t + p.ts.sign * min(history.rejected_size, abs(p.ts.values[-1] - t))):
        bad = _bad_entry(p, p.f(time, y))
        if bad:
            return _of_f(p, time, bad)
    if not torch.equal(p.f(t, y), p.f(t, y)):
        advice = "model.eval(), or no Dropout or noise inside f: step control takes randomness for error."
        return "random", "two evaluations of f at the same (t, y) differ.", advice
    return _of_the_solution(p, control, history, reason, t, dt, y)


def _of_f(p: Problem, t: float, bad: str) -> tuple[str, str, str]:
    """f is not finite: because of a parameter, or by itself."""
    for path, tensor in reach(p.source).tensors if p.source else ():
        if tensor.is_floating_point() and tensor.requires_grad and not torch.isfinite(tensor).all():
            advice = "look at the step before this call: your optimizer diverged, or the weights were loaded broken."
            return "parameter", f"{label(path)} holds nan or inf.", advice
    for path, tensor in pytree.tree_flatten_with_path(getattr(p.f, "args", ()))[0]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return "parameter", f"args{pytree.keystr(path)} holds nan or inf.", "look at what made it."
    advice = "a guard in f (clamp, eps in a division or a root), or end the solve before this time."
    return "f", f"f is not finite at t = {t:.10g} for a finite y: {bad}.", advice


def _of_the_solution(
    p: Problem, control: Adaptive, history: History, reason: str, t: float, dt: float, y: Tensor
) -> tuple[str, str, str]:
    start, now = largest(p.y0).item(), largest(y).item()
    escape = _escape_time(p, t, y)
    if now > GROWTH * max(start, 1.0) or (reason == "step-size" and escape < NEAR * abs(t - p.ts.values[0])):
        index = int(y.abs().argmax())
        seen = f"{p.locate(index)} is {now:.2g}, where y0 is at most {start:.2g}; f stayed finite."
        advice = "a shorter horizon, smaller last-layer weights or weight decay, a bounded output (tanh)."
        return (
            "blow-up",
            f"{seen} The solution leaves to infinity near t = {t + p.ts.sign * escape:.6g}.",
            advice,
        )
    eps = torch.finfo(y.dtype.to_real()).eps
    tolerance = largest(control.atol + control.rtol * y.abs()).item()
    if tolerance < 4 * eps * now:
        advice = f"rtol >= {20 * eps:.0e}, or a float64 state."
        return (
            "tolerance",
            f"the tolerance {tolerance:.2g} is below the rounding of {y.dtype} at |y| = {now:.2g}.",
            advice,
        )
    if _jumps(p, history, t, y):
        return (
            "jump",
            f"f changes by its own size within {history.rejected_size:.2g} of t.",
            (f"jump_ts=[{t:.6g}] (every time where f or its derivatives jump)."),
        )
    stiffness = _stiffness(p, t, y, max(history.sizes, default=dt))
    if not math.isfinite(stiffness):
        seen = f"f is not finite right beside y = {now:.2g}: the range of its dtype ends there."
        return "f", seen, "bfloat16 or float32."
    if reason == "max-steps" and stiffness > 1.0:
        seen = f"dt * |df/dy| is about {stiffness:.2g}: stability, not accuracy, limits the step size."
        return "stiff", seen, "a looser tolerance does not help; a smoother f, or more steps (max_steps=...)."
    seen = "no single cause was found: the tolerance is too tight for this model."
    advice = ADVICE[reason]
    if p.carrying:
        seen = (
            f"the slope that {p.method.name} carries swings around f where the solution contracts, or the tolerance is "
            "too tight for its order."
        )
        advice = "ALF(eta=0.9), which damps that; a looser tolerance; or method='dopri5' with gradient='aca'."
    kind = "step-size" if reason == "first-step" else reason
    return kind, seen, advice


def _escape_time(p: Problem, t: float, y: Tensor) -> float:
    """|y| / |f| where f points outwards: how long until y has doubled, inf where it does not grow."""
    slope = p.f(t, y)
    outwards = p.ts.sign * (y.conj() * slope).real.sum().item()
    steepest = largest(slope).item()
    return largest(y).item() / steepest if outwards > 0 and steepest > 0 else math.inf


def _bad_entry(p: Problem, x: Tensor) -> str:
    """Which entry is not finite, or an empty string."""
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return ""
    index = int((~finite).reshape(-1).to(torch.uint8).argmax())
    return f"{p.locate(index)} is {x.reshape(-1)[index].item()}"


def _jumps(p: Problem, history: History, t: float, y: Tensor) -> bool:
    if history.rejections < 3:
        return False
    here, there = p.f(t, y), p.f(t + p.ts.sign * history.rejected_size, y)
    return bool((there - here).abs().amax() > 0.1 * torch.maximum(here.abs(), there.abs()).amax())


def _stiffness(p: Problem, t: float, y: Tensor, dt: float) -> float:
    """`dt |df/dy|` along f, by one difference."""
    slope = p.f(t, y)
    shift = slope * (1e-4 * (1 + float(y.abs().amax())) / max(float(slope.abs().amax()), 1e-30))
    change = torch.linalg.vector_norm(p.f(t, y + shift) - slope) / torch.linalg.vector_norm(shift).clamp(
        min=1e-30
    )
    return dt * float(change)
