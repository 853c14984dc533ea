"""The explicit Runge-Kutta family: a method is a tableau that checks itself.

Notation as in Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (2nd ed.), section II.1 and,
for the continuous weights `b_i(theta)`, section II.6:

    k_i = f(t0 + c_i h, y0 + h sum_j a_ij k_j)        y1 = y0 + h sum_i b_i k_i
    error = h sum_i (b_i - b_hat_i) k_i                y(t0 + theta h) = y0 + h sum_i b_i(theta) k_i
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor

from ..core import VectorField
from ..layout import joined, stacked
from ..numbers import Time, combined, value
from .interpolants import polynomials_at, slopes_at
from .length import Factored, Length, Terms, factor, fraction, largest_first, nonzero, on_cpu, weigh
from .tableau import Interpolant, Row, check_interpolant, check_method, is_fsal, linear, parse_row, parse_rows


@dataclass(frozen=True, repr=False)
class RungeKutta:
    """An explicit Runge-Kutta method with interpolant, written in exact numbers.

    Parameters
    ----------
    name : str
    order : int
        Order of the propagated weights `b`.
    c, a, b : str
        Nodes, strictly lower triangle (one row a line, from the second stage), weights: rationals or decimals.
    dense : str
        The interpolant: one row a stage (extra stages included), the coefficients of theta^1, theta^2, ... of
        `b_i(theta)`. By default Hermite's cubic through y0, y1, f(t0, y0) and f(t1, y1).
    dense_order : int
        q, if the interpolant's local error is O(h^(q+1)); goes with `dense`.
    b_hat : str
        Weights of the embedded method; empty for a method without error estimate.
    embedded_order : int
    dense_c, dense_a : str
        Extra stages of the interpolant, evaluated only in steps that contain an output; go with `dense`.

    Attributes
    ----------
    fsal : bool
        First same as last: the last stage is f(t1, y1), the next step's first.
    f1_index : int or None
        Which stage is f(t1, y1): the last (FSAL), the first of the interpolant's own, or none.
    error_weights : tuple of float
        `b - b_hat`; empty for a method without error estimate.

    Raises
    ------
    ValueError
        If the numbers contradict each other.
    """

    name: str
    order: int
    c: str
    a: str
    b: str
    dense: str = ""
    dense_order: int = 0
    b_hat: str = ""
    embedded_order: int = 0
    dense_c: str = ""
    dense_a: str = ""
    nodes: Row = field(init=False)
    matrix: tuple[Row, ...] = field(init=False)
    weights: Row = field(init=False)
    embedded: Row = field(init=False)
    polynomials: tuple[Row, ...] = field(init=False)
    fsal: bool = field(init=False)
    f1_index: int | None = field(init=False)
    error_weights: tuple[float, ...] = field(init=False, repr=False, compare=False)
    # The same numbers as floats, without zeros: what a step reads.
    _c: list[float] = field(init=False, repr=False, compare=False)
    _a: list[tuple[Terms, Factored]] = field(init=False, repr=False, compare=False)
    _b: Factored = field(init=False, repr=False, compare=False)
    _e: Factored = field(init=False, repr=False, compare=False)
    _p: Tensor = field(init=False, repr=False, compare=False)
    _inside: list[int] = field(init=False, repr=False, compare=False)  # stages that the interpolant uses
    _p_inside: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        c, a, b = parse_row(self.c), ((), *parse_rows(self.a)), parse_row(self.b)
        b_hat = parse_row(self.b_hat)
        check_method(self.name, c, a, b, b_hat)
        fsal = is_fsal(c, a, b)
        given = Interpolant(self.dense, self.dense_order, self.dense_c, self.dense_a)
        self._put(**asdict(given.complete(self.name, self.order, c, a, b)))
        nodes, matrix = c + parse_row(self.dense_c), (*a, *parse_rows(self.dense_a))
        polynomials = parse_rows(self.dense)
        check_interpolant(self.name, nodes, matrix, b, polynomials)
        own_f1 = len(b) < len(nodes) and matrix[len(b)] == b
        self._put(nodes=nodes, matrix=matrix, weights=b, embedded=b_hat, polynomials=polynomials)
        self._put(fsal=fsal, f1_index=len(b) - fsal if fsal or own_f1 else None)
        self._put_floats([x - y for x, y in zip(b, b_hat, strict=True)] if b_hat else [])

    def _put(self, **fields: object) -> None:
        for name, x in fields.items():
            object.__setattr__(self, name, x)

    def _put_floats(self, difference: Sequence[Fraction]) -> None:
        terms = [nonzero(row) for row in self.matrix]
        coefficients = [[0.0, *map(float, row)] for row in self.polynomials]
        p = torch.tensor(coefficients, dtype=torch.float64, device="cpu")
        inside = [i for i, row in enumerate(coefficients) if any(row)]
        self._put(
            error_weights=tuple(map(float, difference)),
            _c=[float(c) for c in self.nodes],
            _a=[(own, factor(own)) for own in terms],
            _b=factor(largest_first(nonzero(self.weights))),
            _e=factor(largest_first(nonzero(difference))),
            _p=p,
            _inside=inside,
            _p_inside=p[inside],
        )

    def __repr__(self) -> str:
        return f"<{self.name}: explicit Runge-Kutta, order {self.order}, {len(self.weights)} stages>"

    @property
    def adaptive(self) -> bool:
        return bool(self.embedded)

    @property
    def stages(self) -> int:
        return len(self.weights)

    @property
    def dense_stages(self) -> int:
        """How many stages there are, the interpolant's own included; see `torchaca.methods.staged.Staged`."""
        return len(self.nodes)

    def with_interpolant(self, kind: str) -> RungeKutta:
        """The same method with another interpolant.

        Parameters
        ----------
        kind : {"linear", "cubic"}
            A straight line from y0 to y1, or Hermite's cubic.

        Raises
        ------
        ValueError
            For another kind.
        """
        made = {"linear": linear(self.weights), "cubic": Interpolant()}
        if kind not in made:
            raise ValueError(f"Unknown interpolation method {kind!r}: use 'linear' or 'cubic'")
        return replace(self, **asdict(made[kind]))

    def step(
        self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None
    ) -> RungeKuttaStep:
        """One step from (t0, y0) to t1; see `torchaca.core.Method`."""
        return RungeKuttaStep(self, f, t0, t1, y0, () if hint is None else (hint,))

    def complete(
        self,
        f: VectorField,
        t0: Time,
        t1: Time,
        y0: Tensor,
        stages: Sequence[Tensor],
        y1: Tensor | None = None,
        error: Tensor | None = None,
    ) -> RungeKuttaStep:
        """The step of which these first stages are known; see `torchaca.methods.staged.Staged`."""
        return RungeKuttaStep(self, f, t0, t1, y0, stages, y1, error)

    def continuous_weights(self, theta: Tensor) -> Tensor:
        """`b_i(theta)` for `theta` of shape `(n,)`: `(n, stages)`, float64 on the CPU, differentiable."""
        return polynomials_at(theta, self._p)

    def basis_weights(self, theta: Tensor) -> Tensor:
        """The interpolant in terms of `Step.basis`; see `torchaca.core.Method`."""
        return torch.cat([torch.ones_like(theta)[:, None], self.continuous_weights(theta)], 1)

    def basis_slopes(self, theta: Tensor) -> Tensor:
        """The derivatives of the weights; see `torchaca.methods.interpolants.slopes_of`."""
        return torch.cat([torch.zeros_like(theta)[:, None], slopes_at(theta, self._p)], 1)

    def f1_weights(self, t0: Time, t1: Time, times: Sequence[Time]) -> Tensor | None:
        """d at(times) / d f1; see `torchaca.core.Method`."""
        index = self.f1_index
        if index is None or index + 1 < len(self.nodes):  # further stages depend on f1: not linear in it
            return None
        start, end = value(t0), value(t1)
        theta = fraction(start, end, [value(t) for t in times])
        return (end - start) * self.continuous_weights(theta)[:, index]


class RungeKuttaStep:
    """One step; stages are evaluated when first needed, in the grad mode in which the step was made."""

    __slots__ = ("_error", "_f", "_grad", "_ks", "_length", "method", "t0", "t1", "y0", "y1")

    def __init__(
        self,
        method: RungeKutta,
        f: VectorField,
        t0: Time,
        t1: Time,
        y0: Tensor,
        known: Sequence[Tensor],
        y1: Tensor | None = None,
        error: Tensor | None = None,
    ) -> None:
        self.method, self.t0, self.t1, self.y0 = method, t0, t1, y0
        self._f, self._error = f, error
        self._grad = torch.is_grad_enabled()
        self._ks = list(known)
        on_device = isinstance(t0, Tensor) or isinstance(t1, Tensor)
        length = Length(t0, t1, y0) if on_device else None
        if y1 is None:
            self._evaluate(len(method.weights) - method.fsal, length or cast("float", t1 - t0))
            # Increments are added up before they meet y0: one rounding at the size of y, not one a stage.
            length = length or Length(t0, t1, y0)
            y1 = length.shift(y0, *weigh(method._b, self._ks))
        self._length, self.y1 = length or Length(t0, t1, y0), y1

    def _evaluate(self, stages: int, h: float | Length) -> None:
        """Evaluate the stages that are missing, up to the number of `stages`: the loop of all explicit methods.

        `h` is the length of the step, as a host number if it can be one.
        """
        method, ks, f, y0, t0, t1 = self.method, self._ks, self._f, self.y0, self.t0, self.t1
        for i in range(len(ks), stages):
            c, (terms, factored) = method._c[i], method._a[i]
            y = self.y1 if i == method.f1_index else y0
            if isinstance(h, Length):
                t = h.time(c)
                y = h.shift_by_all(y0, ks, terms, factored) if y is y0 and terms else y
            else:
                t = t1 if c == 1.0 else t0 + c * h if c else t0
                if y is y0:  # the fewest operations: a stage's rounding enters only through f
                    for j, a in terms:
                        y = torch.add(y0, ks[j], alpha=h * a) if y is y0 else y.add_(ks[j], alpha=h * a)
            ks.append(f(t, y))

    def _evaluated(self, stages: int) -> list[Tensor]:
        """The first `stages` stages, evaluating those that are missing."""
        if len(self._ks) < stages:
            with torch.set_grad_enabled(self._grad):
                self._evaluate(stages, self._length.number or self._length)
        return self._ks

    @property
    def f0(self) -> Tensor:
        return self._ks[0]

    @property
    def known(self) -> Sequence[Tensor]:
        """The stages that have been evaluated so far."""
        return self._ks

    @property
    def error(self) -> Tensor:
        if self._error is not None:
            return self._error
        return self._length.scale(*weigh(self.method._e, self._evaluated(self.method.stages)))

    @property
    def hint(self) -> Tensor | None:
        index = self.method.f1_index
        return self._ks[index] if index is not None and index < len(self._ks) else None

    @hint.setter
    def hint(self, f1: Tensor | None) -> None:
        if f1 is not None and self.method.f1_index == len(self._ks):
            self._ks.append(f1)

    def at(self, times: Sequence[Time]) -> Tensor:
        method, ks = self.method, self._evaluated(len(self.method.nodes))
        # Powers of theta cancel: in float32 dopri8 would lose five digits here.
        theta = fraction(self.t0, self.t1, times)
        weights = on_cpu(self._length.size) * polynomials_at(theta, method._p_inside)
        return combined(weights, [ks[i] for i in method._inside], self.y0)

    def basis(self) -> Tensor:
        ks = stacked(self._evaluated(len(self.method.nodes)))
        return joined([self.y0[None], self._length.scale(1.0, ks)], self.y0)
