"""How long a step may be for its derivative: read off the tableau, against polynomials and a table made otherwise."""

import gc
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from torchaca.methods import HEUN_EULER, METHODS, RungeKutta
from torchaca.methods.stability import _MEASURED, first, stability

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=str)

# kappa, gamma, theta: 0.6 of the |z| where the derivative is off by 1 %, as an independent prototype found them
TABLE = {
    "heun_euler": (3.6, 5.5, 0.6 * 0.40),
    "bosh3": (0.5, 10.0, 0.6 * 0.71),
    "dopri5": (0.9, 55.0, 0.6 * 1.63),
    "tsit5": (0.6, 46.0, 0.6 * 1.75),
    "dopri8": (2.3, 1760.0, 0.6 * 3.4),
    "rk4": (1.0, 10.0, 0.6 * 1.04),
}


def grown(method, z: complex) -> complex:
    """y1 / y0 of y' = lambda y; of Runge-Kutta methods from the tableau, in exact coefficients."""
    if not isinstance(method, RungeKutta):  # ALF and reversible Heun from y alone, written out in their files
        return 1 + z + z * z / 2
    stages, total, power = [Fraction(1)] * len(method.weights), 1 + 0j, 1 + 0j
    while any(stages):
        power *= z
        total += float(sum(b * x for b, x in zip(method.weights, stages, strict=True))) * power
        stages = [
            sum((a * x for a, x in zip(row, stages, strict=False)), Fraction(0))
            for row in method.matrix[: len(stages)]
        ]
    return total


def off(method, z: complex) -> float:
    right = math.e**z
    return abs(grown(method, z) - right) / max(1.0, abs(right))


@every_method
def test_a_step_of_length_theta_is_good_for_its_derivative(method):
    theta = stability(method).theta
    errors = {axis: off(method, theta * axis) for axis in (-1, 1j, 1)}
    assert max(errors.values()) < 0.01, errors
    assert max(off(method, theta / 0.6 * axis) for axis in (-1, 1j, 1)) == pytest.approx(0.01, rel=0.05)


@every_method
def test_gamma_is_the_growth_where_the_growing_axis_is_poor(method):
    gamma = stability(method).gamma / (2 if method.order < 4 else 1)
    low, high = 0.0, 20.0
    for _ in range(60):  # the first place: R is below e^z, and falls behind ever more
        middle = (low + high) / 2
        low, high = (middle, high) if off(method, middle) < 0.1 else (low, middle)
    assert gamma == pytest.approx(abs(grown(method, low)), rel=0.01)


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    kappa, gamma, theta = TABLE[name]
    found = stability(METHODS[name])
    assert found.theta == pytest.approx(theta, rel=0.03)
    assert found.gamma == pytest.approx(gamma, rel=0.05)
    assert found.kappa == pytest.approx(kappa, rel=0.2)  # the prototype's are means over matrices


@pytest.mark.parametrize("method", [m for m in METHODS.values() if not m.adaptive], ids=str)
def test_a_step_without_estimate_is_compared_with_its_halves(method):
    assert stability(method).kappa == 1.0


class Own(RungeKutta):
    """A method of one's own that cannot be hashed."""

    __hash__ = None


class Slotted:
    """A method of one's own that nobody can refer to weakly."""

    __slots__ = ()
    name, order, adaptive, step = "mine", 2, True, HEUN_EULER.step


def test_a_method_of_ones_own():
    renamed = replace(HEUN_EULER, name="mine")
    assert stability(renamed) == stability(HEUN_EULER) == stability(Slotted())
    own = Own("own", 1, c="0", a="", b="1")
    assert stability(own) == stability(METHODS["euler"])


def test_measured_once_and_forgotten_with_the_method():
    own = replace(HEUN_EULER, name="mine")
    before = len(_MEASURED)
    assert stability(own) is stability(own)
    assert len(_MEASURED) == before + 1
    del own
    gc.collect()
    assert len(_MEASURED) == before


def test_the_first_place():
    row = torch.tensor([0.0, 1.0, math.nan, 3.0])
    assert [first(row, limit) for limit in (0.5, 1.0, 2.0)] == [1, 2, 2]
    assert first(row[:2], 9.0) == 1
