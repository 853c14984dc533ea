"""The backward integration of the continuous adjoint, from the last output to the first.

With the costate `lambda`, the gradient of the loss with respect to y(t):

    lambda' = -(df/dy)^T lambda             dL/dtheta = integral of (df/dtheta)^T lambda over [t0, t1]

and every output adds its own gradient to lambda on the way. Two things can be had in two ways each. The state y(t) is
integrated backwards beside lambda, or read from the forward pass; the integral is a part of the integrated state, or
a Gauss-Legendre quadrature over the interpolant of each backward step (as `GaussAdjoint` of SciMLSensitivity.jl).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from ..core import Control, Log, Problem, Stats, Step, Times, tolerant
from ..field.field import Field
from ..field.inputs import Inputs
from ..field.replays import check_replay
from ..layout import ordered
from ..loops.stepping import steps
from ..norms import rms
from ..numbers import Time, combined, value
from ..state import structure_of, wide
from .drift import Drift
from .recorded import Recorded
from .replay import MaybeTensors, Parts, Totals, rebuilt, vjp, without_detours, without_graph

if TYPE_CHECKING:
    from .adjoint import Adjoint


class LateUseError(Exception):
    """f used a tensor in the backward pass that it had not used at t0."""


def gauss_rule(order: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1] of the Gauss-Legendre rule that is of a higher order than a method of `order`."""
    nodes, weights = leggauss(order // 2 + 1)  # n nodes are of order 2 n
    return (0.5 + 0.5 * nodes).tolist(), (0.5 * weights).tolist()


class Backward:
    """The integration of `(y, lambda, dL/dtheta)`, or of those of them that are no better known.

    `recorded` is where y(t) comes from, None if it is integrated. With `settings.quadrature == "gauss"` the totals
    dL/dtheta are summed up step by step, in `sums`, and no part of the integrated state. `f0` is f at the start of the
    forward pass, `witness` the same at the start of its last step: f has to give them again.
    """

    def __init__(
        self,
        settings: Adjoint,
        problem: Problem,
        inputs: Inputs,
        parts: Parts,
        recorded: Recorded | None,
        f0: Tensor | None = None,
        witness: tuple[float, float, Tensor, Tensor] | None = None,
    ) -> None:
        self.settings, self.inputs, self.recorded, self.f0 = settings, inputs, recorded, f0
        self.witness = witness
        self.stats = Stats()
        leaves = parts.leaves()
        self.p = without_graph(rebuilt(problem, leaves, inputs))
        self.parts, self.wrt = leaves, [*leaves.args, *leaves.captured]
        settings.refuse_sparse(self.wrt)
        # Leaves that f reaches are a part of the backward state only if f turns out to use them.
        self.late = inputs.late if len(parts.captured) == len(inputs.captured) else ()
        self.method = settings.method or self.p.method
        self.nodes, self.weights = (
            gauss_rule(self.method.order) if settings.quadrature == "gauss" else ([], [])
        )
        self.sums = Totals(len(self.wrt))
        y = leaves.y0.detach()
        self.structure = structure_of(self._integrated(y, y, [x.detach() for x in self.wrt]))
        self.sparse: dict[int, int] = {}
        self.dt: float | None = None
        self.times: list[float] = []

    def _integrated(self, y: Any, lam: Any, totals: Sequence[Any]) -> tuple[Any, ...]:
        """Of the three, what is a part of the integrated state."""
        return (*(() if self.recorded else (y,)), lam, *(() if self.nodes else totals))

    def _at(self, t: Time, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The state, lambda and the integrated totals at a point of the backward solve."""
        parts = self.structure.unpack(z)
        if self.recorded:
            parts = (self.recorded(value(t)), *parts)
        y, lam, *totals = parts
        return y, lam, totals

    def integrate(self, ys: Tensor, grad_ys: Tensor) -> MaybeTensors:
        """The gradients of all inputs, in the order of `Parts`."""
        values = self.p.ts.values
        drift, start = Drift(ys), self.p.slope(values[0], values[-1], ys[0])
        if self.f0 is not None:
            drift.note(start, self.f0)
        if self.witness is not None:
            t0, t1, y, k = self.witness
            drift.note(self.p.slope(t0, t1, y), k)
        lam, totals = grad_ys[-1], [] if self.nodes else [torch.zeros_like(x) for x in self.wrt]
        grad_t = None
        if self.parts.ts is not None:
            grad_t = torch.zeros(len(values), dtype=torch.float64, device="cpu")
        for i in range(len(ys) - 1, 0, -1):
            if grad_t is not None:
                grad_t[i] = _moved(self.p.f(values[i], ys[i]), grad_ys[i])
            if values[i] != values[i - 1]:
                lam, totals = self._segment(values[i], values[i - 1], ys[i], lam, totals)
            if grad_t is not None and i == 1:
                grad_t[0] = -_moved(start, lam)
            lam = lam + grad_ys[i - 1]
        if self.parts.ts is not None and grad_t is not None:
            grad_t = grad_t.to(self.parts.ts)
        n_args, unmoved = len(self.parts.args), [None] * len(self.parts.control)
        grads = self.sums.sums if self.nodes else totals
        found = [self._as_found(x, grad) for x, grad in zip(self.wrt, grads, strict=True)]
        captured = without_detours(self.parts.captured, list(found[n_args:]))
        lam = ordered(lam, self.parts.y0)
        return drift.settled([lam, grad_t, *unmoved, *found[:n_args], *captured], self.p, self.inputs)

    def _as_found(self, x: Tensor, grad: Tensor | None) -> Tensor:
        """A gradient as autograd would hand it out: in the dtype of x, sparse where f made it so."""
        grad = torch.zeros_like(x) if grad is None else grad.to(x.dtype)
        return grad.to_sparse(self.sparse[id(x)]) if id(x) in self.sparse else grad

    def _segment(
        self, start: float, end: float, y: Tensor, lam: Tensor, totals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The adjoint and the totals at `end`, integrated from `start`, where the state is `y`."""
        problem = Problem(
            f=Field(self._augmented, jumps=self.p.jumps, one_sided=self.p.one_sided),
            y0=self.structure.pack(self._integrated(y, lam, totals)),
            ts=Times((start, end)),
            method=self.method,
            control=self._control(start, end),
            log=Log(self.stats, self._watch if self.settings.watch else None),
        )
        z = problem.y0
        self.times = self.times or [start]
        for step in self._sized(problem):
            z = step.y1
            self.times.append(value(step.t1))
            if self.nodes and (self.wrt or self.late):
                self._add_quadrature(step)
        _, lam, totals = self._at(end, z)
        return lam, totals

    def _sized(self, problem: Problem) -> Iterator[Step]:
        """The steps of a segment; the next segment starts with the size that would come next."""
        end = yield from steps(problem)
        self.dt = end.dt

    def _watch(self, event: str, t: float, z: Tensor, dt: float) -> None:
        """Hand a trial on, with the state that a callable norm gets."""
        if self.settings.watch:
            self.settings.watch(
                event, t, (z.new_zeros((), dtype=z.dtype.to_real()), *self.structure.unpack(z)), dt
            )

    def _add_quadrature(self, step: Step) -> None:
        """Add to the sums what they grow by over a backward step."""
        t0, h = value(step.t0), value(step.t1) - value(step.t0)
        at_nodes = self.method.basis_weights(torch.tensor(self.nodes, dtype=torch.float64, device="cpu"))
        for node, weight, z in zip(self.nodes, self.weights, combined(at_nodes, step.basis()), strict=True):
            self._add_node(t0 + h * node, z, -h * weight)

    def _add_node(self, t: float, z: Tensor, weight: float) -> None:
        """Add `weight (df/dtheta)^T lambda` at one point; of the size of the parameters it holds just that product."""
        y, lam, _ = self._at(t, z)
        y, k = self._evaluated(t, y)
        grads = self._products(t, y, k, lam * weight, self.wrt)
        self.sums.add([None if g is None else g.to(wide([g.dtype])) for g in grads])

    def _control(self, start: float, end: float) -> Control:
        """The control of the stretch; one that follows tolerances has them for the backward state."""
        settings, given = self.settings, self.settings.control or self.p.control
        if not hasattr(given, "moves"):
            return cast("Callable[[float, float], Control]", given)(start, end)
        control = cast("Control", given).within(start, end)
        own = tolerant(control)
        if own is None:
            return control
        return own.with_settings(
            rtol=self._tolerance(own.rtol if settings.rtol is None else settings.rtol),
            atol=self._tolerance(own.atol if settings.atol is None else settings.atol),
            dt0=self.dt if self.dt is not None else own.dt0,
            norm=self._norm,
            at_rest="ignore",  # the steps see lambda, which does not rest
        )

    def _tolerance(self, tolerance: float | Tensor) -> float | Tensor:
        """A tolerance of y, for y, lambda (the same) and the totals (the smallest of it)."""
        if not isinstance(tolerance, Tensor):
            return tolerance
        own = tolerance.expand_as(self.parts.y0)
        rest = [own.min().expand(x.shape) for x in self.wrt]
        return self.structure.pack(self._integrated(own, own, rest)).real

    def _norm(self, scaled: Tensor) -> Tensor:
        norm = self.settings.norm
        if callable(norm):
            zero = torch.zeros((), dtype=scaled.dtype.to_real(), device=scaled.device)
            return norm((zero, *self.structure.unpack(scaled)))
        parts = scaled.split([leaf.stop - leaf.start for leaf in self.structure.leaves])
        if norm == "semi":
            parts = parts[: len(self._integrated(0, 0, ()))]
        return torch.stack([rms(part) for part in parts]).max()

    def _augmented(self, t: Time, z: Tensor, nudge: Time | None = None) -> Tensor:
        """The right-hand side of the backward integration, packed."""
        y, lam, _ = self._at(t, z)
        y, k = self._evaluated(t, y, nudge)
        wrt = [y] if self.nodes else [y, *self.wrt]
        grads = self._products(t, y, k, lam, wrt)
        slopes = [torch.zeros_like(x) if g is None else -g for g, x in zip(grads, wrt, strict=True)]
        return self.structure.pack(self._integrated(k.detach(), slopes[0], slopes[1:]))

    def _evaluated(self, t: Time, y: Tensor, nudge: Time | None = None) -> tuple[Tensor, Tensor]:
        """A leaf of the value of `y`, and f of it with a graph."""
        f: Any = self.p.f
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return y, f(t, y, nudge) if nudge is not None else f(t, y)

    def _products(
        self, t: Time, y: Tensor, k: Tensor, lam: Tensor, wrt: Sequence[Tensor | None]
    ) -> MaybeTensors:
        """`(dk/dx)^T lam` for every x in `wrt`, where k = f(t, y)."""
        if not k.requires_grad:
            return [None] * len(wrt)
        if self.inputs.watched:
            span = f"backwards through t = {value(t):g}"
            check_replay([k], self.inputs, (y, *self.wrt), span, complete=True)
        grads = vjp([k], [*wrt, *self.late], [lam.to(k.dtype)], keep=self.inputs.shared)
        if any(grad is not None for grad in grads[len(wrt) :]):
            raise LateUseError
        return [self._dense(x, grad) for x, grad in zip(wrt, grads, strict=False)]

    def _dense(self, x: Tensor | None, grad: Tensor | None) -> Tensor | None:
        """A gradient that can be packed, if it has to be; which tensors have sparse ones is remembered."""
        if grad is None or grad.layout == torch.strided or self.nodes:
            return grad
        self.sparse[id(x)] = grad.sparse_dim()
        return grad.to_dense()


def _moved(slope: Tensor, cotangent: Tensor) -> Tensor:
    """The derivative of the loss as the time of a state moves along f."""
    return (cotangent.conj() * slope).sum().real.to("cpu", torch.float64)
