"""A look at the one step whose derivative nobody has checked: short enough for y, perhaps not for dy1/dy0.

A step whose error estimate says nothing (see `loops.rest`), or whose state is smaller than ten of its tolerances, was
not chosen by its error. The longest of them in a solve, if it is at least half as long as the longest of the others, is
looked at in the backward pass. With its cotangent lambda at t1 and the product at t0, the transposed error estimate

    eps_y = |(de/dy)^T lambda| / max(|lambda(t0)|, |lambda(t1)|)          eps_p = |(de/dp)^T lambda| / |dL/dp|

says how far they are off, for the price of one step. kappa (`methods.stability`) is the estimate over the
true error; resolved steps stay two decades below the limits, and so does every step that its error has chosen, because
it is not looked at: of stiff problems each step has an eps_y of about one, and right gradients.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Problem, tolerant
from ..errors import OURS, GradientWarning, warn
from ..field.field import Field
from ..log import SMALL
from ..methods.stability import stability
from ..norms import rms
from ..torch_internals import is_legacy_batchedtensor, transformed
from .replay import MaybeTensors, rebuilt, vjp

if TYPE_CHECKING:
    from .sweep import Replay

OFF_Y, OFF_P = 0.1, 0.3  # one step's share of a parameter's gradient is added to others
ROUNDING = 0.75  # power of eps: a smaller gradient beside the largest one is rounding
NEXT, WISHED = 4, 0.01  # the dt_max in the advice: this much shorter at least, for an error of so much


@dataclass(frozen=True)
class Suspect:
    """A step that may not be resolved; `ratio` is that of its error, None where its state may be a small one."""

    t0: float
    t1: float
    ratio: float | None


def suspects(p: Problem, times: Sequence[float]) -> dict[int, Suspect]:
    """Return the steps between `times` that a backward pass looks at, by their numbers: none in most solves."""
    ratios, small = p.log.rests.ratios, p.log.rests.small
    if not (ratios or small) or len(times) < 2 or tolerant(p.control) is None or transformed():
        return {}
    sizes = [abs(b - a) for a, b in pairwise(times)]
    free = [n for n in range(len(sizes)) if times[n] in ratios]
    others = [n for n in range(len(sizes)) if times[n] not in ratios]
    longest = max((sizes[n] for n in others), default=0.0)
    found: dict[int, Suspect] = {}
    if free:
        n = max(free, key=sizes.__getitem__)
        if sizes[n] >= longest / 2:
            found[n] = Suspect(times[n], times[n + 1], ratios[times[n]])
    if others and small:
        n = max(others, key=sizes.__getitem__)
        found[n] = Suspect(times[n], times[n + 1], None)
    return {} if found and told(p) else found


@dataclass(frozen=True)
class Measured:
    """What was found at one step, on its device.

    `numbers` are eps_y and the growth of the cotangent, 0-dim, float64.
    `shares` are the sizes of the transposed estimate for everything else that f depends on, `own` those of the step's
    product.
    """

    suspect: Suspect
    numbers: tuple[Tensor, Tensor]
    shares: Sequence[Tensor | None]
    own: Sequence[Tensor | None]


class _Refused(Exception):
    """f does not allow what it allowed in the solve."""


@dataclass(frozen=True)
class _Asked:
    """f for once more."""

    call: Any

    def __call__(self, *point: Any, **side: Any) -> Tensor:
        try:
            return self.call(*point, **side)
        except Exception as error:
            raise _Refused from error


def _asked(field: Field) -> Field:
    """The field for once more, without steps that may be differentiated only once; those that stay call no user's f."""
    field = field.repeatable()
    return replace(field, call=_Asked(field.call)) if field.stepper is None else field


def _product(out: Tensor, wrt: Sequence[Tensor], cotangent: Tensor) -> MaybeTensors:
    """One of several products of a graph, which is one more than that of a compiled f may allow."""
    if not out.requires_grad:
        return [None] * len(wrt)
    try:
        return vjp([out], wrt, [cotangent], keep=True)
    except RuntimeError as error:
        raise _Refused from error


@dataclass
class Look:
    """The looks of one backward pass."""

    p: Problem
    steps: Mapping[int, Suspect]
    found: list[Measured] = field(default_factory=list)

    def replay(self, replay: Replay, n: int, start: Tensor) -> None:
        """Replay step n, and measure it by itself: a graph may allow one product alone, as that of a compiled f."""
        made = replay.make(n, start)
        lam = made.cotangents[0]
        replay.add(n, start, made.pulled(made.outs, made.cotangents), made)
        tensors = (*replay.parts.args, *replay.parts.captured)
        replay.moments.restore(n)
        ends = start, made.outs[0].detach()
        self.measure(rebuilt(self.p, replay.parts, replay.inputs), self.steps[n], ends, lam, tensors)

    def measure(
        self,
        p: Problem,
        suspect: Suspect,
        ends: tuple[Tensor, Tensor],
        lam: Tensor,
        tensors: Sequence[Tensor],
    ) -> None:
        """Make a suspect again, and note its products with the cotangent of its end.

        `ends` is what was handed to it, and what it has handed on. Whatever f does not allow here, such as a call more
        than it was made for, is no reason to fail.
        """
        if suspect.ratio is None and not _are_small(p, *(_state(x.detach(), p.y0) for x in ends)):
            return
        p = replace(p, f=_asked(p.f))
        with suppress(_Refused), torch.enable_grad():
            y = ends[0].detach().requires_grad_()
            step = p.step(suspect.t0, suspect.t1, y)
            end, error = p.handed(step), step.error
            product = _product(end, [y, *tensors], lam)
            self.add(suspect, lam, product, _product(error, [y, *tensors], _state(lam, error)))

    def add(self, suspect: Suspect, lam: Tensor, product: MaybeTensors, estimate: MaybeTensors) -> None:
        """Note what a step's product and the transposed estimate are: those of its start, then everything else's."""
        sizes, shares = ([_size(g, lam) for g in grads] for grads in (product, estimate))
        none = torch.zeros((), dtype=torch.float64, device=lam.device)
        before, after = sizes[0] if sizes[0] is not None else none, torch.linalg.vector_norm(lam).double()
        tiny = torch.finfo(torch.float64).tiny
        eps = (none if shares[0] is None else shares[0]) / torch.maximum(before, after).clamp(min=tiny)
        growth = before / after.clamp(min=tiny)
        self.found.append(Measured(suspect, (eps, growth), shares[1:], sizes[1:]))

    def settle(self, totals: Sequence[Tensor | None] | None = None) -> None:
        """Warn of what was found, in one read; `totals` are the gradients of everything else, if they are known."""
        if not self.found:
            return
        sizes = None if totals is None else [_size(g, self.p.y0) for g in totals]
        rows = [torch.stack([*one.numbers, self._share(one, sizes)]) for one in self.found]
        limits = stability(self.p.method)
        for one, (eps_y, growth, eps_p) in zip(self.found, torch.stack(rows).tolist(), strict=True):
            off = max(eps_y / limits.kappa, eps_p / limits.kappa)
            wrong = eps_y > OFF_Y * limits.kappa or growth > limits.gamma
            # The estimate of a forcing that no stage has seen saturates below 1, whatever kappa is.
            wrong = wrong or eps_p > OFF_P * min(limits.kappa, 1.0)
            if wrong and not told(self.p):
                tell(self.p)
                warn(message(self.p, one.suspect, off, growth), GradientWarning, (*OURS, "torch"))
        self.found.clear()

    def _share(self, one: Measured, sizes: Sequence[Tensor | None] | None) -> Tensor:
        """The largest error of a parameter's gradient; if that is not known, this step stands for all of them."""
        if sizes is not None:
            return _largest_share(one, sizes)
        span = abs(self.p.ts.values[-1] - self.p.ts.values[0])
        return _largest_share(one, one.own) * (abs(one.suspect.t1 - one.suspect.t0) / span)


def look_of(p: Problem, times: Sequence[float], cotangents: Sequence[Tensor | None]) -> Look:
    """The looks of a backward pass over the steps between `times`: at none in most solves."""
    batched = any(g is not None and is_legacy_batchedtensor(g) for g in cotangents)
    return Look(p, {} if batched else suspects(p, times))


def _size(x: Tensor | None, like: Tensor) -> Tensor | None:
    """The norm of a gradient, dense or sparse, in float64."""
    if x is None:
        return None
    dense = x if x.layout == torch.strided else (x.coalesce() if x.layout == torch.sparse_coo else x).values()
    return torch.linalg.vector_norm(dense.detach()).double().to(like.device)


def _largest_share(one: Measured, sizes: Sequence[Tensor | None]) -> Tensor:
    """The largest of the shares relative to their sizes; what is rounding beside the largest size does not count."""
    pairs = [(a, b) for a, b in zip(one.shares, sizes, strict=True) if a is not None and b is not None]
    if not pairs:
        return torch.zeros_like(one.numbers[0])
    parts, wholes = map(torch.stack, zip(*pairs, strict=True))
    least = torch.finfo(torch.float32).eps ** ROUNDING * wholes.amax()
    return (parts / torch.maximum(wholes, least).clamp(min=torch.finfo(torch.float64).tiny)).amax()


def _are_small(p: Problem, y0: Tensor, y1: Tensor) -> bool:
    """Whether a step's states are smaller than ten times their absolute tolerance."""
    control: Any = tolerant(p.control)
    unit = torch.as_tensor(control.atol, dtype=y0.dtype.to_real(), device=y0.device)
    unit = unit.clamp(min=torch.finfo(unit.dtype).tiny)
    return bool(torch.maximum(rms(y0 / unit), rms(y1 / unit)) <= SMALL)


def _state(x: Tensor, y: Tensor) -> Tensor:
    """The state in what a step hands on, or its cotangent in that of it."""
    return x if x.shape == y.shape else x[0]


def message(p: Problem, suspect: Suspect, off: float, growth: float) -> str:
    """Say which step is not resolved, how far it is off, and what to do."""
    control: Any = tolerant(p.control)
    t0, t1, h = suspect.t0, suspect.t1, abs(suspect.t1 - suspect.t0)
    order = (getattr(p.method, "embedded_order", 0) or p.method.order - 1) + 1
    shorter = min(h * (WISHED / max(off, WISHED)) ** (1 / order), h / NEXT)
    if suspect.ratio is None:
        why, cure = (
            "y is smaller there than ten of its tolerances, and has no correct digit",
            ["a smaller atol"],
        )
        seen = "accepted"
    else:
        why, cure = "A solve at rest has no error that could limit its steps", []
        seen = f"resolved for y (error ratio {suspect.ratio:.1g})"
    cure += ["at_rest='resolve'"] if getattr(control, "at_rest", "") == "ignore" else []
    cure += ["gradient=ACA(grad_rtol=1e-2)", f"dt_max={shorter:.2g} (the step has {h:.2g})"]
    return (
        f"the step from t = {t0:.3g} to {t1:.3g} is {seen}, but not for its derivative: its products are off by about "
        f"{off:.0%} (growth {growth:,.3g}). {why}. Use {', '.join(cure[:-1])}, or {cure[-1]}"
    )


# Once for an f and its settings.

_TOLD: weakref.WeakKeyDictionary[Any, set[tuple[Any, ...]]] = weakref.WeakKeyDictionary()


def _key(p: Problem) -> tuple[Any, tuple[Any, ...]]:
    """What stands for f, which may be a new object in each call, and for the settings of its solve."""
    f: Any = p.source
    while isinstance(f, functools.partial):
        f = f.func
    f = getattr(f, "__func__", f)
    control: Any = tolerant(p.control)
    tolerances = [x if isinstance(x, float) else "tensor" for x in (control.rtol, control.atol)]
    span, at_rest = (p.ts.values[0], p.ts.values[-1]), getattr(control, "at_rest", "")
    settings = (p.method.name, repr(p.gradient), *tolerances, at_rest, *span, p.y0.shape)
    return getattr(f, "__code__", f), settings


def told(p: Problem) -> bool:
    """Whether somebody has been warned of this f with these settings."""
    f, settings = _key(p)
    try:
        return settings in _TOLD.get(f, ())
    except TypeError:  # nobody can refer to it weakly
        return False


def tell(p: Problem) -> None:
    """Note that somebody is warned."""
    f, settings = _key(p)
    try:
        _TOLD.setdefault(f, set()).add(settings)
    except TypeError:
        return
