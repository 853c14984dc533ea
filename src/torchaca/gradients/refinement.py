"""Error control that sees the gradient: refine the steps until the gradients agree from grid to grid.

Step control bounds the local error of the state. What a loss wants is the vector-Jacobian product of the solution,
whose error can be larger by any factor. The loss is unknown in the forward pass, so the products are taken with
probes in its place: the outputs themselves (the cotangent of a sum of squares), random numbers
on all outputs, and where there are several, random numbers on the last one. They are computed on the accepted steps
and on those of a finer solve: tolerances smaller by the factor that halves the steps, or halved steps where the steps
are given. What the difference says about the finer solve is Richardson's estimate (Hairer, Norsett, Wanner, "Solving
Ordinary Differential Equations I", section II.4), with the rate of the method or the observed one, whichever is slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..control import FixedSteps
from ..core import Outcome, Problem, Times
from ..errors import SolverError
from ..loops.fixed import halved
from ..transforms import is_differentiated

REFINEMENTS = 8
STEPS = 100_000  # where the control has no limit of its own
TRUSTED = 0.5  # a relative difference above it says nothing about the finer solve
CAUTION = 3.0  # the error falls this much slower than in theory, within what was measured
SHORTEST = 5  # of 2^-order: a smaller factor between tolerances is too far to extrapolate
GROWTH = 1.2  # a search that finds hardly more steps is limited by something else than its tolerance
CONSERVED = (
    0.1  # of the second probe's gradient: a smaller one of the first may be zero, its sum being conserved
)
RESOLUTION = 50.0  # in units of the dtype's rounding: no gradient is better than that

Pull = Callable[[Tensor], Sequence[Tensor | None]]
Rehearse = Callable[[Problem], tuple[Outcome, Pull]]
"""Solves without a graph: the outcome, and the vector-Jacobian product of its outputs, an entry for each input."""


@dataclass(frozen=True)
class Level:
    """One solve: its problem, the boundaries of its steps, and for each probe the gradients of all inputs."""

    problem: Problem
    times: Sequence[float] = ()
    gradients: Sequence[Sequence[Tensor | None]] = ()
    failure: SolverError | None = None

    def steps_for(self, p: Problem) -> Problem:
        """`p` on the steps of this level, without a search."""
        control = self.problem.control
        return replace(p, control=FixedSteps(grid=Times(tuple(self.times))) if control.adaptive else control)


def check_setting(grad_rtol: object, checkpoints: object) -> None:
    """Refuse what cannot be a relative error, and settings that leave nothing to measure it with.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(grad_rtol, bool) or not isinstance(grad_rtol, int | float):
        raise TypeError(f"grad_rtol is a relative error such as 1e-2, got {grad_rtol!r}")
    if not 0 < grad_rtol < 1:
        raise ValueError(f"grad_rtol is a relative error between 0 and 1, got {grad_rtol!r}")
    if checkpoints == "none":
        raise ValueError(
            "grad_rtol compares gradients by replaying steps, checkpoints='none' replays nothing: drop one of them"
        )


def refined(p: Problem, grad_rtol: float, rehearse: Rehearse) -> tuple[Problem, SolverError | None]:
    """The problem on steps fine enough for its gradients; and where none were found, the finest, and why not.

    Everything evaluated here counts as forward evaluations; `p.stats.gradient_error` gets the estimate.

    Raises
    ------
    ValueError
        For problems whose gradients cannot be compared from grid to grid.
    """
    _check(p, grad_rtol)
    coarse = _level(replace(p, dense=False, log=replace(p.log, watch=None)), rehearse)
    if coarse.failure is not None:
        p.stats.rejected = 0  # the solve that follows fails in the same way, and says so
        return p, None
    finest, why = _refined(coarse, grad_rtol, rehearse)
    return finest.steps_for(p), _unreached(p, grad_rtol, finest, why) if why else None


def _refined(coarse: Level, grad_rtol: float, rehearse: Rehearse) -> tuple[Level, str]:
    """The finest solve, and why it is not fine enough, if it is not."""
    p = coarse.problem
    rate = 2.0 ** -min(p.method.order, SHORTEST)
    limit: int | None = getattr(p.control, "max_steps", None)
    limit, name = (STEPS, "") if limit is None else (limit, "max_steps=")
    found = [math.inf, math.inf]
    for _ in range(REFINEMENTS):
        if 2 * (len(coarse.times) - 1) > limit:
            return coarse, f"finer steps are more than {name}{limit}"
        fine = _finer(coarse, rate, rehearse)
        if fine.failure is not None:
            return coarse, f"a finer solve failed ({fine.failure})"
        apart = difference(coarse.gradients, fine.gradients)
        if not math.isfinite(apart):
            return fine, "they are not finite"
        rounding = torch.finfo(p.y0.dtype).eps * math.sqrt(len(fine.times))
        p.stats.gradient_error = max(extrapolated(apart, found[-1], rate), rounding)
        coarse = fine
        if apart <= TRUSTED and p.stats.gradient_error <= grad_rtol:
            return fine, ""
        if found[-2] <= TRUSTED and apart > found[-2] / 2:
            return fine, "finer steps no longer bring it down"
        found.append(apart)
    return coarse, f"{REFINEMENTS} refinements were not enough"


def _unreached(p: Problem, grad_rtol: float, finest: Level, why: str) -> SolverError:
    """What was reached, why no more, and what to try."""
    estimate = p.stats.gradient_error
    reached = "could not be estimated" if estimate is None else f"is estimated as {estimate:.1e}"
    wide = p.y0.dtype in (torch.float64, torch.complex128)
    message = (
        f"grad_rtol={grad_rtol:g} was not reached: the relative error of the gradients {reached} on "
        f"{len(finest.times) - 1} steps; {why}. Try {'' if wide else 'float64, '}a larger grad_rtol or max_steps, a "
        "shorter time span, or a smoother f: chaos, kinks and noise defeat refinement"
    )
    return SolverError("gradient-error", message, t=p.ts.values[-1], dt=0.0, stats=p.stats)


def _check(p: Problem, grad_rtol: float) -> None:
    dtype = p.y0.dtype.to_real()
    if grad_rtol < RESOLUTION * torch.finfo(dtype).eps:
        raise ValueError(
            f"grad_rtol={grad_rtol:g} is below what gradients in {dtype} can resolve "
            f"({RESOLUTION * torch.finfo(dtype).eps:.1e}): use a larger one, or float64"
        )
    if p.effects is not None and p.effects.stateful:
        raise ValueError(
            "grad_rtol compares gradients on two grids, and f is random or changes what it reads (Dropout?), so that "
            "they never agree: call model.eval() first, or drop grad_rtol"
        )
    if any(map(is_differentiated, p.control.tensors)):
        raise ValueError(
            "grad_rtol changes the grid, so that there is no gradient with respect to the given one: pass "
            "grid.detach(), or drop grad_rtol"
        )


def _level(p: Problem, rehearse: Rehearse) -> Level:
    """One solve and its gradients. What it evaluates counts as forward; its steps do not become the solution's."""
    stats, before = p.stats, replace(p.stats)
    stats.accepted = stats.rejected = 0  # max_steps is for one solve
    gradients: list[Sequence[Tensor | None]] = []
    with torch.no_grad(), p.undone():
        outcome, pull = rehearse(p)
        if outcome.failure is None:
            gradients = [pull(probe) for probe in probes(p.ts, outcome.ys)]
    stats.nfe += stats.nfe_backward - before.nfe_backward
    stats.nfe_backward = before.nfe_backward
    stats.accepted = before.accepted
    stats.rejected += before.rejected
    return Level(p, outcome.times, gradients, outcome.failure)


def probes(ts: Times, ys: Tensor) -> list[Tensor]:
    """Cotangents in place of the loss's, each of the shape of `ys`.

    Nothing on outputs that are y0: their gradient is exact and would hide that of the others.
    """
    start = ts.at_start()
    generator = torch.Generator(device=ys.device).manual_seed(0)  # the user's random numbers stay as they are

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    spread = torch.linalg.vector_norm(ys[start:]) / math.sqrt(max(1, ys[start:].numel()))
    cotangents = [ys.clone(), spread * noise(ys)]
    if len(ts) - start > 1:
        at_end = torch.zeros_like(ys)
        at_end[-1] = noise(ys[-1])
        cotangents.append(at_end)
    for cotangent in cotangents:
        cotangent[:start] = 0
    return cotangents


def difference(coarse: Sequence[Sequence[Tensor | None]], fine: Sequence[Sequence[Tensor | None]]) -> float:
    """The largest relative difference of a gradient, over probes and inputs; inf where one is not finite.

    Each input's gradient counts by itself, however small; only what is rounding beside the largest does not.
    """
    if not fine[0]:
        return 0.0
    sizes = torch.stack([torch.stack([_size(a) for a in ours]) for ours in fine])
    apart = torch.stack(
        [
            torch.stack(
                [_size(None if a is None or b is None else a - b) for a, b in zip(*both, strict=True)]
            )
            for both in zip(fine, coarse, strict=True)
        ]
    )
    eps = max((torch.finfo(a.dtype).eps for a in fine[0] if a is not None), default=0.0)
    least = eps**0.75 * sizes.amax(1, keepdim=True)
    sizes[0] = torch.maximum(sizes[0], CONSERVED * sizes[1])
    worst = (apart / torch.maximum(sizes, least).clamp(min=torch.finfo(sizes.dtype).tiny)).max().item()
    return worst if math.isfinite(worst) else math.inf


def _size(x: Tensor | None) -> Tensor:
    return (
        torch.zeros((), dtype=torch.float64, device="cpu")
        if x is None
        else torch.linalg.vector_norm(x).cpu().double()
    )


def extrapolated(apart: float, last: float, rate: float) -> float:
    """The relative error of a solve that differs by `apart` from the coarser one, which differed by `last`.

    `rate` is by how much the error should fall from solve to solve.
    """
    if apart > TRUSTED:
        return apart
    slowest = min(0.5, max(CAUTION * rate, apart / last if last > 0 else 0.0))
    return apart * slowest / (1 - slowest)


def _finer(coarse: Level, rate: float, rehearse: Rehearse) -> Level:
    """The next solve: under a finer control, or on halved steps if an adaptive one fails or finds hardly more steps."""
    p, control = coarse.problem, coarse.problem.control
    fine = _level(replace(p, control=control.finer(coarse.times, rate)), rehearse)
    if not control.adaptive or (fine.failure is None and len(fine.times) > GROWTH * len(coarse.times)):
        return fine
    return _level(replace(p, control=FixedSteps(grid=Times(halved(coarse.times)))), rehearse)
