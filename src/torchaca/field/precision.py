"""The tightest tolerance that f's precision can meet.

An adaptive step estimates its error as `h sum_i e_i k_i`. Each stage k_i = f(t_i, y_i) is rounded to the dtype in
which f computes, by some units u = eps / 2 of its size, so the estimate holds noise of about `h |k| u |e|_2`. Relative
to the step no smaller step gets rid of it; where it is more than the tolerance allows, the controller takes it for
error and the evaluations explode.

The floor of a dtype and a method is the tolerance at which, for y' = y, truncation is as large as `ROUNDINGS` units of
that noise: for dopri5 0.003 in bfloat16 and 0.0002 in float16. Where f is as precise as the solver's own arithmetic,
the floor is u, the rounding of y itself. A tolerance below the floor is raised to it, with a warning.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core import Method, Problem, tolerant
from ..errors import warn
from ..methods.staged import staged
from ..norms import each, rms
from ..numbers import Time, has_lanes
from .dynamics import Dynamics

ROUNDINGS = 8  # inputs, layers and result of one evaluation, each rounded; and to spare
WIDEST = 2.0  # h |k| over |y| in the largest step that keeps its sign


def floored(p: Problem, f: Dynamics) -> Problem:
    """Raise tolerances that f cannot meet, with a warning."""
    control = tolerant(p.control)
    if control is None:
        return p
    floors = [_floor(p.method, dtype, f.structure.dtype) for dtype in f.dtypes]
    if _least(control.rtol) >= max(floors):
        return p
    if has_lanes(p.y0):  # no values to look at
        raised = {"rtol": _raised(control.rtol, max(floors))}
    else:
        lead = len(f.structure.lead)
        flat, shape = each(p.y0.detach(), lead), p.y0.shape
        parts = [flat[..., leaf.start : leaf.stop] for leaf in f.structure.leaves]
        size = torch.cat([rms(part, lead)[..., None].expand(part.shape) for part in parts], -1).reshape(shape)
        pairs = zip(parts, floors, strict=True)
        floor = torch.cat([torch.full_like(part.real, value) for part, value in pairs], -1).reshape(shape)
        below = control.atol + control.rtol * size < floor * size
        if not bool(below.any()):
            return p
        if lead:  # no sample for the sake of another
            floor = floor * each(below, lead).any(-1).reshape(f.structure.lead + (1,) * (p.y0.ndim - lead))
        raised = {"rtol": _raised(control.rtol, floor), "atol": _raised(control.atol, floor * size)}
    dtype = max(f.dtypes, key=eps)
    given, used = (_words({name: c[name] for name in raised}) for c in (vars(control), raised))
    warn(
        f"f computes in {dtype}, to {eps(dtype):.1g} of its size, which is too coarse for {given} ({p.method.name}): "
        f"{used} are used. Give tolerances like these, or let f compute in a wider dtype"
    )
    return replace(p, control=control.with_settings(**raised))


def eps(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number."""
    return torch.finfo(dtype).eps


def _floor(method: Method, computed: torch.dtype, solver: torch.dtype) -> float:
    if eps(computed) <= eps(solver):
        return eps(solver) / 2
    return max(estimate_floor(method, eps(computed)), eps(solver) / 2)


def estimate_floor(method: Method, eps: float) -> float:
    """The relative tolerance at which rounding of f by `eps` begins to rule the method's error estimate."""
    stages = staged(method)
    if stages is None:
        return eps
    # h for y' = y, all in one step
    sizes = WIDEST * torch.logspace(0, -4, 65, dtype=torch.float64, device="cpu")

    def f(t: Time, y: Tensor) -> Tensor:
        return sizes * y

    with torch.no_grad():
        truncation = method.step(f, 0.0, 1.0, torch.ones_like(sizes)).error.abs()
    noise = ROUNDINGS * (eps / 2) * math.hypot(*stages.error_weights) * sizes
    return noise[int((truncation <= noise).to(torch.uint8).argmax())].item()


def _least(tolerance: float | Tensor) -> float:
    if not isinstance(tolerance, Tensor):
        return tolerance
    return 0.0 if has_lanes(tolerance) else tolerance.min().item()


def _raised(tolerance: float | Tensor, floor: float | Tensor) -> float | Tensor:
    """The larger of the two; one number where it is the same for all components."""
    if isinstance(floor, Tensor):
        own = isinstance(tolerance, Tensor)
        raised = torch.maximum(floor, tolerance) if own else floor.clamp(min=tolerance)
    elif isinstance(tolerance, Tensor):
        raised = tolerance.clamp(min=floor)
    else:
        return max(tolerance, floor)
    first = raised.reshape(-1)[0]
    return first.item() if bool((raised == first).all()) else raised


def _words(tolerances: dict[str, Any]) -> str:
    def word(value: float | Tensor) -> str:
        low, high = (value.min().item(), value.max().item()) if isinstance(value, Tensor) else (value, value)
        return f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"

    return ", ".join(f"{name} = {word(value)}" for name, value in tolerances.items())
