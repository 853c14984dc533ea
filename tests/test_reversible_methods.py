"""ALF and reversible Heun: their formulas, orders, stability, and that their steps can be undone.

What they share with every other method is in test_methods.py.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from problems import COSINE, DOUBLE, SPIRAL
from stubs import Counted

from torchaca import ALF, METHODS, ReversibleHeun, SolverError, solve
from torchaca.core import Carrying, Reversible

BOTH = [ALF(), ReversibleHeun()]
ALL = [*BOTH, ALF(eta=0.9)]
NAMES = [repr(method) for method in ALL]


def packed(p):
    """A closed form's f with host times, as methods call it."""
    return lambda t, y: p.f(torch.as_tensor(t, dtype=DOUBLE), y)


def carries(method, f, grid, y0):
    """The carries at the start and after every step of a grid."""
    carry = method.lift(f, grid[0], y0)
    found = [carry]
    for t0, t1 in pairwise(grid):
        carry = method.resume(f, t0, t1, carry).carry
        found.append(carry)
    return found


def test_they_are_the_reversible_ones():
    for name, method in METHODS.items():
        assert isinstance(method, Reversible) == isinstance(method, Carrying) == (method in BOTH), name


# --- the formulas, next to other ways of writing them ---


def test_undamped_alf_is_the_leapfrog_method_on_its_midpoints():
    """u_(n+1) = u_(n-1) + 2 h f(t_n, u_n) on equal steps."""
    f, h = Counted(SPIRAL.f), 0.02
    carries(ALF(), f, [0.3 + i * h for i in range(30)], SPIRAL.at(0.3))
    u = f.states[1:]
    for i in range(1, len(u) - 1):
        slope = SPIRAL.f(torch.tensor(f.times[i + 1], dtype=DOUBLE), u[i])
        torch.testing.assert_close(u[i + 1], u[i - 1] + 2 * h * slope, rtol=0, atol=1e-13)


@pytest.mark.parametrize("eta", [1.0, 0.8, 0.5, 0.1])
def test_alf_equals_its_formula_in_numbers(eta):
    y = 0.7
    v = -(y**2) * math.cos(0.2)
    method, f = ALF(eta=eta), packed(COSINE)
    grid = [0.2, 0.3, 0.45, 0.4, 0.6]
    found = carries(method, f, grid, torch.tensor([0.7], dtype=DOUBLE))
    for (t0, t1), carry in zip(pairwise(grid), found[1:], strict=True):
        h = t1 - t0
        u = y + 0.5 * h * v
        k = -(u**2) * math.cos(t0 + 0.5 * h)
        v = (1 - 2 * eta) * v + 2 * eta * k
        y = u + 0.5 * h * v
        assert carry.flatten().tolist() == pytest.approx([y, v], rel=1e-14)


def test_reversible_heun_equals_its_formula_in_numbers():
    y = z = 0.7
    k = -(y**2) * math.cos(0.2)
    grid = [0.2, 0.3, 0.45, 0.4, 0.6]
    found = carries(ReversibleHeun(), packed(COSINE), grid, torch.tensor([0.7], dtype=DOUBLE))
    for (t0, t1), carry in zip(pairwise(grid), found[1:], strict=True):
        z = 2 * y - z + (t1 - t0) * k
        old, k = k, -(z**2) * math.cos(t1)
        y = y + 0.5 * (t1 - t0) * (old + k)
        assert carry.flatten().tolist() == pytest.approx([y, z, k], rel=1e-14)


@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_the_error_estimate_is_half_of_how_much_the_slope_changes(method):
    f = Counted(SPIRAL.f)
    step = method.step(f, 0.3, 0.35, SPIRAL.at(0.3))
    slopes = [SPIRAL.f(torch.tensor(t, dtype=DOUBLE), y) for t, y in zip(f.times, f.states, strict=True)]
    torch.testing.assert_close(step.error, 0.5 * (0.35 - 0.3) * (slopes[1] - slopes[0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_the_error_estimate_falls_with_its_order(method):
    errors = [
        method.step(packed(SPIRAL), 0.3, 0.3 + h, SPIRAL.at(0.3)).error.norm().item() for h in (0.01, 0.005)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(method.error_order, abs=0.15)


@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_a_step_costs_one_evaluation(method):
    f = Counted(SPIRAL.f)
    found = carries(method, f, [0.3, 0.4, 0.5, 0.6], SPIRAL.at(0.3))
    assert f.nfe == 1 + 3
    assert all(len(carry) == len(method.units(0.1)) for carry in found)


# --- order, where damping changes it ---


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
@pytest.mark.parametrize(("eta", "order"), [(1.0, 2), (0.95, 1), (0.7, 1), (0.3, 1)])
@pytest.mark.parametrize(
    "p", [replace(COSINE, span=(-1.0, 1.0)), replace(SPIRAL, span=(0.0, 1.5))], ids=["cosine", "spiral"]
)
def test_order_of_alf_at_the_end_and_between_steps(p, eta, order, direction):
    p = p if direction == "forwards" else p.backwards()

    def errors(n):
        grid = p.times(n + 1)
        times = torch.cat([grid[:1], grid[:-1] + 0.3 * grid.diff(), grid[-1:]])
        with torch.no_grad():
            off = solve(p.f, p.y0, times, method=ALF(eta=eta), grid=grid).ys - p.exact(times)
        return off[-1].norm().item(), off[1:-1].pow(2).mean().sqrt().item()

    assert ALF(eta=eta).order == order
    slopes = [math.log2(a / b) for a, b in zip(errors(256), errors(512), strict=True)]
    assert slopes == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("eta", [0.0, -0.1, 1.0001, 2, math.nan, math.inf, "a half", None])
def test_other_etas_are_refused(eta):
    with pytest.raises(ValueError, match=r"eta damps .* 0 < eta <= 1; got"):
        ALF(eta=eta)


def test_methods_are_values():
    assert ALF() == ALF(eta=1.0) != ALF(eta=0.9)
    assert hash(ReversibleHeun()) == hash(ReversibleHeun())
    assert repr(ALF(eta=0.9)) == "ALF(eta=0.9)"


# --- undoing ---


@pytest.mark.parametrize("direction", [1, -1], ids=["forwards", "backwards"])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 2e-5), (DOUBLE, 1e-13), (torch.complex128, 1e-13)], ids=str
)
@pytest.mark.parametrize("method", BOTH, ids=NAMES[:2])
def test_undoing_300_uneven_steps_leads_back_up_to_rounding(method, dtype, close, direction):
    def f(t, y):
        return torch.stack([y[1], -torch.sin(y[0]) + 0.3 * math.cos(t)])

    sizes = 0.01 + 0.03 * torch.rand(300, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    grid = [0.5, *(0.5 + direction * sizes.cumsum(0)).tolist()]
    y0 = torch.tensor([1.0, 0.2], dtype=dtype) * (1 + 0.1j if dtype.is_complex else 1)
    found = carries(method, f, grid, y0)
    carry = found[-1]
    assert (carry - found[0]).abs().max() > 0.5
    for n in reversed(range(300)):
        carry = method.undo(f, grid[n], grid[n + 1], carry)
        torch.testing.assert_close(carry, found[n], rtol=0, atol=close)


@pytest.mark.parametrize("eta", [1.0, 0.9, 0.7, 0.4])
def test_growth_is_how_much_undoing_amplifies(eta):
    method, carry = ALF(eta=eta), torch.tensor([[1.0], [1e-3]], dtype=DOUBLE)
    back = method.undo(lambda t, y: torch.zeros_like(y), 0.0, 1e-9, carry)
    assert abs(back[1].item()) == pytest.approx(1e-3 * method.growth)


def test_half_has_no_inverse():
    assert ALF(eta=0.5).growth == math.inf
    assert ReversibleHeun().growth == 1


# --- stability on y' = lambda y ---


def amplification(method, z):
    """The spectral radius of one step with h lambda = z, as a map of the carry (slopes times h)."""
    units = torch.tensor(method.units(1.0), dtype=torch.complex128)
    columns = [
        method.resume(lambda t, y: z * y, 0.0, 1.0, column[:, None]).carry[:, 0]
        for column in torch.eye(len(units), dtype=torch.complex128)
    ]
    return torch.linalg.eigvals(torch.stack(columns, 1)).abs().max().item()


@pytest.mark.parametrize("method", BOTH, ids=NAMES[:2])
def test_undamped_methods_are_stable_on_an_imaginary_interval_only(method):
    for z in (0.999j, -0.5j, 0.1j):
        assert amplification(method, z) == pytest.approx(1.0, abs=1e-7)
    for z in (1.05j, -0.1, -1.0, -0.1 + 0.5j):
        assert amplification(method, z) > 1.04


@pytest.mark.parametrize("eta", [0.95, 0.8, 0.6, 0.5])
def test_damped_alf_is_stable_on_a_real_interval(eta):
    end = -2 * (1 - eta) / eta
    assert amplification(ALF(eta=eta), 0.999 * end) <= 1
    assert amplification(ALF(eta=eta), 0.5 * end) <= 1
    assert amplification(ALF(eta=eta), 1.05 * end) > 1


# --- inside a solve ---


@pytest.mark.parametrize("method", ALL, ids=NAMES)
@pytest.mark.parametrize("options", [{"rtol": 1e-4, "atol": 1e-4}, {"rtol": 1e-4, "atol": 1e-4, "dt0": 0.4}])
def test_starts_afresh_after_a_jump(method, options):
    """The solve over a jump is the solve up to it and another one from there."""

    def f(t, y):
        return torch.where(t < 0.5, y, -3 * y) * torch.cos(t)

    y0 = torch.ones(1, dtype=DOUBLE)
    whole = solve(f, y0, [0.0, 0.5, 1.0], method=method, jump_ts=[0.5], **options)
    first = solve(lambda t, y: y * torch.cos(t), y0, [0.0, 0.5], method=method, **options)
    assert whole.ys[1].item() == pytest.approx(first.ys[1].item(), abs=1e-12)
    exact = math.exp(math.sin(0.5) - 3 * (math.sin(1.0) - math.sin(0.5)))
    assert whole.ys[2].item() == pytest.approx(exact, abs=0.05 if method == ALF(eta=0.9) else 1e-3)


@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_the_interpolant_is_smooth_across_steps(method):
    with torch.no_grad():
        sol = solve(SPIRAL.f, SPIRAL.y0, SPIRAL.times(2), method=method, n_steps=40, dense=True)
    for end in sol.steps[1:-1]:
        left, middle, right = sol([end - 1e-6, end, end + 1e-6])
        torch.testing.assert_close((middle - left) / 1e-6, (right - middle) / 1e-6, rtol=1e-3, atol=2e-3)


def test_where_the_solution_contracts_damping_helps():
    """y' = -20 (y - cos t): undamped, the carried slope swings with an amplitude that grows."""

    def solved(eta):
        y0, f = torch.ones(1, dtype=DOUBLE), lambda t, y: -20 * (y - torch.cos(t))
        return solve(f, y0, [0.0, 5.0], method=ALF(eta=eta), n_steps=500).ys[-1].item()

    exact = (400 * math.cos(5) + 20 * math.sin(5)) / 401
    assert abs(solved(1.0) - exact) > 1e3
    assert abs(solved(0.7) - exact) < 0.05


def test_steps_that_jam_where_the_solution_contracts_are_explained():
    def solved(method):
        f = lambda t, y: -y * (5 + 4 * torch.cos(9 * t))  # noqa: E731
        return solve(
            f, torch.ones(1, dtype=DOUBLE), [0.0, 3.0], method=method, rtol=1e-2, atol=1e-2, max_steps=1000
        )

    for method in BOTH:
        with pytest.raises(SolverError, match=r"carries swings around f .*\n  try: ALF\(eta=0\.9\)"):
            solved(method)
    assert solved(ALF(eta=0.9)).stats.nfe < 200
