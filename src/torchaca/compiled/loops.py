"""The loops that are compiled whole: a march over given times and the sweep back; the search is in `search`.

Each is one function of tensors around `while_loop`; the arithmetic is `Method.step` and `Control`, the same as in the
eager loop (`torchaca.loops.stepping`). What may change from call to call (times, tolerances, limits) is a tensor; what
cannot is in `Spec`. Accepted states are written into buffers of the caller, in place.

    T `(K + 1,)`, float64   step times: step n of the chunk runs from T[n] to T[n + 1]
    Y `(K, *y.shape)`       the state that step n starts from
    bases `(K, m, *y.shape)`    `Step.basis` of those steps with outputs inside, in their order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from . import compiler
from .field_graph import FieldGraph
from .spec import Spec
from .steps import basis_and_f1, one_sided


def march_loop(func: FieldGraph, spec: Spec) -> Callable[..., Any]:
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

        zero = torch.zeros((), dtype=torch.int64, device="cpu")
        y, f0, known, _, _, calls = compiler.while_loop(
            goes_on, advance, (y.clone(), f0.clone(), known.clone(), zero, zero.clone(), calls.clone())
        )
        return y, f0, known, calls

    return compiler.compiled(march, forward=True)


def sweep_loop(func: FieldGraph, spec: Spec, wanted: tuple[bool, ...]) -> Callable[..., Any]:
    """ACA's backward pass over one chunk: `(n_steps, until, T, Y, tables, lam, f1, ends, totals, jumps, inputs)`.

    Over its first `n_steps` steps, but for the first `until`.

    Returns lam, f0 and ends (in lists, empty where nobody needs them) and totals. `wanted` says which inputs are
    differentiated. `tables` hold the cotangents of outputs: of y1, and where there are outputs inside steps, of the
    basis, and of f0, which is the f1 of the step before. `ends` `(K, 2)` get the gradients of the steps' t0 and t1,
    where times are differentiated.
    """
    method, carries, timed = spec.method, spec.carries, spec.timed

    def sweep(
        n_steps: Tensor,
        until: Tensor,
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
            return n > until

        def replay(n: Tensor, lam: Tensor, *sums: Tensor) -> Any:
            known, moved, old = parted(sums)
            at = (n - 1).view(1)
            y, times = Y.index_select(0, at)[0], (T.index_select(0, at)[0], T.index_select(0, n.view(1))[0])
            ending, *others = [row(table, at) for table in tables]

            leaves = (y, *times, *chosen) if timed else (y, *chosen)

            def outs(based: bool, y: Tensor, *leaves: Tensor) -> Any:
                (t0, t1), own = (leaves[:2], iter(leaves[2:])) if timed else (times, iter(leaves))
                now = [next(own) if want else x for x, want in zip(inputs, wanted, strict=True)]
                own_f = one_sided(func, now, jumps, t0, t1) if spec.jumps else partial(f, now)
                step = method.step(own_f, t0, t1, y)
                if carries:
                    (step.hint,) = known
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
            if timed:  # not in place, which fails beside a vjp in PyTorch 2.13; the table is small
                moved, grads = [moved[0].index_copy(0, at, torch.stack(grads[:2])[None])], grads[2:]
            handed = [last.clone()] if carries and last is not None else []
            return n - 1, dy.clone(), *handed, *moved, *(a + b for a, b in zip(old, grads, strict=True))

        carried = (n_steps, lam, *([f1] if carries else []), *([ends] if timed else []), *totals)
        _, lam, *sums = compiler.while_loop(goes_on, replay, tuple(x.clone() for x in carried))
        return lam, *parted(sums)

    def parted(sums: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        return sums[:carries], sums[carries : carries + timed], sums[carries + timed :]

    return compiler.compiled(sweep, forward=False)


def row(table: tuple[Tensor, Tensor], at: Tensor) -> Tensor:
    """`rows[which[at]]`."""
    rows, which = table
    return rows.index_select(0, which.index_select(0, at))[0]
