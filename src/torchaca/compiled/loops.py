"""The loops that are compiled whole: a search for step sizes, a march over given times, and the sweep back.

Each is one function of tensors around `while_loop`; the arithmetic is `Method.step` and `Control`, the same as in the
eager loop (`torchaca.stepping`). What may change from call to call (times, tolerances, limits) is a tensor; what
cannot is in `Spec`. Accepted states are written into buffers of the caller, in place.

    T `(K + 1,)`, float64   step times: step n of the chunk runs from T[n] to T[n + 1]
    Y `(K, *y.shape)`       the state that step n starts from
    bases `(K, m, *y.shape)`    `Step.basis` of those steps with outputs inside, in their order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.func import vjp

from ..control import Adaptive
from ..core import Problem, VectorField
from ..methods import RungeKutta
from ..methods.runge_kutta import RungeKuttaStep
from ..pace import at_dt_min, next_dt, propose, ulp
from ..state import Structure
from ..stepping import BAD_RATIO, TOO_SMALL
from .field import Field, renamed
from .halves import Halves
from .outputs import inner_times
from .products import Products


@dataclass(frozen=True)
class Spec:
    """What a compiled loop is made for.

    `inside`: there are outputs inside of steps, in those that they end (`closed`) as well; `timed`: times are
    differentiated. `kept`: the graph of the steps is kept, made for tensors of these shapes.
    `jumps`: there are times where f jumps.
    """

    method: RungeKutta = field(hash=False)
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
        method, inside, closed = p.method, bool(inner_times(p)), p.ts.tensor is not None
        assert isinstance(method, RungeKutta)
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
        return len(method.nodes) - (method.stages if self.control else method.stages - method.fsal)

    @property
    def gives_f1(self) -> bool:
        """Whether f(t1, y1) is one of the missing stages."""
        index = self.method.f1_index
        return index is not None and index >= len(self.method.nodes) - self.missing

    @property
    def carries(self) -> bool:
        """Whether the sweep hands f0 of a step to the step before, whose interpolant is linear in it."""
        index = self.method.f1_index
        linear = index is not None and index + 1 == len(self.method.nodes)
        return self.inside and linear and self.kept is None

    @property
    def extra(self) -> int:
        """How many evaluations a replay of a step with outputs inside has beyond those of other replays."""
        method = self.method
        fewest = len(method.nodes) - (method.stages - method.fsal)
        return fewest if self.inside and not self.carries else 0


class Tolerances(Adaptive):
    """A control with tensors in it; what it was made from has been checked."""

    def __post_init__(self) -> None:
        """Nothing to check."""


@dataclass
class Limits:
    """What a search reads from one tensor, in this order."""

    stop: Any
    sign: Any
    smallest: Any
    max_trials: Any
    dt_min: Any
    dt_max: Any
    reach: Any
    fallback: Any

    @staticmethod
    def of(vector: Tensor) -> Limits:
        return Limits(*(vector[i] for i in range(N_LIMITS)))


N_LIMITS = len(fields(Limits))


@dataclass
class State:
    """What a search carries from trial to trial, beside y and f0: the numbers of one tensor, float64, in this order.

    `n` steps are accepted in this chunk, `m` of them with outputs inside; `trials` and `calls` of f count through all
    chunks; `known`: f0 is f(t, y) already.
    """

    n: Any
    m: Any
    trials: Any
    calls: Any
    rejections: Any
    t: Any
    dt: Any
    ratio: Any
    older: Any
    rejected_size: Any
    known: Any


def first_dt(
    control: Adaptive, f: VectorField, t: Tensor, y: Tensor, f0: Tensor, limit: Limits, order: int
) -> Tensor:
    """The size of the first step; zero, which ends the search, where f has no finite value."""
    size = control.guessed_step(f, t, y, f0, limit.sign, limit.reach, order).double()
    usable = torch.isfinite(size) & (size >= limit.dt_min)
    hopeless = ~torch.isfinite(size) & ~torch.isfinite(f0).all()
    return torch.where(usable, size, torch.where(hopeless, 0.0, limit.fallback))


def may_go_on(s: State, limit: Limits, room: int, force: bool) -> Tensor:
    """Whether another trial makes sense, and its step has a place in the chunk; see `stepping._refuse`."""
    t1, _ = propose(s.t, s.dt, limit.stop, limit.sign, limit.dt_max)
    stuck = (limit.dt_min > 0) & (s.rejections > 0) & at_dt_min(s.t, s.rejected_size, limit.dt_min)
    fits = (t1 - s.t).abs() > torch.maximum(TOO_SMALL * ulp(s.t), limit.smallest)
    goes = (s.n < room) & (s.t != limit.stop) & fits & (s.trials < limit.max_trials)
    return goes if force else goes & ~stuck


def search_loop(func: Field, spec: Spec, split: Halves | None) -> Callable[..., Any]:
    """Steps whose sizes follow the error estimate, until the stop, or the chunk's end, or where no trial makes sense.

    `(limits, ts, tolerances, T, Y, kept, bases, y, f0, state, jumps, inputs)` -> y, f0, the state. `kept` get the
    residuals of the steps, where they are `split`.
    """
    method, control = spec.method, spec.control
    assert control is not None
    fsal, order, force = method.fsal, method.order, control.accept_at_dt_min
    pid, safety, low, high = control.pid, control.safety, control.factor_min, control.factor_max
    norm = control.norm if spec.structure is None else spec.structure.mixed_rms

    def search(
        limits: Tensor,
        ts: Tensor,
        tolerances: Sequence[Tensor],
        T: Tensor,
        Y: Tensor,
        kept: Sequence[Tensor],
        bases: Tensor,
        y: Tensor,
        f0: Tensor,
        state: Tensor,
        jumps: Tensor,
        inputs: Sequence[Tensor],
    ) -> Any:
        room = Y.shape[0]

        def plain(t: Any, y: Tensor) -> Tensor:
            return func(t.to(y.dtype), y, inputs)

        def tolerant() -> Adaptive:
            rtol, atol = tolerances
            return Tolerances(rtol, atol, pid, safety, low, high, norm)

        def goes_on(y: Tensor, f0: Tensor, state: Tensor) -> Tensor:
            return may_go_on(State(*state.unbind()), Limits.of(limits), room, force)

        def trial(y: Tensor, f0: Tensor, state: Tensor) -> Any:
            s, limit = State(*state.unbind()), Limits.of(limits)
            t1, clipped = propose(s.t, s.dt, limit.stop, limit.sign, limit.dt_max)
            size = (t1 - s.t).abs()
            f = one_sided(func, inputs, jumps, s.t, t1) if spec.jumps else plain
            calls = s.calls + (method.stages - 1)
            if not fsal:
                known = s.known > 0
                calls = calls + torch.where(known, 0, 1)
                f0 = torch.cond(known, lambda t, y, k: k.clone(), lambda t, y, k: f(t, y), (s.t, y, f0))
            chooser = tolerant()
            step, residuals = step_of(f, method, split, (s.t, t1, y, f0), inputs)
            error = chooser.ratio(step).double()
            finite = torch.isfinite(error)
            ok = error <= 1.0
            if force:
                ok = ok | (finite & at_dt_min(s.t, size, limit.dt_min))
            ratio = torch.where(finite, error, BAD_RATIO)
            ratios, calm = [ratio, s.ratio, s.older], s.rejections > 0
            dt = next_dt(chooser, order, s.dt, ratios, (size, clipped, ok), calm, limit.dt_min)
            for buffer, x in zip((Y, *kept), (y, *residuals), strict=True):
                buffer.index_copy_(0, s.n.long().view(1), x[None])
            T.index_copy_(0, s.n.long().view(1) + 1, t1.view(1))
            m, known = s.m, ~ok
            f1 = step.known_f1 if fsal else None
            if spec.inside:
                within = spec.between(ts, limit.sign * s.t, limit.sign * t1).any() & ok
                basis, own_f1 = basis_and_f1(f, spec, step, within)
                calls = calls + torch.where(within, spec.missing, 0)
                if spec.gives_f1:
                    f1, known = own_f1, known | within
                bases.index_copy_(0, s.m.long().view(1), basis[None])
                m = s.m + torch.where(within, 1, 0)
            after = State(
                n=s.n + torch.where(ok, 1, 0),
                m=m,
                trials=s.trials + 1,
                calls=calls,
                rejections=torch.where(ok, 0, s.rejections + 1),
                t=torch.where(ok, t1, s.t),
                dt=dt,
                ratio=torch.where(ok, ratio, s.ratio),
                older=torch.where(ok, s.ratio, s.older),
                rejected_size=torch.where(ok, torch.inf, size),
                known=known.double(),
            )
            return (
                torch.where(ok, step.y1, y),
                step.f0.clone() if f1 is None else torch.where(ok, f1, step.f0),
                torch.stack([*vars(after).values()]),
            )

        def first(t: Tensor, y: Tensor, f0: Tensor) -> Tensor:
            return first_dt(tolerant(), plain, t, y, f0, Limits.of(limits), order)

        start = State(*state.unbind())
        dt, guessed = start.dt, torch.isnan(start.dt)
        start.dt = torch.cond(guessed, first, lambda t, y, f0: dt.clone(), (start.t.clone(), y, f0))
        start.calls = start.calls + torch.where(guessed, 1, 0)
        return while_loop(goes_on, trial, (y.clone(), f0.clone(), torch.stack([*vars(start).values()])))

    return compiled(search)


def one_sided(func: Field, inputs: Sequence[Tensor], jumps: Tensor, t0: Tensor, t1: Tensor) -> VectorField:
    """f in the step from t0 to t1, strictly inside of it at those of its ends where f jumps; see `Problem.between`."""
    at_start, at_end = (jumps == t0).any(), (jumps == t1).any()

    def f(t: Any, y: Tensor) -> Tensor:
        exact = t.to(y.dtype)
        now, start, end = (x.detach().to(y.dtype) for x in (t, t0, t1))
        before = torch.where(at_end & (t == t1), torch.nextafter(now, start), now)
        moved = torch.where(at_start & (t == t0), torch.nextafter(now, end), before)
        return func(exact + (moved - now), y, inputs)

    return f


def step_of(
    f: VectorField,
    method: RungeKutta,
    split: Halves | None,
    start: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> tuple[RungeKuttaStep, Sequence[Tensor]]:
    """The step from `(t0, t1, y, f0)`, and its residuals where its stages are split."""
    t0, t1, y, f0 = start
    if split is None:
        return method.step(f, t0, t1, y, f0), ()
    stages, residuals = split.forward(t0, t1, y, f0, *inputs)
    return method.resumed(f, t0, t1, y, (f0, *stages)), residuals


def basis_and_f1(f: VectorField, spec: Spec, step: RungeKuttaStep, within: Tensor) -> tuple[Tensor, Tensor]:
    """A step's basis, and f(t1, y1) if that is one of the missing stages, else zeros.

    Where stages are missing, both are zeros in a step without outputs inside, which evaluates none of them.
    """
    method = spec.method
    if not spec.missing:
        return step.basis(), torch.zeros_like(step.y1)

    def whole(t0: Tensor, t1: Tensor, y0: Tensor, *stages: Tensor) -> Any:
        own = method.resumed(f, t0, t1, y0, stages)
        basis, f1 = own.basis(), own.known_f1
        return basis, f1.clone() if spec.gives_f1 and f1 is not None else torch.zeros_like(y0)

    def nothing(t0: Tensor, t1: Tensor, y0: Tensor, *stages: Tensor) -> Any:
        return y0.new_zeros((len(method.nodes) + 1, *y0.shape)), torch.zeros_like(y0)

    return torch.cond(within, whole, nothing, (step.t0, step.t1, step.y0, *step.known))


def march_loop(func: Field, spec: Spec) -> Callable[..., Any]:
    """Steps between given times.

    `(n_steps, ts, sign, T, Y, bases, y, f0, known, calls, inputs)` -> y, f0, known, calls. The chunk's times are in T.
    """
    method = spec.method

    def march(
        n_steps: Tensor,
        ts: Tensor,
        sign: Tensor,
        T: Tensor,
        Y: Tensor,
        bases: Tensor,
        y: Tensor,
        f0: Tensor,
        known: Tensor,
        calls: Tensor,
        inputs: Sequence[Tensor],
    ) -> Any:
        def f(t: Any, y: Tensor) -> Tensor:
            return func(t.to(y.dtype), y, inputs)

        def goes_on(y: Tensor, f0: Tensor, known: Tensor, n: Tensor, m: Tensor, calls: Tensor) -> Tensor:
            return n < n_steps

        def advance(y: Tensor, f0: Tensor, known: Tensor, n: Tensor, m: Tensor, calls: Tensor) -> Any:
            t0, t1 = T.index_select(0, n.view(1))[0], T.index_select(0, (n + 1).view(1))[0]
            calls = calls + (method.stages - 1 - method.fsal) + torch.where(known, 0, 1)
            f0 = torch.cond(known, lambda t, y, k: k.clone(), lambda t, y, k: f(t, y), (t0, y, f0))
            step = method.step(f, t0, t1, y, f0)
            Y.index_copy_(0, n.view(1), y[None])
            next_f0, known = step.f0, torch.zeros_like(known)
            if spec.inside:
                within = spec.between(ts, sign * t0, sign * t1).any()
                basis, f1 = basis_and_f1(f, spec, step, within)
                calls = calls + torch.where(within, spec.missing, 0)
                if spec.gives_f1:
                    next_f0, known = f1, within
                bases.index_copy_(0, m.view(1), basis[None])
                m = m + torch.where(within, 1, 0)
            return step.y1, next_f0.clone(), known | False, n + 1, m + 0, calls

        zero = torch.zeros((), dtype=torch.int64)
        y, f0, known, _, _, calls = while_loop(
            goes_on, advance, (y.clone(), f0.clone(), known.clone(), zero, zero.clone(), calls.clone())
        )
        return y, f0, known, calls

    return compiled(march)


def sweep_loop(func: Field, spec: Spec, wanted: tuple[bool, ...]) -> Callable[..., Any]:
    """ACA's backward pass over one chunk: `(n_steps, T, Y, tables, lam, f1, ends, totals, jumps, inputs)`.

    Returns lam, f0 (in a list, empty where nobody needs it) and totals. `wanted` says which inputs are
    differentiated. `tables` hold the cotangents of outputs: of y1, and where there are outputs inside steps, of the
    basis, and of f0, which is the f1 of the step before. `ends` `(K, 2)` get the gradients of the steps' t0 and t1,
    where times are differentiated.
    """
    method, carries = spec.method, spec.carries

    def sweep(
        n_steps: Tensor,
        T: Tensor,
        Y: Tensor,
        tables: Sequence[tuple[Tensor, Tensor]],
        lam: Tensor,
        f1: Tensor,
        ends: Tensor,
        totals: Sequence[Tensor],
        jumps: Tensor,
        inputs: Sequence[Tensor],
    ) -> Any:
        chosen = [x for x, want in zip(inputs, wanted, strict=True) if want]

        def f(now: Sequence[Tensor], t: Any, y: Tensor) -> Tensor:
            return func(t.to(y.dtype), y, now)

        def goes_on(n: Tensor, lam: Tensor, *others: Tensor) -> Tensor:
            return n > 0

        def replay(n: Tensor, lam: Tensor, *sums: Tensor) -> Any:
            known, sums = sums[: int(carries)], sums[int(carries) :]
            at = (n - 1).view(1)
            y, times = Y.index_select(0, at)[0], (T.index_select(0, at)[0], T.index_select(0, n.view(1))[0])
            ending, *others = [row(table, at) for table in tables]

            leaves = (y, *times, *chosen) if spec.timed else (y, *chosen)

            def outs(based: bool, y: Tensor, *leaves: Tensor) -> Any:
                (t0, t1), own = (leaves[:2], iter(leaves[2:])) if spec.timed else (times, iter(leaves))
                now = [next(own) if want else x for x, want in zip(inputs, wanted, strict=True)]
                own_f = one_sided(func, now, jumps, t0, t1) if spec.jumps else partial(f, now)
                step = method.step(own_f, t0, t1, y)
                if carries:
                    step.give_f1(*known)
                    return step.y1, step.basis(), step.f0
                return (step.y1, step.basis()) if based else (step.y1,)

            def product(based: bool) -> Any:
                both: Any = vjp(partial(outs, based), *leaves)
                values, pull = both
                grads = pull((lam + ending, *others[: len(values) - 1]))
                return values[-1], *grads

            def apart(based: bool) -> Any:
                return tuple(x.clone(memory_format=torch.contiguous_format) for x in product(based)[1:])

            if spec.extra:
                within = tables[1][1].index_select(0, at)[0] > 0
                last, grads = None, torch.cond(within, lambda: apart(True), lambda: apart(False), ())
            else:
                last, *grads = product(spec.inside)
            dy, *grads = grads
            if spec.timed:
                ends.index_copy_(0, at, torch.stack(grads[:2])[None])
                grads = grads[2:]
            handed = [last.clone()] if carries and last is not None else []
            return n - 1, dy.clone(), *handed, *(a + b for a, b in zip(sums, grads, strict=True))

        carried = (n_steps, lam, *([f1] if carries else []), *totals)
        _, lam, *sums = while_loop(goes_on, replay, tuple(x.clone() for x in carried))
        return lam, sums[: int(carries)], sums[int(carries) :]

    return compiled(sweep)


def row(table: tuple[Tensor, Tensor], at: Tensor) -> Tensor:
    """`rows[which[at]]`."""
    rows, which = table
    return rows.index_select(0, which.index_select(0, at))[0]


KEPT_GUARDS = {"TENSOR_MATCH", "SHAPE_ENV"}
# Unless told otherwise, PyTorch keeps graphs with these out of its disk cache; its key holds their bodies, too.
CACHED = {"torch.ops.higher_order.while_loop": "1", "torch.ops.higher_order.cond": "1"}
COUNT = iter(range(10**9))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One graph, its loop in C++. What else the function holds never changes: no guards on it."""

    def kept(guards: Any) -> list[bool]:
        return [guard.guard_type in KEPT_GUARDS for guard in guards]

    own = renamed(function, f"{function.__name__}_{next(COUNT)}")
    options = {
        "cpp_wrapper": True,
        "guard_filter_fn": kept,
        "unsafe_marked_cacheable_functions": CACHED,
        "post_grad_custom_post_pass": Products(),
    }
    return torch.compile(own, fullgraph=True, options=options)
