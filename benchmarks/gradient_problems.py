"""Problems on which gradients are wrong where values are right, and problems on which they are not. Used by
`gradient_control.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import torchaca as aca
from torchaca.lab.three_body.problem import ThreeBody, initial_state

DOUBLE = torch.float64


@dataclass(frozen=True)
class Problem:
    """A solve, a loss of its outputs `(n, *y0.shape)`, and the inputs whose gradients count, y0 among them or not.

    `kind`: "rest" where the state does not move at first, "stiff", or ""; the truth takes steps of at most the time
    span over `shortest`.
    """

    name: str
    f: Callable[[Any, Tensor], Tensor]
    y0: Tensor
    inputs: Sequence[Tensor]
    t: Sequence[float]
    loss: Callable[[Tensor], Tensor]
    rtol: float = 1e-6
    atol: float = 1e-9
    kind: str = ""
    method: str = "dopri5"
    shortest: int = 150
    options: dict[str, Any] = field(default_factory=dict)

    def gradient(self, gradient: Any, **options: Any) -> Measured:
        """Solve and differentiate; evaluations are those of both passes."""
        given = {"method": self.method, "rtol": self.rtol, "atol": self.atol, **self.options, **options}
        sol = aca.solve(self.f, self.y0, list(self.t), gradient=gradient, **given)
        found = torch.autograd.grad(self.loss(sol.ys), list(self.inputs), allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found, strict=True)]
        stats = sol.stats
        return Measured(grads, stats.nfe + stats.nfe_backward, stats.accepted, stats.gradient_error)

    def truth(self) -> list[Tensor]:
        """The gradients by short steps at a tight tolerance."""
        span = abs(self.t[-1] - self.t[0])
        tight = {"rtol": 1e-11, "atol": 1e-13, "dt_max": span / self.shortest, "max_steps": 200_000}
        return self.gradient("aca", **{**tight, "method": "dopri8"}).grads


@dataclass(frozen=True)
class Measured:
    """Gradients and what they took: evaluations, steps of the outputs, and what they say of their own error."""

    grads: list[Tensor]
    evaluations: int
    steps: int
    estimate: float | None


def error(grads: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest relative error over inputs; what is rounding beside the largest gradient does not count."""
    sizes = [g.norm().item() for g in truth]
    least = 1e-12 * max(sizes)
    errors = [
        (a - b).norm().item() / max(size, least, 1e-300)
        for a, b, size in zip(grads, truth, sizes, strict=True)
    ]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def leaf(*numbers: float) -> Tensor:
    """A vector, or a 0-dim tensor."""
    return torch.tensor(numbers if len(numbers) > 1 else numbers[0], dtype=DOUBLE, requires_grad=True)


def weights(gen: torch.Generator, *sizes: int, gain: float = 1.0) -> list[Tensor]:
    """Of a network with these layers: matrices and offsets."""
    found = []
    for fan, out in pairwise(sizes):
        for shape in ((fan, out), (out,)):
            w = (torch.rand(*shape, generator=gen, dtype=DOUBLE) * 2 - 1) * gain / math.sqrt(fan)
            found.append(w.requires_grad_())
    return found


def prey(t: Any, y: Tensor) -> Tensor:
    """Lotka and Volterra's, at rest in (1, 1)."""
    return torch.stack([y[0] - y[0] * y[1], -y[1] + y[0] * y[1]])


def first(ys: Tensor) -> Tensor:
    """The first number of the last output."""
    return ys[-1].reshape(-1)[0]


def at_rest() -> Iterator[Problem]:
    """Models that do not move, or not yet."""
    a, zero = leaf(0.0), torch.zeros(2, dtype=DOUBLE)

    def swing(t: Any, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + a * torch.cos(3 * t)])

    for T in (3.0, 10.0, 20.0, 50.0):
        yield Problem(f"oscillator at rest, T = {T:g}", swing, zero, [a], [0.0, T], first, kind="rest")
    for T in (3.0, 10.0, 20.0, 50.0):
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        yield Problem(f"prey at rest, T = {T:g}", prey, y0, [y0], [0.0, T], first, kind="rest")
    u = leaf(0.0, 0.0)

    def before(t: Any, y: Tensor) -> Tensor:
        return torch.stack([u[0] + u[1] * torch.sin(t) - 2.0 * y[0] + 0.5 * y[1], 0.8 * y[0] - 0.5 * y[1]])

    for T in (10.0, 30.0):
        yield Problem(
            f"two compartments before the dose, T = {T:g}", before, zero, [u], [0.0, T],
            lambda ys: ys[-1, 0] + 2 * ys[-1, 1], kind="rest",
        )  # fmt: skip
    source, cold = leaf(*[0.0] * 16), torch.zeros(16, dtype=DOUBLE)
    laplace = (torch.diag(torch.full((15,), 1.0), 1) + torch.diag(torch.full((15,), 1.0), -1)).double()
    laplace = 16.0**2 * (laplace - 2 * torch.eye(16, dtype=DOUBLE))
    yield Problem(
        "heat on 16 cells at rest", lambda t, y: laplace @ y + source, cold, [source], [0.0, 1.0],
        lambda ys: ys[-1].sum(), kind="rest", shortest=1500,
    )  # fmt: skip
    length, hanging = leaf(1.0), torch.zeros(2, dtype=DOUBLE, requires_grad=True)

    def pendulum(t: Any, y: Tensor) -> Tensor:
        return torch.stack([y[1], -9.81 / length * torch.sin(y[0]) - 0.1 * y[1]])

    yield Problem("pendulum at rest", pendulum, hanging, [hanging], [0.0, 8.0], first, kind="rest")
    gen = torch.Generator().manual_seed(3)
    hidden = weights(gen, 3, 16)
    last = torch.zeros(16, 3, dtype=DOUBLE, requires_grad=True)
    still = torch.tensor([0.3, -0.2, 0.5], dtype=DOUBLE, requires_grad=True)

    def silent(t: Any, y: Tensor) -> Tensor:
        return torch.tanh(y @ hidden[0] + hidden[1]) @ last - 2.0 * (y - still.detach())

    yield Problem(
        "net with zero weights", silent, still, [still, last], [0.0, 10.0],
        lambda ys: ys[-1].square().sum(), kind="rest",
    )  # fmt: skip
    kick = leaf(1.0)

    def pulse(t: Any, y: Tensor) -> Tensor:
        force = kick * torch.exp(-0.5 * ((t - 6.0) / 0.05) ** 2)
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + force])

    yield Problem("rest, then a pulse", pulse, zero, [kick], [0.0, 20.0], first, kind="rest")
    fast = leaf(0.0)
    yield Problem(
        "y' = a cos 50 t at a = 0", lambda t, y: fast * torch.cos(50 * t) + 0 * y,
        torch.zeros(1, dtype=DOUBLE), [fast], [0.0, 1.0], first, kind="rest",
    )  # fmt: skip
    theta = leaf(0.3)
    yield Problem(
        "y' = (t - theta)^4", lambda t, y: (t - theta) ** 4 + 0 * y, torch.zeros(1, dtype=DOUBLE), [theta],
        [0.0, 2.0], first,
    )  # fmt: skip


def moving() -> Iterator[Problem]:
    """Models that move."""
    system, start = ThreeBody(torch.ones(3, dtype=DOUBLE)), initial_state()
    for tol in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        yield Problem(
            f"three bodies, {tol:g}", system, start, [system.masses], [0.0, 1.0],
            lambda ys: ys[-1, :3].square().sum(), tol, tol,
        )  # fmt: skip
    mu = leaf(10.0)

    def van_der_pol(t: Any, y: Tensor) -> Tensor:
        return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    for tol in (1e-4, 1e-6):
        yield Problem(
            f"van der Pol, mu = 10, {tol:g}", van_der_pol, torch.tensor([2.0, 0.0], dtype=DOUBLE), [mu],
            [0.0, 20.0], lambda ys: ys[-1, 0] ** 2, tol, tol, kind="stiff",
        )  # fmt: skip
    s = leaf(10.0, 28.0, 8 / 3)

    def lorenz(t: Any, y: Tensor) -> Tensor:
        return torch.stack([s[0] * (y[1] - y[0]), y[0] * (s[1] - y[2]) - y[1], y[0] * y[1] - s[2] * y[2]])

    for tol in (1e-4, 1e-6):
        y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        yield Problem(
            f"Lorenz to T = 5, {tol:g}",
            lorenz,
            y0,
            [y0, s],
            [0.0, 5.0],
            lambda ys: ys[-1].square().sum(),
            tol,
            tol,
        )
    gen = torch.Generator().manual_seed(0)
    small = weights(gen, 2, 50, 2)
    y0 = torch.randn(16, 2, generator=gen, dtype=DOUBLE).requires_grad_()
    yield Problem(
        "small MLP", lambda t, y: torch.tanh(y**3 @ small[0] + small[1]) @ small[2] + small[3], y0, [y0, *small],
        [0.0, 10.0], lambda ys: ys[-1].square().mean(), 1e-6, 1e-6,
    )  # fmt: skip
    middle = weights(gen, 64, 64, 64)
    z0 = torch.randn(128, 64, generator=gen, dtype=DOUBLE).requires_grad_()
    yield Problem(
        "middle MLP", lambda t, y: torch.tanh(y @ middle[0] + middle[1]) @ middle[2] + middle[3], z0, [z0, *middle],
        [0.0, 1.0], lambda ys: ys[-1].square().mean(), 1e-5, 1e-5,
    )  # fmt: skip
    yield node18()


def node18() -> Problem:
    """A block of NODE18 at reduced width, at the paper's tolerance."""
    from torchaca.lab.cifar_node.models import Dynamics

    torch.manual_seed(0)
    block = Dynamics(8, 0.1).double()
    z0 = torch.randn(4, 8, 8, 8, dtype=DOUBLE).requires_grad_()
    return Problem(
        "NODE18 block, width 8", block, z0, [z0, *block.parameters()], [0.0, 1.0],
        lambda ys: ys[-1].square().mean(), 1e-2, 1e-2, method="heun_euler",
    )  # fmt: skip


def some(gen: torch.Generator, low: float, high: float) -> float:
    """A number between these, evenly in its logarithm."""
    x = torch.rand((), generator=gen, dtype=DOUBLE).item()
    return low * (high / low) ** x


def one_of(gen: torch.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=gen))]


def random_problem(seed: int) -> Problem:
    """A random problem: of which family, how it starts, its method and its tolerance."""
    gen = torch.Generator().manual_seed(seed)
    family = one_of(gen, list(FAMILIES))
    method = one_of(gen, ["dopri5", "dopri5", "tsit5", "bosh3", "heun_euler", "dopri8"])
    low = 1e-5 if method in ("bosh3", "heun_euler") else 1e-8
    rtol = some(gen, low, 1e-2)
    atol = rtol * one_of(gen, [1.0, 1e-1, 1e-3])
    name, f, y0, inputs, T, kind = FAMILIES[family](gen)
    loss = one_of(gen, [first, lambda ys: ys[-1].square().sum(), lambda ys: (ys[-1] - 0.3).square().mean()])
    if kind == "rest":
        loss = first
    several = one_of(gen, [False, False, True])
    times = [0.0, 0.37 * T, 0.61 * T, T] if several else [0.0, T]
    return Problem(f"{seed}: {name}", f, y0, inputs, times, loss, rtol, atol, kind, method)


def random_net(gen: torch.Generator) -> Any:
    n, gain = one_of(gen, [2, 3, 5]), some(gen, 0.3, 8.0)
    w = weights(gen, n, 16, n, gain=gain)
    y0 = torch.randn(n, generator=gen, dtype=DOUBLE).requires_grad_()
    return (
        f"net of gain {gain:.2g}",
        lambda t, y: torch.tanh(y @ w[0] + w[1]) @ w[2] + w[3],
        y0, [y0, *w], some(gen, 0.5, 8.0), "",
    )  # fmt: skip


def random_linear(gen: torch.Generator) -> Any:
    n = one_of(gen, [1, 2, 4])
    m = (torch.randn(n, n, generator=gen, dtype=DOUBLE) - 0.5 * torch.eye(n, dtype=DOUBLE)).requires_grad_()
    y0 = torch.randn(n, generator=gen, dtype=DOUBLE).requires_grad_()
    return "linear", lambda t, y: m @ y, y0, [y0, m], some(gen, 0.5, 5.0), ""


def random_oscillator(gen: torch.Generator) -> Any:
    rest = one_of(gen, [0.0, 0.0, 1e-10, 1e-6, 1.0])
    omega, damping, force = leaf(some(gen, 0.5, 4.0)), leaf(some(gen, 0.02, 0.5)), leaf(rest * 0.3)
    speed = some(gen, 0.5, 6.0)
    y0 = (rest * torch.randn(2, generator=gen, dtype=DOUBLE)).requires_grad_()

    def f(t: Any, y: Tensor) -> Tensor:
        return torch.stack([y[1], -(omega**2) * y[0] - damping * y[1] + force * torch.cos(speed * t)])

    inputs = [y0, force] if rest < 1 else [y0, force, omega, damping]
    return f"oscillator, {rest:g}", f, y0, inputs, some(gen, 2.0, 30.0), "rest" if rest == 0 else ""


def random_stiff(gen: torch.Generator) -> Any:
    k, a = leaf(some(gen, 20.0, 400.0)), leaf(some(gen, 0.5, 2.0))
    y0 = torch.randn(2, generator=gen, dtype=DOUBLE)

    def f(t: Any, y: Tensor) -> Tensor:
        return torch.stack([-k * (y[0] - torch.cos(t)), a * y[0] - 0.3 * y[1]])

    return "stiff", f, y0, [k, a], some(gen, 0.5, 3.0), "stiff"


def random_prey(gen: torch.Generator) -> Any:
    off = one_of(gen, [0.0, 0.0, 1e-9, 1e-5, 0.5])
    y0 = (1 + off * torch.randn(2, generator=gen, dtype=DOUBLE).abs()).requires_grad_()
    return f"prey, {off:g} off its rest", prey, y0, [y0], some(gen, 2.0, 25.0), "rest" if off == 0 else ""


def random_unstable(gen: torch.Generator) -> Any:
    off = one_of(gen, [0.0, 0.0, 1e-8, 1e-3])
    y0 = torch.tensor([off, -off], dtype=DOUBLE, requires_grad=True)
    rate = some(gen, 0.3, 2.0)

    def f(t: Any, y: Tensor) -> Tensor:
        return torch.stack([rate * torch.sin(y[0]) + 0.2 * y[1], 0.3 * torch.sin(y[0]) - 0.5 * y[1]])

    return f"unstable, {off:g}", f, y0, [y0], some(gen, 1.0, 8.0), "rest" if off == 0 else ""


def random_pharmacology(gen: torch.Generator) -> Any:
    k, dose, when = leaf(1.2, 0.8, 0.5), leaf(some(gen, 0.5, 5.0)), some(gen, 1.0, 10.0)
    width = some(gen, 0.2, 1.0)

    def f(t: Any, y: Tensor) -> Tensor:
        pulse = dose * torch.exp(-0.5 * ((t - when) / width) ** 2) / width
        return torch.stack([pulse - (k[0] + k[1]) * y[0] + k[2] * y[1], k[1] * y[0] - k[2] * y[1]])

    return "dose", f, torch.zeros(2, dtype=DOUBLE), [k, dose], when + some(gen, 1.0, 5.0), ""


def random_logistic(gen: torch.Generator) -> Any:
    r, limit = leaf(some(gen, 0.3, 3.0)), leaf(some(gen, 1.0, 20.0))
    y0 = torch.tensor([some(gen, 0.01, 2.0)], dtype=DOUBLE, requires_grad=True)
    return "logistic", lambda t, y: r * y * (1 - y / limit), y0, [y0, r, limit], some(gen, 1.0, 15.0), ""


def random_relaxation(gen: torch.Generator) -> Any:
    mu = leaf(some(gen, 0.3, 6.0))
    y0 = torch.tensor([2.0, 0.0], dtype=DOUBLE, requires_grad=True)

    def f(t: Any, y: Tensor) -> Tensor:
        return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    return "van der Pol", f, y0, [y0, mu], some(gen, 2.0, 12.0), ""


def random_lorenz(gen: torch.Generator) -> Any:
    s = leaf(10.0, some(gen, 5.0, 28.0), 8 / 3)
    y0 = torch.randn(3, generator=gen, dtype=DOUBLE).requires_grad_()

    def f(t: Any, y: Tensor) -> Tensor:
        return torch.stack([s[0] * (y[1] - y[0]), y[0] * (s[1] - y[2]) - y[1], y[0] * y[1] - s[2] * y[2]])

    return "Lorenz", f, y0, [y0, s], some(gen, 0.5, 3.0), ""


FAMILIES: dict[str, Callable[[torch.Generator], Any]] = {
    "net": random_net,
    "linear": random_linear,
    "oscillator": random_oscillator,
    "stiff": random_stiff,
    "prey": random_prey,
    "unstable": random_unstable,
    "dose": random_pharmacology,
    "logistic": random_logistic,
    "van der Pol": random_relaxation,
    "Lorenz": random_lorenz,
}
