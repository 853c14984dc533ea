"""Whatever has the members of `Staged` is compiled: a Butcher table of your own, and a method that is no table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from backends import without_code
from butcher_tables import BARE, KUTTA3, OWN
from compiled_helpers import Net, assert_equal, both

from torchaca import RungeKutta, solve
from torchaca.field.precision import estimate_floor
from torchaca.methods import HEUN_EULER, METHODS
from torchaca.methods.length import fraction
from torchaca.methods.staged import staged
from torchaca.numbers import combined

TIMES = [0.0, 0.3, 0.31, 1.0, 1.7, 2.0]


def solved(method, how):
    torch.manual_seed(0)
    f, y0 = Net(), torch.randn(3, 2, dtype=torch.float64)
    steps = {"rtol": 1e-2, "atol": 1e-3} if method.adaptive else {"n_steps": 5}
    return both(f, y0, TIMES, tuple(f.parameters()), how, method=method, **steps)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("how", ["loops", "steps"], ids=["loops", "steps"])
@pytest.mark.parametrize("name", BARE)
def test_a_butcher_table_equals_the_eager_loop(name, how):
    assert_equal(*solved(BARE[name], how), 1e-11)


@pytest.mark.parametrize(
    ("name", "how"),
    [("ralston3", "steps"), *(pytest.param(name, "loops", marks=pytest.mark.slow) for name in OWN)],
)
def test_a_butcher_table_is_compiled(name, how, monkeypatch):
    if how == "steps":
        without_code("aot_eager", monkeypatch)
    assert_equal(*solved(OWN[name], how), 1e-11)


# --- a method of somebody else's, with the same facts ---


@dataclass(frozen=True)
class Trapezium:
    """Heun's method of order 2 with Euler's as the embedded one, written out; no Runge-Kutta table in sight."""

    name: str = "trapezium"
    order: int = 2
    adaptive: bool = True
    stages: int = 2
    fsal: bool = False
    dense_stages: int = 2
    f1_index: int | None = None
    error_weights: Sequence[float] = (-0.5, 0.5)

    def step(self, f, t0, t1, y0, hint=None):
        return TrapeziumStep(self, f, t0, t1, y0, () if hint is None else (hint,))

    def complete(self, f, t0, t1, y0, stages, y1=None, error=None):
        return TrapeziumStep(self, f, t0, t1, y0, stages, y1, error)

    def basis_weights(self, theta):
        return torch.stack([torch.ones_like(theta), theta - theta**2 / 2, theta**2 / 2], 1)

    def f1_weights(self, t0, t1, times):
        return None


class TrapeziumStep:
    hint = None

    def __init__(self, method, f, t0, t1, y0, stages, y1=None, error=None):
        self.method, self.t0, self.t1, self.y0 = method, t0, t1, y0
        self.h = torch.as_tensor(t1 - t0, dtype=torch.float64).to(y0.dtype)
        self.known = list(stages)
        if not self.known:
            self.known.append(f(t0, y0))
        if len(self.known) < 2:
            self.known.append(f(t1, y0 + self.h * self.known[0]))
        k, l = self.known  # noqa: E741
        self.f0 = k
        self.y1 = y0 + self.h * (k + l) / 2 if y1 is None else y1
        self.error = self.h * (l - k) / 2 if error is None else error

    def basis(self):
        return torch.stack([self.y0, *(self.h * k for k in self.known)])

    def at(self, times):
        return combined(self.method.basis_weights(fraction(self.t0, self.t1, times)), self.basis())


def test_which_methods_are_staged():
    names = {name for name, method in METHODS.items() if staged(method) is not None}
    assert names == {name for name, method in METHODS.items() if isinstance(method, RungeKutta)}
    assert staged(Trapezium()) is not None


def test_it_is_heun_s_method():
    eager: Any = [solved(method, False)[0][0] for method in (Trapezium(), HEUN_EULER)]
    torch.testing.assert_close(eager[0].ys, eager[1].ys, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("how", ["loops", "steps"], ids=["loops", "steps"])
def test_it_equals_the_eager_loop(how):
    assert_equal(*solved(Trapezium(), how))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loops", "steps"], ids=["loops", "steps"])
def test_it_is_compiled(how):
    assert_equal(*solved(Trapezium(), how))


def test_its_floor_of_tolerances_is_that_of_its_weights():
    assert estimate_floor(Trapezium(), 2.0**-8) == pytest.approx(
        estimate_floor(HEUN_EULER, 2.0**-8), rel=1e-9
    )


@pytest.mark.parametrize("method", [Trapezium(), KUTTA3, "alf", "reversible_heun"], ids=str)
def test_inside_somebody_s_compile_it_is_the_eager_solve(method):
    """Steps of methods with a carry are not unrolled, which would start each of them afresh."""
    y0 = torch.linspace(0.5, 1, 3, dtype=torch.float64)

    def ends(y0):
        return solve(lambda t, y: -y * torch.cos(t), y0, [0.0, 1.0], method=method, n_steps=4).ys[-1]

    found = torch.compile(ends, backend="aot_eager")(y0)
    torch.testing.assert_close(found, ends(y0), rtol=1e-14, atol=1e-14)
