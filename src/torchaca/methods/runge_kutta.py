"""The explicit Runge-Kutta family: a method is a tableau that checks itself.

Notation as in Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (2nd ed.), section II.1 and,
for the continuous weights `b_i(theta)`, section II.6:

    k_i = f(t0 + c_i h, y0 + h sum_j a_ij k_j)        y1 = y0 + h sum_i b_i k_i
    error = h sum_i (b_i - b_hat_i) k_i                y(t0 + theta h) = y0 + h sum_i b_i(theta) k_i
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor

from ..core import VectorField
from ..layout import joined, stacked
from ..numbers import Time, combined, has_lanes, value

Row = tuple[Fraction, ...]
Terms = list[tuple[int, float]]
"""Indices of stages and their weights."""
Mean = tuple[float, int, Terms]
"""`w (k_i + sum_j r_j k_j)` as w, i and all (j, r_j)."""


def parse_row(text: str) -> Row:
    """Whitespace-separated rationals or decimals as exact numbers."""
    return tuple(Fraction(number) for number in text.split())


def parse_rows(text: str) -> tuple[Row, ...]:
    """One row a line."""
    return tuple(parse_row(line) for line in text.splitlines() if line.strip())


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
        One row a stage (extra stages included), the coefficients of theta^1, theta^2, ... of `b_i(theta)`.
    dense_order : int
        q, where the interpolant's local error is O(h^(q+1)).
    b_hat : str
        Weights of the embedded method; empty for a method without error estimate.
    embedded_order : int
    dense_c, dense_a : str
        Extra stages of the interpolant, evaluated only in steps that contain an output.

    Attributes
    ----------
    fsal : bool
        First same as last: the last stage is f(t1, y1), the next step's first.
    f1_index : int or None
        Which stage is f(t1, y1): the last (FSAL), the first of the interpolant's own, or none.

    Raises
    ------
    ValueError
        Where the numbers contradict each other.
    """

    name: str
    order: int
    c: str
    a: str
    b: str
    dense: str
    dense_order: int
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
    # The same numbers as floats, without zeros: what a step reads.
    _c: list[float] = field(init=False, repr=False, compare=False)
    _a: list[Terms] = field(init=False, repr=False, compare=False)
    _a_means: list[Mean] = field(init=False, repr=False, compare=False)
    _b: Mean = field(init=False, repr=False, compare=False)
    _e: Mean = field(init=False, repr=False, compare=False)
    _p: Tensor = field(init=False, repr=False, compare=False)
    _inside: list[int] = field(init=False, repr=False, compare=False)  # stages that the interpolant uses
    _p_inside: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "nodes", parse_row(self.c) + parse_row(self.dense_c))
        put(self, "matrix", ((), *parse_rows(self.a), *parse_rows(self.dense_a)))
        put(self, "weights", parse_row(self.b))
        put(self, "embedded", parse_row(self.b_hat))
        put(self, "polynomials", parse_rows(self.dense))
        self._check()
        put(self, "fsal", self._is_fsal())
        put(self, "f1_index", self._f1_index())
        put(self, "_c", [float(c) for c in self.nodes])
        put(self, "_a", [_terms(row) for row in self.matrix])
        put(self, "_a_means", [_mean(terms) for terms in self._a])
        put(self, "_b", _mean(_largest_first(_terms(self.weights))))
        difference = (
            [b - e for b, e in zip(self.weights, self.embedded, strict=True)] if self.embedded else []
        )
        put(self, "_e", _mean(_largest_first(_terms(difference))))
        coefficients = [[0.0, *map(float, row)] for row in self.polynomials]
        put(self, "_p", torch.tensor(coefficients, dtype=torch.float64, device="cpu"))
        put(self, "_inside", [i for i, row in enumerate(coefficients) if any(row)])
        put(self, "_p_inside", self._p[self._inside])

    def _check(self) -> None:
        stages, close = len(self.weights), Fraction(1, 10**13)
        if len(self.nodes) != len(self.matrix):
            raise ValueError(f"{self.name}: c has {len(self.nodes)} nodes for {len(self.matrix)} rows of a")
        if len({len(row) for row in self.polynomials}) > 1:
            raise ValueError(f"{self.name}: all rows of dense must have the same length")
        for i, (c, row) in enumerate(zip(self.nodes, self.matrix, strict=True)):
            if len(row) != i or abs(sum(row, Fraction(0)) - c) > close:
                raise ValueError(
                    f"{self.name}: row {i + 1} of a must have {i} entries that add up to c = {c}"
                )
        if abs(sum(self.weights) - 1) > close:
            raise ValueError(f"{self.name}: b must add up to 1")
        if self.embedded and (len(self.embedded) != stages or abs(sum(self.embedded) - 1) > close):
            raise ValueError(f"{self.name}: b_hat must have {stages} entries that add up to 1")
        if len(self.polynomials) != len(self.nodes):
            raise ValueError(f"{self.name}: dense needs {len(self.nodes)} rows, one a stage")
        for i, row in enumerate(self.polynomials):
            if abs(sum(row) - (self.weights[i] if i < stages else 0)) > close:
                raise ValueError(f"{self.name}: b_{i + 1}(1) must be b_{i + 1}")

    def __repr__(self) -> str:
        return f"<{self.name}: explicit Runge-Kutta, order {self.order}, {len(self.weights)} stages>"

    @property
    def adaptive(self) -> bool:
        return bool(self.embedded)

    @property
    def stages(self) -> int:
        return len(self.weights)

    def _is_fsal(self) -> bool:
        return self.nodes[self.stages - 1] == 1 and self.matrix[self.stages - 1] == self.weights[:-1]

    def _f1_index(self) -> int | None:
        if self.fsal:
            return self.stages - 1
        own = self.stages < len(self.nodes) and self.matrix[self.stages] == self.weights
        return self.stages if own else None

    def step(
        self, f: VectorField, t0: Time, t1: Time, y0: Tensor, f0: Tensor | None = None
    ) -> RungeKuttaStep:
        """One step from (t0, y0) to t1; see `torchaca.core.Method`."""
        return RungeKuttaStep(self, f, t0, t1, y0, () if f0 is None else (f0,))

    def resumed(
        self, f: VectorField, t0: Time, t1: Time, y0: Tensor, stages: Sequence[Tensor]
    ) -> RungeKuttaStep:
        """The same step once more, of which these first stages are known; it evaluates the others."""
        return RungeKuttaStep(self, f, t0, t1, y0, stages)

    def continuous_weights(self, theta: Tensor) -> Tensor:
        """`b_i(theta)` for `theta` of shape `(n,)`: `(n, stages)`, float64 on the CPU, differentiable."""
        return polynomials_at(theta, self._p)

    def basis_weights(self, theta: Tensor) -> Tensor:
        """The interpolant in terms of `Step.basis`; see `torchaca.core.Method`."""
        return torch.cat([torch.ones_like(theta)[:, None], self.continuous_weights(theta)], 1)

    def f1_weights(self, t0: Time, t1: Time, times: Sequence[Time]) -> Tensor | None:
        """d at(times) / d f1; see `torchaca.core.Method`."""
        index = self.f1_index
        if index is None or index + 1 < len(self.nodes):  # further stages depend on f1: not linear in it
            return None
        start, end = value(t0), value(t1)
        theta = fraction(start, end, [value(t) for t in times])
        return (end - start) * self.continuous_weights(theta)[:, index]


def _split(h: Time, y: Tensor) -> tuple[Time | None, Tensor | None]:
    """h as what multiplies states such as y, and a rest of value zero that carries its derivative, if it has one.

    Where h differs between lanes there is no number: the rest is all of h, in the shape of y, since a broadcast over
    few components takes twice the time.
    """
    if torch.compiler.is_compiling() or not isinstance(
        h, Tensor
    ):  # a graph has no host numbers: h itself multiplies
        return h, None
    dtype = y.dtype.to_real()
    if has_lanes(h):
        return None, h.to(y.device, dtype).expand(y.shape).contiguous()
    number = value(h)
    return number, (h - number).to(y.device, dtype)


def _terms(row: Sequence[Fraction]) -> Terms:
    """The non-zero entries as (index, float)."""
    return [(i, float(x)) for i, x in enumerate(row) if x]


def _largest_first(terms: Terms) -> Terms:
    """So that `_weighted` multiplies with nothing above 1."""
    return sorted(terms, key=lambda term: -abs(term[1]))


def _mean(terms: Terms) -> Mean:
    """`sum_i w_i k_i` as `_weighted` takes it."""
    if not terms:
        return 0.0, 0, []
    (first, weight), *rest = terms
    return weight, first, [(i, w / weight) for i, w in rest]


def polynomials_at(theta: Tensor, coefficients: Tensor) -> Tensor:
    """Values `(n, rows)` at `theta` `(n,)` of polynomials with coefficients `(rows, degree + 1)`, lowest degree first.

    All are float64 on the CPU.
    """
    *lower, total = coefficients.unbind(1)
    for coefficient in reversed(lower):
        total = torch.addcmul(coefficient, total, theta[:, None])
    return total


def fraction(t0: Time, t1: Time, times: Sequence[Time]) -> Tensor:
    """theta = (t - t0) / (t1 - t0) of `times`: `(len(times),)`, float64 on the CPU, differentiable."""
    if any(isinstance(t, Tensor) for t in (t0, t1, *times)):
        start = _host(t0)
        size = _host(t1) - start
        if has_lanes(size):
            size = torch.where(size == 0, 1.0, size)  # a lane that is done
        return (torch.stack([_host(t) for t in times]) - start) / size
    return (torch.tensor(times, dtype=torch.float64, device="cpu") - t0) / (t1 - t0)


def _host(t: Time) -> Tensor:
    if isinstance(t, Tensor):
        return t.to("cpu", torch.float64)
    return torch.tensor(t, dtype=torch.float64, device="cpu")


class RungeKuttaStep:
    """One step; stages are evaluated when first needed, in the grad mode in which the step was made.

    All values are computed with a host number h. Where the times carry derivatives, `dh` is a tensor of value zero
    with the derivative of h, and every `h x` becomes `h x + dh x`: the same bits, differentiable in h. In lanes of
    vmap `h` is None and `dh` all of it.
    """

    __slots__ = ("_dh", "_f", "_grad", "_h", "_ks", "_size", "method", "t0", "t1", "y0", "y1")

    def __init__(
        self, method: RungeKutta, f: VectorField, t0: Time, t1: Time, y0: Tensor, known: Sequence[Tensor]
    ) -> None:
        self._begin(method, f, t0, t1, y0, known)
        if not self._ks:
            self._ks.append(f(t0, y0))
        for i in range(len(self._ks), method.stages - method.fsal):
            self._ks.append(self._stage(i))
        # Increments are added up before they meet y0: one rounding at the size of y, not one a stage.
        weight, mean = _weighted(method._b, self._ks)
        self.y1 = self._moved(y0, weight, mean)

    def _begin(
        self, method: RungeKutta, f: VectorField, t0: Time, t1: Time, y0: Tensor, known: Sequence[Tensor]
    ) -> None:
        """Everything but the stages that are missing, and y1."""
        self.method = method
        self.t0, self.t1, self.y0 = t0, t1, y0
        self._f = f
        self._grad = torch.is_grad_enabled()
        self._size: Time = t1 - t0
        self._h, self._dh = _split(self._size, y0)
        self._ks = list(known)

    def _moved(self, y: Tensor, weight: float, slope: Tensor) -> Tensor:
        """`y + h weight slope`."""
        if self._h is None:
            return torch.addcmul(y, cast("Tensor", self._dh), slope, value=weight)
        return self._with_dh(_plus_all(y, (slope,), [(0, weight)], self._h), weight, slope)

    def _increment(self, weight: float, slope: Tensor) -> Tensor:
        """`h weight slope`."""
        if self._h is None:
            return slope * weight * cast("Tensor", self._dh)
        return self._with_dh(slope * (self._h * weight), weight, slope)

    def _with_dh(self, out: Tensor, weight: float, slope: Tensor) -> Tensor:
        return out if self._dh is None else out + self._dh * weight * slope

    def _time(self, c: float) -> Time:
        """`t0 + c h`."""
        if c == 1.0:  # t1 itself, not t0 + 1.0 * h: the last stage is bit for bit the next step's first
            return self.t1
        if not c:
            return self.t0
        if self._h is None:  # a product of lanes with a number is four operations
            return torch.add(cast("Tensor", self.t0), cast("Tensor", self._size), alpha=c)
        return self.t0 + c * (self.t1 - self.t0)

    def _stage(self, i: int) -> Tensor:
        method, ks = self.method, self._ks
        t = self._time(method._c[i])
        if i == method.f1_index:
            return self._f(t, self.y1)
        if not method._a[i]:
            return self._f(t, self.y0)
        if self._h is None:
            return self._f(t, self._moved(self.y0, *_weighted(method._a_means[i], ks)))
        # The fewest operations: a stage's rounding enters only through f.
        y = _plus_all(self.y0, ks, method._a[i], self._h)
        return self._f(t, y if self._dh is None else self._with_dh(y, *_weighted(method._a_means[i], ks)))

    def _evaluated(self, stages: int) -> list[Tensor]:
        """The first `stages` stages, evaluating those that are missing."""
        if len(self._ks) < stages:
            with torch.set_grad_enabled(self._grad):
                while len(self._ks) < stages:
                    self._ks.append(self._stage(len(self._ks)))
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
        weight, mean = _weighted(self.method._e, self._evaluated(self.method.stages))
        return self._increment(weight, mean)

    @property
    def known_f1(self) -> Tensor | None:
        index = self.method.f1_index
        return self._ks[index] if index is not None and index < len(self._ks) else None

    def give_f1(self, f1: Tensor) -> None:
        if self.method.f1_index == len(self._ks):
            self._ks.append(f1)

    def at(self, times: Sequence[Time]) -> Tensor:
        ks = self._evaluated(len(self.method.nodes))
        # Powers of theta cancel: in float32 dopri8 would lose five digits here.
        theta = fraction(self.t0, self.t1, times)
        size = _host(self._size) if isinstance(self._size, Tensor) else self._size
        weights = size * polynomials_at(theta, self.method._p_inside)
        return combined(weights, [ks[i] for i in self.method._inside], self.y0)

    def basis(self) -> Tensor:
        ks = stacked(self._evaluated(len(self.method.nodes)))
        return joined([self.y0[None], self._increment(1.0, ks)], self.y0)


def _weighted(mean: Mean, ks: Sequence[Tensor]) -> tuple[float, Tensor]:
    """`sum_i w_i k_i` as a number times a tensor: the number joins h where the sum is used, and costs nothing."""
    weight, first, rest = mean
    return weight, _plus_all(ks[first], ks, rest, 1.0)


def _plus_all(y: Tensor, ks: Sequence[Tensor], terms: Terms, h: Time) -> Tensor:
    """`y + sum_i h w_i k_i`; one operation a term where h is a host number."""
    if isinstance(h, Tensor):
        for i, w in terms:
            y = y + h * w * ks[i]
        return y
    total = None
    for i, w in terms:
        total = torch.add(y, ks[i], alpha=h * w) if total is None else total.add_(ks[i], alpha=h * w)
    return y if total is None else total
