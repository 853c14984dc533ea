"""The solution as a function of time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from butcher_tables import BARE
from problems import BOTH_WAYS, COSINE, DOUBLE, OSCILLATION, SPIRAL

from torchaca import METHODS, solve
from torchaca.executors import EXECUTORS

NAMES = list(METHODS)


def steps_for(name):
    return {} if METHODS[name].adaptive else {"n_steps": 20}


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_outputs_at_their_times(name, direction):
    p = SPIRAL if direction == "forwards" else SPIRAL.backwards()
    sol = solve(p.f, p.y0, p.times(13), method=name, dense=True, **steps_for(name))
    close = 1e-12 if name == "dopri8" else 1e-14
    torch.testing.assert_close(sol(sol.ts), sol.ys, rtol=0, atol=close)
    ends = torch.tensor(sol.steps, dtype=DOUBLE)
    assert len(ends) == sol.stats.accepted + 1
    between = (ends[:-1] + ends[1:]) / 2
    again = solve(p.f, p.y0, torch.cat([ends[:1], between, ends[-1:]]), method=name, **steps_for(name))
    torch.testing.assert_close(sol(between), again.ys[1:-1], rtol=0, atol=close)


ORDER_STEPS = {1: (200, 400), 2: (100, 200), 3: (100, 200), 4: (100, 200), 5: (100, 200), 8: (48, 64)}


@pytest.mark.parametrize("name", NAMES)
def test_has_the_method_s_order_everywhere(name):
    """The interpolant's local error is one order lower than the step's: as high as the global error."""
    p, method = replace(COSINE, span=(-0.5, 4.5)), METHODS[name]

    def error(n):
        sol = solve(p.f, p.y0, p.times(2), method=method, n_steps=n, dense=True)
        times = torch.linspace(*p.span, 6 * n + 1, dtype=DOUBLE)
        return (sol(times) - p.exact(times)).pow(2).mean().sqrt().item()

    n, m = ORDER_STEPS[method.order]
    with torch.no_grad():
        slope = math.log(error(n) / error(m)) / math.log(m / n)
    assert slope == pytest.approx(method.order, abs=0.25)


@pytest.mark.parametrize("name", ["dopri5", "tsit5", "fehlberg5", "dopri8", "bosh3"])
def test_is_smooth_across_steps(name):
    """C1: the slope from the left is the slope from the right."""
    p = SPIRAL
    sol = solve(p.f, p.y0, p.times(2), method=name, rtol=1e-3, atol=1e-3, dense=True)
    assert len(sol.steps) > 3
    for end in sol.steps[1:-1]:
        left, middle, right = sol([end - 1e-6, end, end + 1e-6])
        torch.testing.assert_close((middle - left) / 1e-6, (right - middle) / 1e-6, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def sol():
    return solve(SPIRAL.f, SPIRAL.y0, SPIRAL.times(2), rtol=1e-8, atol=1e-8, dense=True)


@pytest.mark.parametrize(
    "t",
    [
        0.3,
        1,
        np.float64(0.3),
        np.array([0.3, 0.7]),
        [0.3, 0.7, 0.1],
        (0.3,),
        torch.tensor(0.3),
        torch.rand(3, 1, 2),
    ],
    ids=lambda t: type(t).__name__,
)
def test_takes_times_of_any_shape(sol, t):
    at = torch.as_tensor(np.asarray(t), dtype=DOUBLE)
    ys = sol(t)
    assert ys.shape == (*at.shape, 2)
    assert ys.dtype == DOUBLE
    torch.testing.assert_close(ys.reshape(-1, 2), SPIRAL.exact(at.reshape(-1)), rtol=0, atol=1e-5)


def test_times_may_come_in_any_order(sol):
    times = torch.rand(50, dtype=DOUBLE) * 2.5 - 1
    one_by_one = torch.stack([sol(t) for t in times])
    torch.testing.assert_close(sol(times), one_by_one, rtol=0, atol=1e-14)
    assert len(set(np.searchsorted(sol.steps, times.numpy()))) > 5


def test_a_number_is_taken_as_float64(sol):
    assert torch.equal(sol(0.1), sol(torch.tensor(0.1, dtype=DOUBLE)))
    assert torch.equal(sol([0.1, 0.7]), sol(torch.tensor([0.1, 0.7], dtype=DOUBLE)))
    assert not torch.equal(sol(0.1), sol(torch.tensor(0.1, dtype=torch.float32)))


def test_no_times_no_states(sol):
    assert sol(torch.empty(0)).shape == (0, 2)
    assert sol([]).shape == (0, 2)
    assert sol(torch.empty(3, 0)).shape == (3, 0, 2)


@pytest.mark.parametrize("t", [-1.0 - 1e-9, 1.5 + 1e-9, 100.0, math.nan, math.inf, [0.0, 2.0]])
def test_outside_raises(sol, t):
    with pytest.raises(ValueError, match=r"t = .* is outside of the solve, \[-1.0, 1.5\]"):
        sol(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [[0.0, 0.05, 0.1], [0.7, 0.3], [0.0, 1 / 3]])
def test_its_own_output_times_are_inside(times, dtype):
    sol = solve(lambda t, y: -y, torch.ones(1, dtype=dtype), times, dense=True)
    torch.testing.assert_close(sol(sol.ts), sol.ys)
    torch.testing.assert_close(sol(times), sol.ys)


def test_backwards():
    p = SPIRAL.backwards()
    sol = solve(p.f, p.y0, p.times(2), rtol=1e-8, atol=1e-8, dense=True)
    times = torch.rand(20, dtype=DOUBLE) * 2.5 - 1
    torch.testing.assert_close(sol(times), p.exact(times), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"outside of the solve, \[-1.0, 1.5\]"):
        sol(1.6)


def test_nested_states():
    p = SPIRAL

    def f(t, y):
        k = p.f(t, torch.stack([y["x"], y["v"][0]]))
        return {"x": k[0], "v": (k[1],)}

    sol = solve(f, {"x": p.y0[0], "v": (p.y0[1],)}, p.times(2), rtol=1e-8, atol=1e-8, dense=True)
    times = torch.rand(3, 2, dtype=DOUBLE)
    at = sol(times)
    exact = p.exact(times.reshape(-1)).reshape(3, 2, 2)
    assert set(at) == {"x", "v"}
    torch.testing.assert_close(at["x"], exact[..., 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(at["v"][0], exact[..., 1], rtol=0, atol=1e-5)


def test_complex_and_half_precision():
    p = OSCILLATION
    sol = solve(p.f, p.y0, p.times(2), rtol=1e-8, atol=1e-8, dense=True)
    times = torch.tensor([0.5, 2.5], dtype=DOUBLE)
    torch.testing.assert_close(sol(times), p.exact(times), rtol=0, atol=1e-6)
    half = solve(
        lambda t, y: -y, torch.ones(2, dtype=torch.bfloat16), [0.0, 1.0], dense=True, rtol=1e-2, atol=1e-2
    )
    assert half(0.5).dtype == torch.bfloat16
    assert half(0.5)[0].item() == pytest.approx(math.exp(-0.5), abs=0.01)


def test_derivative_by_time_is_f():
    p = BOTH_WAYS["cosine"]
    sol = solve(p.f, p.y0, p.times(2), rtol=1e-10, atol=1e-10, dense=True)
    t = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    y = sol(t)
    slopes = [torch.autograd.grad(y[i], t, retain_graph=True)[0].item() for i in range(3)]
    assert slopes == pytest.approx(p.f(t, p.at(0.7)).tolist(), abs=1e-6)


def test_a_solve_without_span_is_constant():
    sol = solve(lambda t, y: -y, torch.ones(2), [0.5, 0.5], dense=True)
    assert torch.equal(sol(0.5), torch.ones(2))
    with pytest.raises(ValueError, match="outside"):
        sol(0.6)


def test_dense_costs_no_evaluations_where_the_method_has_all_stages():
    p = SPIRAL
    assert solve(p.f, p.y0, p.times(2), dense=True).stats.nfe == solve(p.f, p.y0, p.times(2)).stats.nfe


def test_without_dense_it_is_refused():
    sol = solve(SPIRAL.f, SPIRAL.y0, SPIRAL.times(2))
    with pytest.raises(ValueError, match=r"no dense output: solve with dense=True"):
        sol(0.0)


def test_after_a_failure_it_covers_what_was_solved():
    sol = solve(
        lambda t, y: y**2, torch.ones(1, dtype=DOUBLE), [0.0, 0.5, 2.0], dense=True, on_failure="status"
    )
    assert sol.status != "success"
    assert sol(0.5).item() == pytest.approx(2.0, abs=1e-2)
    assert sol(0.9).item() == pytest.approx(10.0, rel=1e-2)
    with pytest.raises(ValueError, match="outside"):
        sol(1.5)


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint"])
def test_autocast_is_for_f_alone(gradient):
    """What f computes without autocast's operations is not rounded on the way to outputs and gradients."""

    def solved():
        k = torch.tensor(0.7, requires_grad=True)
        sol = solve(
            lambda t, y: -k * y, torch.ones(3), [0.0, 0.31, 1.0], rtol=1e-6, gradient=gradient, dense=True
        )
        return sol.ys, sol(0.47).detach(), k

    plain = solved()
    with torch.autocast("cpu", torch.bfloat16):
        cast = solved()
    for x, y in zip(cast[:2], plain[:2], strict=True):
        assert torch.equal(x, y)
    for ys, *_ in (plain, cast):
        ys[1].sum().backward()
    assert torch.equal(cast[2].grad, plain[2].grad)


# The derivative by time.


def by_autograd(sol, t):
    """d sol(t) / dt, component by component."""
    at = t.clone().requires_grad_()
    flat = sol(at).reshape(len(t), -1)
    columns = [torch.autograd.grad(flat[:, i].sum(), at, retain_graph=True)[0] for i in range(flat.shape[1])]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_that_of_the_interpolant(name, direction):
    p = SPIRAL if direction == "forwards" else SPIRAL.backwards()
    sol = solve(p.f, p.y0, p.times(2), method=name, dense=True, **steps_for(name))
    times = torch.cat([p.times(9), torch.rand(7, dtype=DOUBLE) * 2.5 - 1])
    torch.testing.assert_close(sol.derivative(times), by_autograd(sol, times), rtol=1e-12, atol=1e-12)
    assert sol.derivative(0.1).shape == p.y0.shape
    assert sol.derivative(times.reshape(4, 4)).shape == (4, 4, *p.y0.shape)


def ends_on_f(method):
    """Whether the interpolant's slopes are f at both ends of a step: those of one stage, h k_i over h."""
    if getattr(method, "f1_index", None) is None:
        return False
    want = torch.zeros(2, method.dense_stages + 1, dtype=DOUBLE)
    want[0, 1] = want[1, 1 + method.f1_index] = 1
    return torch.allclose(method.basis_slopes(torch.tensor([0.0, 1.0], dtype=DOUBLE)), want, atol=1e-9)


@pytest.mark.parametrize(
    "method", [*BARE.values(), *filter(ends_on_f, METHODS.values())], ids=lambda m: m.name
)
def test_derivative_is_f_where_steps_end(method):
    p = replace(COSINE, span=(-0.5, 4.5))
    sol = solve(p.f, p.y0, p.times(2), method=method, n_steps=7, dense=True)
    times = torch.tensor(sol.steps, dtype=DOUBLE)
    right = torch.stack([p.f(t, y) for t, y in zip(times, sol(times), strict=True)])
    torch.testing.assert_close(sol.derivative(times), right, rtol=1e-10, atol=1e-10)


class Protocol:
    """A method as `torchaca.core.Method` has it, and no more."""

    def __init__(self, own):
        self.own = own
        self.name, self.order, self.adaptive, self.stages = own.name, own.order, own.adaptive, own.stages

    def step(self, *args, **known):
        return self.own.step(*args, **known)

    def basis_weights(self, theta):
        return self.own.basis_weights(theta)

    def f1_weights(self, *args):
        return self.own.f1_weights(*args)


@pytest.mark.parametrize("name", ["dopri5", "euler", "rk4"])
def test_derivative_of_a_method_that_knows_its_weights_alone(name):
    p, times = SPIRAL, SPIRAL.times(9).requires_grad_()
    own, other = (
        solve(p.f, p.y0, p.times(2), method=method, n_steps=5, dense=True).derivative(times)
        for method in (METHODS[name], Protocol(METHODS[name]))
    )
    torch.testing.assert_close(other, own, rtol=1e-13, atol=1e-13)
    grads = [torch.autograd.grad(x.square().sum(), times)[0] for x in (own, other)]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)


def test_derivative_of_nested_states():
    y0 = {"x": torch.ones(2, dtype=DOUBLE), "v": (torch.zeros(2, dtype=torch.float32),)}
    sol = solve(
        lambda t, y: {"x": y["v"][0].double(), "v": (-y["x"].float(),)}, y0, [0.0, 1.0], dense=True, rtol=1e-7
    )
    at = sol.derivative([[0.3], [0.7]])
    assert at["x"].shape == (2, 1, 2)
    assert at["v"][0].dtype == torch.float32
    exact = -torch.sin(torch.tensor([0.3, 0.7], dtype=DOUBLE))
    torch.testing.assert_close(at["x"][:, 0, 0], exact, rtol=1e-4, atol=0)


def test_derivative_needs_steps_and_dense_output(sol):
    for t in (-1.1, 1.6):
        with pytest.raises(ValueError, match="outside of the solve"):
            sol.derivative(t)
    assert sol.derivative([]).shape == (0, 2)
    with pytest.raises(ValueError, match="solve with dense=True"):
        solve(SPIRAL.f, SPIRAL.y0, SPIRAL.times(2)).derivative(0.0)
    with pytest.raises(ValueError, match="has no step"):
        solve(lambda t, y: -y, torch.ones(2), [0.5, 0.5], dense=True).derivative(0.5)


COMPILING = {mode for mode in EXECUTORS if mode not in (False, "native")}


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.slow] if mode in COMPILING else []) for mode in EXECUTORS]
)
def test_values_and_derivatives_under_every_executor(mode):
    """Those of the eager loop, or a refusal in words."""
    y0, at = torch.tensor([1.0, 0.5], dtype=DOUBLE), torch.linspace(0, 2, 9, dtype=DOUBLE)
    found = []
    for compile in (False, mode):
        w, y = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True), y0.clone().requires_grad_()
        try:
            sol = solve(
                lambda t, y, w: torch.sin(w * y) - t * y,
                y,
                [0.0, 2.0],
                args=(w,),
                dense=True,
                compile=compile,
            )
        except ValueError as refusal:
            assert "use compile=" in str(refusal)  # noqa: PT017
            return
        values, slopes = sol(at), sol.derivative(at)
        grads = torch.autograd.grad(values.square().sum() + slopes.prod(1).sum(), (w, y))
        found.append((values, slopes, *grads))
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-11)
