"""A solve beside its floor: the same evaluations of f, and the same vector-Jacobian products, without a solver.

Used by `overhead.py`. The fields are as wide as it takes for one call to last a given time on the machine at hand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torchaca as aca

SPAN = (0.0, 10.0)
METHODS: dict[str, dict[str, Any]] = {
    "dopri5": {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6},
    "heun_euler": {"method": "heun_euler", "rtol": 1e-3, "atol": 1e-3},
    "rk4, n_steps=20": {"method": "rk4", "n_steps": 20},
}
GRADIENTS: dict[str, Any] = {
    "aca": "aca",
    'ACA(checkpoints="all")': aca.ACA(checkpoints="all"),
    'ACA(checkpoints="none")': aca.ACA(checkpoints="none"),
    "direct": "direct",
}


class Field(nn.Module):
    """A network as f(t, y), which counts the vector-Jacobian products that go through it while `counting`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.counting, self.products = net, False, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        k = self.net(y)
        if self.counting and k.requires_grad:
            k.register_hook(self._count)
        return k

    def _count(self, _: Tensor) -> None:
        self.products += 1


@dataclass(frozen=True)
class Kind:
    """A family of fields: what it is, and a member of a given size with its state."""

    name: str
    build: Callable[[int], tuple[Field, Tensor]]


def mlp(width: int) -> tuple[Field, Tensor]:
    """An MLP with three hidden layers on a state of 32x16."""
    hidden = [nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    net = nn.Sequential(*hidden, nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 16))
    return Field(net), torch.randn(32, 16)


def conv(batch: int) -> tuple[Field, Tensor]:
    """Two convolutions of 32 channels on a state of (batch)x32x8x8."""
    layers = [nn.Conv2d(32, 32, 3, padding=1), nn.Tanh(), nn.Conv2d(32, 32, 3, padding=1)]
    return Field(nn.Sequential(*layers)), torch.randn(batch, 32, 8, 8)


KINDS = (Kind("MLP", mlp), Kind("conv", conv))


def calibrated(kind: Kind, seconds: float) -> tuple[Field, Tensor, float]:
    """The smallest member of the family whose call takes that long, its state, and how long its call takes."""
    size = 1
    while True:
        torch.manual_seed(0)
        field, y = kind.build(size)
        took = _call(field, y)
        if took >= seconds:
            return field, y, took
        size = max(size + 1, round(1.15 * size))


def _call(field: Field, y: Tensor) -> float:
    t, times = torch.tensor(0.0), []
    with torch.no_grad():
        for _ in range(15):
            start = time.perf_counter()
            field(t, y)
            times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def compared(field: Field, y: Tensor, gradient: Any, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Medians over interleaved rounds of a solve and of its floor, the first round thrown away."""
    y0 = y.clone().requires_grad_()

    def solve() -> aca.Solution:
        return aca.solve(field, y0, SPAN, gradient=gradient, **options)

    field.products, field.counting = 0, True
    counted = solve()
    counted.ys[-1].sum().backward()
    field.counting = False
    calls, products, keeps = counted.stats.nfe, field.products, counted.stats.nfe_backward == 0
    times: dict[str, list[float]] = {name: [] for name in ("forward", "both", "bare", "bare both")}
    for _ in range(rounds + 1):
        field.zero_grad()
        y0.grad = None
        start = time.perf_counter()
        y1 = solve().ys[-1].sum()
        middle = time.perf_counter()
        y1.backward()
        times["both"].append(time.perf_counter() - start)
        times["forward"].append(middle - start)
        start = time.perf_counter()
        middle = bare(field, y0.detach().requires_grad_(), calls, products, keeps)
        times["bare both"].append(time.perf_counter() - start)
        times["bare"].append(middle - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {
        "steps": counted.stats.accepted,
        "trials": counted.stats.accepted + counted.stats.rejected,
        "forward, ms": 1e3 * medians["forward"],
        "forward + backward, ms": 1e3 * medians["both"],
        "forward / floor": medians["forward"] / medians["bare"],
        "forward + backward / floor": medians["both"] / medians["bare both"],
    }


def bare(field: Field, y: Tensor, calls: int, products: int, keeps: bool) -> float:
    """The calls, then the products; `keeps`: of graphs kept from the calls, else of calls made again.

    Returns when the calls were done.
    """
    t, inputs, kept = torch.tensor(0.0), [y, *field.parameters()], []
    with torch.set_grad_enabled(keeps):
        for _ in range(calls):
            k = field(t, y)
            if keeps:
                kept.append(k)
    middle = time.perf_counter()
    for _ in range(products):
        k = kept.pop() if keeps else field(t, y)
        torch.autograd.grad(k, inputs, k)
    return middle


def rows(rounds: int) -> list[dict[str, Any]]:
    """The table: fields of 100 us and of 1 ms, by method and gradient."""
    found = []
    for kind in KINDS:
        for target in (1e-4, 1e-3):
            field, y, took = calibrated(kind, target)
            for method, options in METHODS.items():
                for name, gradient in GRADIENTS.items():
                    head = {"f": f"{kind.name}, {1e6 * took:.0f} us", "method": method, "gradient": name}
                    found.append({**head, **compared(field, y, gradient, options, rounds)})
    return found
