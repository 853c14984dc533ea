"""Steps whose graph is kept: forward they leave their residuals behind, so that nothing is evaluated again backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from ..core import Problem
from ..methods.staged import Staged
from . import compiler
from .field_graph import FieldGraph
from .halves import Halves, halves
from .loops import row
from .spec import Spec


def split_stages(
    func: FieldGraph, method: Staged, p: Problem, inputs: Sequence[Tensor], wanted: Sequence[bool]
) -> Halves:
    """The stages of a step from `(t0, t1, y, f0, *inputs)`, without the first, which is f0."""

    def stages(t0: Tensor, t1: Tensor, y: Tensor, f0: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        def f(t: Any, y: Tensor) -> Tensor:
            return func(t.to(y.dtype), y, inputs)

        step = method.step(f, t0, t1, y, f0)
        _ = step.error  # which needs all of them
        return tuple(step.known[1:])

    t, y = torch.tensor(p.ts.values[0], dtype=torch.float64, device="cpu"), p.y0.detach()
    args, fixed = (t, t + p.ts.sign, y, torch.zeros_like(y), *inputs), [True] * len(inputs)
    return halves(stages, args, (False, False, True, True, *wanted), (False,) * 4 + (*fixed,), lost=3)


def pullback_loop(spec: Spec, wanted: tuple[bool, ...], split: Halves) -> Callable[..., Any]:
    """The backward pass over one chunk: `(n_steps, until, T, Y, kept, tables, lam, mu, totals, inputs)`.

    Over its first `n_steps` steps, but for the first `until` -> lam, mu, totals.
    `mu` is the cotangent of f(t1, y1), which the step after this one started with.
    """
    method = spec.method

    def pull(
        n_steps: Tensor,
        until: Tensor,
        T: Tensor,
        Y: Tensor,
        kept: Sequence[Tensor],
        tables: Sequence[tuple[Tensor, Tensor]],
        lam: Tensor,
        mu: Tensor,
        totals: Sequence[Tensor],
        inputs: Sequence[Tensor],
    ) -> Any:
        def goes_on(n: Tensor, lam: Tensor, mu: Tensor, *totals: Tensor) -> Tensor:
            return n > until

        def back(n: Tensor, lam: Tensor, mu: Tensor, *totals: Tensor) -> Any:
            at = (n - 1).view(1)
            y, t0, t1 = Y.index_select(0, at)[0], T.index_select(0, at)[0], T.index_select(0, n.view(1))[0]
            residuals = [buffer.index_select(0, at)[0] for buffer in kept]
            ending, *others = [row(table, at) for table in tables]

            def outs(y: Tensor, *stages: Tensor) -> Any:
                step = method.complete(_never, t0, t1, y, stages)
                known = step.y1, stages[-1].clone()
                return (*known, step.basis()) if spec.inside else known

            nothing = torch.zeros_like(y)
            # The outputs are linear in y and the stages: their values do not matter.
            both: Any = vjp(outs, nothing, *[nothing] * method.stages)
            dy, mu, *cotangents = both[1]((lam + ending, mu, *others))
            found = split.backward(t0, t1, y, nothing, *inputs, *residuals, *cotangents)
            more = [
                torch.zeros_like(x) if g is None else g for g, x in zip(found, (y, y, *totals), strict=True)
            ]
            sums = (a + b for a, b in zip((dy, mu, *totals), more, strict=True))
            return n - 1, *sums

        carried = (n_steps, lam, mu, *totals)
        _, lam, mu, *totals = compiler.while_loop(goes_on, back, tuple(x.clone() for x in carried))
        return lam, mu, totals

    return compiler.compiled(pull, forward=False)


def _never(t: Any, y: Tensor) -> Tensor:
    raise AssertionError("all stages are known")
