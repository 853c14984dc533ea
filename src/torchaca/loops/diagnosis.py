"""Why did the solve stop? Cheap tests on the failing step, first match wins."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from ..core import Problem
from ..errors import SolverError
from ..field.places import label
from ..field.reach import reach
from ..torch_internals import pytree
from .jumps import find_jump
from .rule import largest
from .stiffness import Stiffness, eigenvalues, find_stiffness

if TYPE_CHECKING:
    from .adaptive import Adaptive

RECENT = 10  # accepted step sizes remembered
GROWTH = 1e6  # growth of |y| since the start that counts as leaving to infinity
FAST = 0.25  # and y doubling within this part of the time solved so far, as t^4 does
NEAR = 1e-3  # y doubling within this part of the time solved so far counts as well
SLOW = 1e-2  # of the largest step: what is below has been slowed down
PATIENCE = 500  # slow steps in a row before the first look for a jump
BETWEEN_LOOKS, LOOKS = 50, 3  # steps; looks that have to find one
AHEAD = 16  # step sizes: where a jump of f is looked for
STEEP = 1e4  # growth of |f| since the start, where f then is infinite, that counts as a pole of f

Finding: TypeAlias = tuple[str, str, str]
"""A kind of `errors.KINDS`, what was seen, and what to try."""
Again: TypeAlias = "Callable[[float], tuple[float, Tensor, float] | None]"
"""Solve once more with a tighter tolerance until after a time: t, y and the step size there; None if that fails."""


@dataclass
class History:
    """What the loop remembers for the case that it has to explain itself. Nothing here reads the device."""

    sizes: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    rejections: int = 0
    rejected_size: float = math.inf
    largest: float = 0.0
    slow: int = 0
    next_look: int = PATIENCE
    jumps: int = 0

    def accept(self, size: float) -> None:
        self.sizes.append(size)
        self.rejections = 0
        self.rejected_size = math.inf
        self.largest = max(self.largest, size)
        if size < SLOW * self.largest:
            self.slow += 1
        else:
            self.slow, self.next_look = 0, PATIENCE

    def reject(self, size: float) -> None:
        self.rejections += 1
        self.rejected_size = size


@torch.no_grad()
def chatters(p: Problem, control: Adaptive, history: History, t: float, y: Tensor) -> bool:
    """Whether a solve goes on in tiny steps because f jumps, again and again, where the solution is.

    To be asked when `history.next_look` tiny steps in a row are reached. One look is not enough: any solution may cross
    a jump.
    """
    if history.rejections:
        return False
    history.next_look = history.slow + BETWEEN_LOOKS
    with p.undone():
        found = find_jump(p, control, t, y, AHEAD * max(history.sizes))
    history.jumps = history.jumps + 1 if found and not found.in_time else 0
    return history.jumps == LOOKS


@torch.no_grad()
def diagnose(
    p: Problem,
    control: Adaptive,
    history: History,
    reason: str,
    t: float,
    dt: float,
    y: Tensor,
    again: Again | None = None,
) -> SolverError:
    """The `SolverError` that says where the solve stopped, what was seen there, and what to try."""
    stats, (start, end) = p.stats, (p.ts.values[0], p.ts.values[-1])
    with p.undone():
        kind, seen, advice = _first_match(p, control, history, reason, t, dt, y, again)
    message = (
        f"stopped at t = {t:.10g} of [{start:g}, {end:g}] after {stats.accepted} accepted and {stats.rejected} "
        f"rejected steps ({p.method.name}, {_tolerances(control)}).\n"
        f"  step size {dt:.2g}; {_reasons(p, control, history)[reason]}\n  {seen}\n  try: {advice}"
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
STUCK = ("step-size", "underflow", "rejections")  # reasons of a step size that has become too small
NOT_STIFF = "more steps (max_steps=...), a shorter time, a smoother f, or an implicit method (scipy's Radau)."
SWINGS = "the slope that {} carries swings around f where the solution contracts"
UNDAMPED = "ALF(eta=0.9), which damps that; a looser tolerance; or method='dopri5' with gradient='aca'."


def _reasons(p: Problem, control: Adaptive, history: History) -> dict[str, str]:
    return {
        "step-size": "a smaller one is lost in the rounding of t.",
        "underflow": f"{p.y0.dtype.to_real()}, in which f gets t, has no smaller one.",
        "rejections": f"{history.rejections} trials in a row were rejected, each with a smaller one.",
        "first-step": "there is no first one.",
        "max-steps": f"max_steps = {control.max_steps} trials are used up.",
        "dt-min": f"the error is too large at dt_min = {control.dt_min:g}.",
        "slow": f"the last {history.slow} were below {SLOW:g} of the largest one.",
    }


def _first_match(
    p: Problem,
    control: Adaptive,
    history: History,
    reason: str,
    t: float,
    dt: float,
    y: Tensor,
    again: Again | None,
) -> Finding:
    bad = _bad_entry(p, p.y0)
    if bad:
        return "y0", f"y0 is not finite: {bad}.", "look at what made y0; nothing was solved."
    left = abs(p.ts.values[-1] - t)  # infinite in a solve without end
    ahead = t + p.ts.sign * min(history.rejected_size, left if left < math.inf else dt)
    for time in (t, ahead):
        bad = _bad_entry(p, p.f(time, y))
        if bad and not (time == ahead and _at_a_pole(p, t, y)):
            return _of_f(p, time, bad)
    if not torch.equal(p.f(t, y), p.f(t, y)):
        advice = "model.eval(), or no Dropout or noise inside f: step control takes randomness for error."
        return "random", "two evaluations of f at the same (t, y) differ.", advice
    return _of_the_solution(p, control, history, reason, t, dt, y, again)


def _of_f(p: Problem, t: float, bad: str) -> tuple[str, str, str]:
    """f is not finite: because of a parameter, or by itself."""
    for path, tensor in reach(p.source).tensors if p.source else ():
        if tensor.is_floating_point() and tensor.requires_grad and not torch.isfinite(tensor).all():
            advice = "look at the step before this call: your optimizer diverged, or the weights were loaded broken."
            return "parameter", f"{label(path)} holds nan or inf.", advice
    for path, tensor in pytree.tree_flatten_with_path(p.f.args)[0]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return "parameter", f"args{pytree.keystr(path)} holds nan or inf.", "look at what made it."
    advice = "a guard in f (clamp, eps in a division or a root), or end the solve before this time."
    return "f", f"f is not finite at t = {t:.10g} for a finite y: {bad}.", advice


def _of_the_solution(
    p: Problem,
    control: Adaptive,
    history: History,
    reason: str,
    t: float,
    dt: float,
    y: Tensor,
    again: Again | None,
) -> Finding:
    usual = max(history.sizes, default=dt)
    ahead = max(AHEAD * usual, history.rejected_size if history.rejections else 0.0)
    behind = min(sum(history.sizes), abs(t - p.ts.values[0]))
    try:
        finding = _jump(p, control, t, y, ahead, behind) if reason in STUCK else None
        finding = finding or _blow_up(p, control, reason, t, y, again)
        if finding is None and reason in ("max-steps", "slow"):
            finding = _jump(p, control, t, y, ahead) or _stiff(p, find_stiffness(p, control, t, y, usual))
        finding = finding or _coarse(control, y)
        if finding is None:
            eigenvalues(p, control, t, y)
    except ArithmeticError:
        seen = f"f is not finite right beside y = {largest(y).item():.2g}: the range of its dtype ends there."
        return "f", seen, "bfloat16 or float32."
    return finding or _unknown(p, reason)


def _blow_up(
    p: Problem, control: Adaptive, reason: str, t: float, y: Tensor, again: Again | None
) -> Finding | None:
    """Whether the solution leaves to infinity, or the error alone, as it does where stability is lost."""
    start, now = largest(p.y0).item(), largest(y).item()
    escape = _escape_time(p, t, y)
    elapsed = abs(t - p.ts.values[0])
    soon = reason in STUCK and escape < NEAR * elapsed
    grown = now > GROWTH * max(start, 1.0) and not FAST * elapsed < escape < math.inf
    if not (soon or grown):
        return None
    seen = f"{p.locate(int(y.abs().argmax()))} is {now:.2g}, where y0 is at most {start:.2g}"
    finer = again(t) if again else None
    if finer is None:
        when = f" near t = {t + p.ts.sign * escape:.6g}" if math.isfinite(escape) else ""
        return (
            "blow-up",
            f"{seen}; f stayed finite. The solution leaves to infinity{when}.",
            "a shorter horizon, smaller last-layer weights or weight decay, a bounded output (tanh).",
        )
    seen = f"{seen}, but not with a hundredth of the tolerance: the error grew, not the solution."
    stiff = _stiff(p, find_stiffness(p, control, *finer))
    if stiff is None:
        return "blow-up", seen, "a tighter tolerance."
    kind, why, _ = stiff
    return kind, f"{seen} {why}", f"a tighter tolerance first; {NOT_STIFF}"


def _stiff(p: Problem, found: Stiffness | None) -> Finding | None:
    if found is None:
        return None
    seen = f"{found}: stability, not accuracy, limits the step size"
    if p.carrying and not found.bound:
        return "stiff", f"{seen}, and {SWINGS.format(p.method.name)}.", UNDAMPED
    return "stiff", f"{seen}.", f"a looser tolerance does not help; {NOT_STIFF}"


def _coarse(control: Adaptive, y: Tensor) -> Finding | None:
    """Whether the tolerance asks for more digits than y has."""
    now, eps = largest(y).item(), torch.finfo(y.dtype.to_real()).eps
    tolerance = largest(control.atol + control.rtol * y.abs()).item()
    if tolerance >= 4 * eps * now:
        return None
    seen = f"the tolerance {tolerance:.2g} is below the rounding of {y.dtype} at |y| = {now:.2g}."
    return "tolerance", seen, f"rtol >= {20 * eps:.0e}, or a float64 state."


def _jump(
    p: Problem, control: Adaptive, t: float, y: Tensor, ahead: float, behind: float = 0.0
) -> Finding | None:
    """Whether f jumps near (t, y)."""
    found = find_jump(p, control, t - p.ts.sign * behind, y, behind + ahead)
    if found is None:
        return None
    if found.in_time:
        seen = f"f changes by its own size within {found.width:.2g} of t = {found.t:.10g}."
        return "jump", seen, f"jump_ts=[{found.t:.6g}] (every time where f or its derivatives jump)."
    seen = (
        f"f changes by its own size between states {found.width:.2g} apart: it jumps where the solution is."
    )
    advice = "a smooth f (tanh(y / width) for sign(y)), or fixed steps (n_steps=...), which do not look at the error."
    return "jump", seen, advice


def _unknown(p: Problem, reason: str) -> Finding:
    kind = "step-size" if reason in (*STUCK, "first-step") else reason
    if not p.carrying:
        advice = ADVICE["step-size" if reason in STUCK else reason]
        return kind, "no single cause was found: the tolerance is too tight for this model.", advice
    return kind, f"{SWINGS.format(p.method.name)}, or the tolerance is too tight for its order.", UNDAMPED


def _at_a_pole(p: Problem, t: float, y: Tensor) -> bool:
    """Whether f grows without bound as the solution comes to t, as |t - 1/2|^-1.5 does."""
    steep = largest(p.f(t, y)).item() > STEEP * largest(p.f(p.ts.values[0], p.y0)).item()
    return steep and _escape_time(p, t, y) < NEAR * abs(t - p.ts.values[0])


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
