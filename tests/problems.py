"""Initial value problems with closed forms, in float64 or complex128, solvable in both time directions.

`CLOSED_FORMS` holds them by name; what a test measures is `error(problem, ts, ys)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DOUBLE = torch.float64


@dataclass(frozen=True)
class ClosedForm:
    """dy/dt = f(t, y) with y(t) = exact(t) for `t` of shape `(n,)`: `(n, *y0.shape)`; to be solved over `span`."""

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    span: tuple[float, float]

    @property
    def y0(self) -> Tensor:
        return self.at(self.span[0])

    @property
    def y1(self) -> Tensor:
        return self.at(self.span[1])

    def at(self, t: float) -> Tensor:
        return self.exact(torch.tensor([t], dtype=DOUBLE))[0]

    def backwards(self) -> ClosedForm:
        """The same solution from its end to its start."""
        return replace(self, name=f"{self.name}-backwards", span=self.span[::-1])

    def times(self, n: int) -> Tensor:
        """`n` equidistant times from the start to the end."""
        return torch.linspace(*self.span, n, dtype=DOUBLE)


def error(problem: ClosedForm, ts: Tensor, ys: Tensor) -> float:
    """The largest deviation from the exact solution, over all times and components."""
    return (ys - problem.exact(ts.double())).abs().max().item()


def _column(t: Tensor) -> Tensor:
    return t[:, None]


C = torch.tensor([1.5, 2.0, 3.0], dtype=DOUBLE)
COSINE = ClosedForm(  # nonlinear and non-autonomous: what shifted stage times and wrong nodes cannot survive
    name="cosine",
    f=lambda t, y: -(y**2) * torch.cos(t),
    exact=lambda t: 1 / (C + torch.sin(_column(t))),
    span=(-0.5, 3.5),
)


def _spiral(t: Tensor, y: Tensor) -> Tensor:
    decay, turn = -torch.linalg.vector_norm(y) * torch.cos(t), 4 * t
    return decay * y + turn * torch.stack([-y[1], y[0]])


SPIRAL = ClosedForm(  # the radius is 1 / (1.5 + sin t), the angle 2 t^2
    name="spiral",
    f=_spiral,
    exact=lambda t: (
        torch.stack([torch.cos(2 * t**2), torch.sin(2 * t**2)], 1) / (1.5 + torch.sin(_column(t)))
    ),
    span=(-1.0, 1.5),
)

A = torch.tensor([[-0.5, 2.0, 0.3], [-2.0, -0.5, 1.0], [0.0, 0.4, -1.0]], dtype=DOUBLE)
LINEAR = ClosedForm(
    name="linear",
    f=lambda t, y: A @ y,
    exact=lambda t: (
        torch.linalg.matrix_exp(t[:, None, None] * A) @ torch.tensor([1.0, -1.0, 2.0], dtype=DOUBLE)
    ),
    span=(0.0, 3.0),
)

LOGISTIC = ClosedForm(
    name="logistic",
    f=lambda t, y: y * (1 - y),
    exact=lambda t: torch.sigmoid(_column(t) + torch.tensor([-3.0, 0.0, 1.0, 2.0], dtype=DOUBLE)).reshape(
        -1, 2, 2
    ),
    span=(-2.0, 3.0),
)

W = torch.tensor([1.0, -2.0], dtype=DOUBLE)
OSCILLATION = ClosedForm(
    name="oscillation",
    f=lambda t, y: 1j * W * y,
    exact=lambda t: torch.exp(1j * W * _column(t)) * torch.tensor([1.0, 0.5 + 0.5j], dtype=torch.complex128),
    span=(0.0, 3.0),
)

BERNOULLI = ClosedForm(  # u = y^-2 obeys u' = 4t u - 4t
    name="bernoulli",
    f=lambda t, y: 2 * t * (y**3 - y),
    exact=lambda t: (
        1 / torch.sqrt(1 + torch.tensor([0.5, 2.0], dtype=DOUBLE) * torch.exp(2 * _column(t) ** 2))
    ),
    span=(0.1, 1.3),
)

FORCED = ClosedForm(  # a state without dimensions
    name="forced",
    f=lambda t, y: y * torch.sin(t),
    exact=lambda t: torch.exp(1 - torch.cos(t)),
    span=(0.0, 3.0),
)

CLOSED_FORMS = {p.name: p for p in (COSINE, SPIRAL, LINEAR, LOGISTIC, OSCILLATION, BERNOULLI, FORCED)}
BOTH_WAYS = {p.name: p for known in CLOSED_FORMS.values() for p in (known, known.backwards())}


@dataclass(frozen=True)
class Open:
    """A problem without a closed form: for comparisons with other solvers."""

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    span: tuple[float, float]

    def times(self, n: int) -> Tensor:
        return torch.linspace(*self.span, n, dtype=DOUBLE)


def _van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], 2 * (1 - y[0] ** 2) * y[1] - y[0]])


def _predators(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]])


def _kepler(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[2:], -y[:2] / torch.linalg.vector_norm(y[:2]) ** 3])


def _pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -torch.sin(y[0]) - 0.2 * y[1] + 0.5 * torch.cos(2 * t)])


def _state(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=DOUBLE)


OPEN = {
    p.name: p
    for p in (
        Open("van der pol", _van_der_pol, _state(2.0, 0.0), (0.0, 10.0)),
        Open("predators", _predators, _state(10.0, 5.0), (0.0, 5.0)),
        Open("kepler", _kepler, _state(0.5, 0.0, 0.0, 3**0.5), (0.0, 6.0)),
        Open("pendulum", _pendulum, _state(1.0, 0.0), (0.0, 8.0)),
        Open("pendulum-backwards", _pendulum, _state(1.0, 0.0), (3.0, 0.0)),
    )
}
