"""Does stability limit the step size? The eigenvalue of df/dy that decides it, and the method's bound for it.

A problem is stiff where three things come together: an eigenvalue lambda of df/dy that contracts much faster than the
solution moves, steps of a size h at which h |lambda| reaches the end of the method's stability region, and an error
that would be far below the tolerance if nothing were left of the component that contracts. The first is found by
Arnoldi's method with differences of f, the second by applying the method to y' = lambda y, the third by short steps.

Hairer, Wanner, "Solving Ordinary Differential Equations II", section IV.2 ("Stiffness detection"), estimates h |lambda|
from two stages of a step instead, which does not tell a contraction from an oscillation.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core import Method, Problem
from .rule import largest

if TYPE_CHECKING:
    from .adaptive import Adaptive

KRYLOV = 10  # differences of f: the spectrum of a small system, the extreme eigenvalues of a large one
DAMPED = 0.5  # the least part of |lambda| that is its real part: an oscillation is not stiff
FASTEST = 0.8  # of the largest |lambda|: the least that decides
GROWING = 0.5  # the part of |lambda| from which on something that grows is as fast
NEAR_BOUND = 0.8  # of the stability bound: accuracy alone seldom leaves steps there
RELAXING = 8  # steps of a quarter of the size, in which the fast component dies out
RELAXED = 0.3  # the largest ratio of error to tolerance after them, if accuracy is no limit
LARGEST_BOUND = 40.0  # of the methods' stability bounds that are told from infinity


@dataclass(frozen=True)
class Stiffness:
    """Steps of size `dt` are limited by stability: `eigenvalue` of df/dy, and the method's `bound` for |dt lambda|."""

    eigenvalue: complex
    bound: float
    dt: float

    def __str__(self) -> str:
        product, found = abs(self.eigenvalue) * self.dt, _number(self.eigenvalue)
        where = f"up to {self.bound:.2g}" if self.bound else "nowhere"
        return f"dt |lambda| is {product:.2g} for an eigenvalue {found} of df/dy, and the method is stable {where}"


def find_stiffness(p: Problem, control: Adaptive, t: float, y: Tensor, dt: float) -> Stiffness | None:
    """What makes steps of size dt from (t, y) as short as they are, if that is stability.

    Raises
    ------
    ArithmeticError
        If f is not finite beside y.
    """
    eigenvalue = decisive(eigenvalues(p, control, t, y), p.ts.sign)
    if eigenvalue is None or not dt > 0:
        return None
    try:
        bound = stability_bound(p.method, p.ts.sign * eigenvalue)
    except (RuntimeError, TypeError, ValueError):  # a method that is made for one state and nothing else
        return None
    if not (bound or p.stats.rejected):  # nothing has limited the steps so far
        return None
    limit = NEAR_BOUND * bound / abs(eigenvalue)
    if dt < limit or not is_slow(p, control, t, y, limit or dt):
        return None
    return Stiffness(eigenvalue, bound, dt)


def decisive(found: list[complex], sign: float) -> complex | None:
    """The largest eigenvalue that contracts in the direction of the solve, if nothing moves or grows as fast."""
    contracting = [x for x in found if x and sign * x.real <= -DAMPED * abs(x)]
    if not contracting:
        return None
    fastest = max(contracting, key=abs)
    moves, grows = max(map(abs, found)), max(sign * x.real for x in found)
    return fastest if abs(fastest) >= FASTEST * moves and grows <= GROWING * abs(fastest) else None


def eigenvalues(p: Problem, control: Adaptive, t: float, y: Tensor) -> list[complex]:
    """The eigenvalues of df/dy at (t, y), or approximations of the extreme ones, by Arnoldi's method.

    Components are measured in units of their tolerances. The start is random, and the same each time.

    Raises
    ------
    ArithmeticError
        If f is not finite beside y.
    """
    slope, size = _flat(p.f(t, y)), _flat(_sizes(p, control, y))
    small = math.sqrt(torch.finfo(y.dtype).eps)

    def times_jacobian(v: Tensor) -> Tensor:
        shift = small / largest(v).item() * size
        return (_flat(p.f(t, y + _state(shift * v, y))) - slope) / shift

    start = torch.from_numpy(np.random.default_rng(0).standard_normal(len(slope)))
    basis, rows = [start / torch.linalg.vector_norm(start)], list[list[float]]()
    for _ in range(min(KRYLOV, len(slope))):
        w = times_jacobian(basis[-1])
        length = torch.linalg.vector_norm(w).item()
        if not math.isfinite(length):
            raise ArithmeticError("f is not finite beside y")
        row = [0.0] * len(basis)
        for _ in range(2):  # orthogonal to rounding
            for i, v in enumerate(basis):
                part = torch.dot(v, w).item()
                row[i] += part
                w = w - part * v
        rest = torch.linalg.vector_norm(w).item()
        rows.append([*row, rest])
        if rest <= 10 * small * length:  # the differences resolve no more
            break
        basis.append(w / rest)
    n = len(rows)
    hessenberg = torch.zeros(n, n, dtype=torch.float64, device="cpu")
    for j, row in enumerate(rows):
        hessenberg[: j + 2, j] = torch.tensor(row[:n], dtype=torch.float64, device="cpu")
    return [complex(x) for x in torch.linalg.eigvals(hessenberg).tolist()]


def stability_bound(method: Method, eigenvalue: complex) -> float:
    """The largest r for which the method does not grow on y' = z y with step 1, |z| <= r and z / eigenvalue > 0.

    Zero where it grows however short the steps are, as leapfrog methods do unless z is imaginary.
    """
    sizes = torch.linspace(0, LARGEST_BOUND, 801, dtype=torch.float64, device="cpu")[1:]
    z = sizes * cmath.exp(1j * cmath.phase(eigenvalue))
    rows = _carried(method, z)
    columns = []
    for j in range(rows):
        unit = torch.zeros(rows, len(z), dtype=z.dtype, device=z.device)
        unit[j] = 1.0
        columns.append(_moved(method, z, unit))
    growth = torch.linalg.eigvals(torch.stack(columns, -1).movedim(0, 1)).abs().amax(-1)
    stable = growth <= 1 + 1e-6
    return (
        math.inf
        if bool(stable.all())
        else float(sizes[int(stable.to(torch.uint8).argmin())]) - float(sizes[0])
    )


def is_slow(p: Problem, control: Adaptive, t: float, y: Tensor, dt: float) -> bool:
    """Whether a step of size dt is far more accurate than it has to be once the fast component has died out."""
    short = p.ts.sign * dt / 4
    if abs(p.ts.values[-1] - t) < (RELAXING + 4) * abs(short):  # f is not evaluated beyond the end
        return True
    for _ in range(RELAXING):
        y = p.method.step(p.f, t, t + short, y).y1
        t += short
    return control.ratio(p.method.step(p.f, t, t + 4 * short, y)).item() <= RELAXED


def _carried(method: Method, z: Tensor) -> int:
    """How many numbers a step on y' = z y hands on for each component of y."""
    lift = getattr(method, "lift", None)
    return len(lift(lambda t, y: z * y, 0.0, torch.ones_like(z))) if lift else 1


def _moved(method: Method, z: Tensor, carry: Tensor) -> Tensor:
    """What one step of size 1 on y' = z y makes of what the step before handed on, `(rows, len(z))`."""
    resume = getattr(method, "resume", None)
    if resume:
        return resume(lambda t, y: z * y, 0.0, 1.0, carry).carry
    return method.step(lambda t, y: z * y, 0.0, 1.0, carry[0]).y1[None]


def _sizes(p: Problem, control: Adaptive, y: Tensor) -> Tensor:
    """The size of each component, as y: its tolerance, in units in which the largest is that of the state."""
    tolerance = (control.atol + control.rtol * y.abs()).expand(y.shape)
    tiny = torch.finfo(tolerance.dtype).tiny
    most = largest(tolerance).clamp(min=tiny)
    size = torch.maximum(torch.maximum(largest(y), largest(p.y0)), 1e3 * most)
    size = (tolerance / most * size).clamp(min=tiny)
    return torch.complex(size, size) if y.is_complex() else size


def _flat(x: Tensor) -> Tensor:
    """A state as a vector of real numbers: float64, on the host."""
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1).cpu().double()


def _state(v: Tensor, like: Tensor) -> Tensor:
    """A vector as a state; the inverse of `_flat`."""
    v = v.to(like.device, like.dtype.to_real())
    return torch.view_as_complex(v.reshape(*like.shape, 2)) if like.is_complex() else v.reshape(like.shape)


def _number(x: complex) -> str:
    return f"{x.real:.2g}" if abs(x.imag) < 0.01 * abs(x) else f"{x.real:.2g}{x.imag:+.2g}i"
