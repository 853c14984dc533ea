"""Random problems at rest, a little beside rest, and in motion: whose gradients are wrong, and who is told.

    python tests/random_rests.py [number of problems]

prints the figures that test_look.py asserts.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torchaca import SolverError, solve
from torchaca.errors import GradientWarning
from torchaca.gradients import look

DOUBLE = torch.float64
METHODS = {
    "dopri5": (-8, -1),
    "tsit5": (-8, -1),
    "dopri8": (-8, -1),
    "bosh3": (-6, -1),
    "heun_euler": (-3, -1),
}
"""The exponents of their tolerances."""

KINDS = ("rest", "small", "motion")


@dataclass(frozen=True)
class Random:
    """One problem: `f(t, y, a)` from `y0` over `span`; `kind` says whether it moves."""

    kind: str
    family: str
    f: Callable[..., Tensor]
    y0: Tensor
    a: Tensor
    span: float
    method: str
    rtol: float
    weights: Tensor

    @property
    def atol(self) -> float:
        return self.rtol * 1e-3

    def gradients(self, gradient: object = "aca", **options: object) -> list[Tensor]:
        """By y0 and by a, of `weights . y(span)`."""
        y0, a = self.y0.clone().requires_grad_(), self.a.clone().requires_grad_()
        given = {"method": self.method, "rtol": self.rtol, "atol": self.atol, **options}
        sol = solve(self.f, y0, [0.0, self.span], args=(a,), gradient=gradient, **given)
        return list(torch.autograd.grad((self.weights * sol.ys[-1]).sum(), (y0, a)))

    def off(self, found: list[Tensor], exact: list[Tensor]) -> float:
        """The larger relative error; that of y0 relative to the larger of the cotangents at both ends."""
        sizes = [max(exact[0].norm(), self.weights.norm()), exact[1].norm()]
        errors = [
            ((x - y).norm() / size).item()
            for x, y, size in zip(found, exact, sizes, strict=True)
            if size > 1e-12
        ]
        return max(errors) if all(map(math.isfinite, errors)) else math.inf


def problems(n: int, seed: int = 0) -> Iterator[Random]:
    """Families in turn, in each kind of motion, with methods and tolerances at random; all of them rest at zero."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=draw, dtype=DOUBLE).item()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=DOUBLE)

    for i in range(n):
        family, kind = list(FAMILIES)[i % len(FAMILIES)], KINDS[(i // len(FAMILIES)) % 3]
        rest, f, shape = FAMILIES[family](uniform, normal)
        method = list(METHODS)[int(uniform(0, len(METHODS)))]
        rtol = 10 ** uniform(*METHODS[method])
        off = {"rest": 0.0, "small": 1e-3 * rtol * 10 ** uniform(-4, 0.5), "motion": uniform(0.3, 2.0)}[kind]
        y0, force = rest + off * normal(*rest.shape), uniform(0.5, 2.0) if kind == "motion" else 0.0
        a, span = torch.full(shape, force, dtype=DOUBLE), 10 ** uniform(0.3, 1.3)
        span = min(span, 4.0) if family == "unstable" else span
        if kind == "motion" and family == "prey":
            y0 = y0.clamp(min=-0.9, max=2.0)  # populations stay above zero
        yield Random(kind, family, f, y0, a, span, method, rtol, normal(*rest.shape))


def _oscillator(uniform, normal):
    w, damping, force = uniform(0.5, 4.0), uniform(0.0, 0.3), uniform(0.5, 5.0)

    def f(t, y, a):
        return torch.stack([y[1], -w * w * y[0] - damping * y[1] + a * torch.cos(force * t)])

    return torch.zeros(2, dtype=DOUBLE), f, ()


def _prey(uniform, normal):
    k = uniform(0.5, 2.0)

    def f(t, y, a):
        return torch.stack([-k * (1 + y[0]) * y[1] + 0.1 * a * torch.sin(t), (1 + y[1]) * y[0]])

    return torch.zeros(2, dtype=DOUBLE), f, ()


def _linear(uniform, normal):
    n = int(uniform(2, 6))
    matrix = normal(n, n) / math.sqrt(n)
    matrix = matrix - (torch.linalg.eigvals(matrix).real.max() + uniform(0.0, 0.5)) * torch.eye(
        n, dtype=DOUBLE
    )
    push, w = normal(n), uniform(0.3, 4.0)
    return torch.zeros(n, dtype=DOUBLE), lambda t, y, a: matrix @ y + a * torch.cos(w * t) * push, ()


def _net(uniform, normal):
    gain, n = 10 ** uniform(-0.5, 0.6), 3
    first, last = gain * normal(8, n) / math.sqrt(n), normal(n, 8) / math.sqrt(8)
    return (
        torch.zeros(n, dtype=DOUBLE),
        lambda t, y, a: last @ torch.tanh(first @ y + a * torch.sin(t)) - y,
        (8,),
    )


def _compartments(uniform, normal):
    k = [uniform(0.3, 3.0) for _ in range(3)]

    def f(t, y, a):
        return torch.stack(
            [a * torch.exp(-t) - (k[0] + k[1]) * y[0] + k[2] * y[1], k[1] * y[0] - k[2] * y[1]]
        )

    return torch.zeros(2, dtype=DOUBLE), f, ()


def _unstable(uniform, normal):
    k = uniform(0.5, 2.0)
    return (
        torch.zeros(2, dtype=DOUBLE),
        lambda t, y, a: torch.stack([y[1], k * torch.sin(y[0]) + a * torch.cos(t)]),
        (),
    )


def _stiff(uniform, normal):
    k = 10 ** uniform(0.5, 2.0)
    return (
        torch.zeros(2, dtype=DOUBLE),
        lambda t, y, a: torch.stack([-k * (y[0] - a * torch.sin(t)), y[0] - y[1]]),
        (),
    )


FAMILIES = {
    "oscillator": _oscillator,
    "prey": _prey,
    "linear": _linear,
    "net": _net,
    "compartments": _compartments,
    "unstable": _unstable,
    "stiff": _stiff,
}


@dataclass
class Judged:
    """How far a problem's gradient is off without the cure and with it, and whether somebody was warned of each."""

    problem: Random
    ignored: float
    warned: bool
    resolved: float
    warned_resolved: bool


def judged(problem: Random, gradient: object = "aca") -> Judged | None:
    """Solve without the cure and with it, and exactly; None where a loose tolerance has no solution."""
    tight = {
        "method": "dopri8",
        "rtol": 1e-9,
        "atol": 1e-13 * min(1.0, problem.atol / 1e-9),
        "max_steps": 100_000,
    }
    try:
        exact = problem.gradients("direct", dt_max=problem.span / 40, **tight)
    except SolverError:
        return None
    found = []
    for at_rest in ("ignore", "resolve"):
        look._TOLD.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                grads = problem.gradients(gradient, at_rest=at_rest)
            except SolverError:
                return None
        said = any(issubclass(w.category, GradientWarning) for w in caught)
        found += [problem.off(grads, exact), said]
    return Judged(problem, *found)


@dataclass
class Figures:
    """What is counted: `(how many, of how many)`."""

    wrong: tuple[int, int] = (0, 0)
    right: tuple[int, int] = (0, 0)
    cured: tuple[int, int] = (0, 0)
    right_cured: tuple[int, int] = (0, 0)


def figures(rows: list[Judged]) -> Figures:
    """Warned of those that are off by half at rest or below atol; warned of those right to 3 %; cured ones."""
    wrong = [r for r in rows if r.problem.kind != "motion" and r.ignored > 0.5]
    right = [r for r in rows if r.ignored < 0.03]
    resting = [r for r in rows if r.problem.kind == "rest"]
    calm = [r for r in rows if r.resolved < 0.03]
    return Figures(
        (sum(r.warned for r in wrong), len(wrong)),
        (sum(r.warned for r in right), len(right)),
        (sum(r.resolved < 0.2 for r in resting), len(resting)),
        (sum(r.warned_resolved for r in calm), len(calm)),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for problem in problems(int(sys.argv[1]) if len(sys.argv) > 1 else 1000):
        row = judged(problem)
        if row is None:
            continue
        rows.append(row)
        p = row.problem
        odd = (p.kind != "motion" and row.ignored > 0.5 and not row.warned) or (
            row.ignored < 0.03 and row.warned
        )
        odd = (
            odd
            or (row.resolved < 0.03 and row.warned_resolved)
            or (p.kind == "rest" and row.resolved > 0.2 and not row.warned_resolved)
        )
        if odd:
            print(
                f"{p.kind:7s} {p.family:13s} {p.method:10s} rtol {p.rtol:.1e} span {p.span:.3g}: {row.ignored:.2g} "
                f"{'warned' if row.warned else 'silent'}; resolved {row.resolved:.2g} "
                f"{'warned' if row.warned_resolved else 'silent'}"
            )
    counted = figures(rows)
    print(f"{len(rows)} problems")
    print("off by half at rest or below atol, at_rest='ignore': warned {} of {}".format(*counted.wrong))
    print("right to 3 %, at_rest='ignore': warned {} of {}".format(*counted.right))
    print("right to 3 %, at_rest='resolve': warned {} of {}".format(*counted.right_cured))
    print("at rest, at_rest='resolve': off by less than 20 %, or warned, {} of {}".format(*counted.cured))
