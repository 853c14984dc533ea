"""Derivatives with respect to times, jumps of f and dense output, where each sample has steps of its own."""

import copy

import pytest
import torch
from batch.cases import (
    DOUBLE,
    FIXED,
    MU,
    OWN_TIMES,
    PADDED,
    SETTINGS,
    Y0,
    forced,
    gradients_alone,
    gradients_in_batch,
    leaves,
)
from gradients.settings import options_for

import torchaca as aca
from torchaca import METHODS, solve

SHARED = torch.tensor([0.0, 0.7, 0.7, 2.0], dtype=DOUBLE)
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]


def same(found, right, near=1e-10):
    for x, y in zip(found, right, strict=True):
        torch.testing.assert_close(x, y, rtol=near, atol=near)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("t", [PADDED, SHARED], ids=["own", "shared"])
def test_times_have_the_derivatives_of_each_sample(name, t):
    options = options_for(SETTINGS[name], rtol=1e-4 if name == "mali" else 1e-5)
    _, found = gradients_in_batch(forced, Y0, t, MU, **options)
    _, right = gradients_alone(forced, Y0, t, MU, **options)
    same(found, right)


@pytest.mark.parametrize("method", METHODS)
def test_times_move_with_every_method(method):
    options = {"method": method, **({"rtol": 1e-3} if METHODS[method].adaptive else {"dt": 0.1})}
    _, found = gradients_in_batch(forced, Y0, PADDED, MU, **options)
    _, right = gradients_alone(forced, Y0, PADDED, MU, **options)
    same(found, right, 1e-7 if METHODS[method].order > 5 else 1e-9)  # whose error estimates are rounding


@pytest.mark.parametrize("steps", FIXED)
@pytest.mark.parametrize("name", ["aca-auto", "aca-all", "direct"])
def test_fixed_steps_move_with_their_times(steps, name):
    for method in ("euler", "rk4"):
        options = {"gradient": SETTINGS[name], "method": method, **FIXED[steps]}
        _, found = gradients_in_batch(forced, Y0, PADDED, MU, **options)
        _, right = gradients_alone(forced, Y0, PADDED, MU, **options)
        same(found, right)


@pytest.mark.parametrize("name", ["aca-auto", "aca-all", "direct"])
def test_times_against_differences(name):
    t = torch.tensor([[0.0, 0.31, 0.6], [1.0, 0.52, 0.4]], dtype=DOUBLE, requires_grad=True)

    def run(y0, t, mu):
        options = {"n_steps": 3, "method": "rk4", "gradient": SETTINGS[name]}
        return solve(forced, y0, t, rows=(mu,), batch=1, **options).ys

    y0, mu = leaves(Y0[:2], MU[:2])
    assert torch.autograd.gradcheck(run, (y0, t, mu))
    assert torch.autograd.gradgradcheck(run, (y0, t, mu))


def kicked(t, y, mu):
    """Jumps in time."""
    column = mu.reshape(*mu.shape, 1)
    return torch.where(t >= 0.6, -column * y, column + 0.1 * y) + torch.where(t >= 1.5, 2.0, 0.0)


JUMPS = torch.tensor([1.5, 0.6], dtype=DOUBLE)
ACROSS = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.7, 0.1], [0.6, 1.5, 1.7], [0.2, 0.3, 0.6]], dtype=DOUBLE)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_jumps_are_those_of_each_sample(method):
    options = {"method": method, "jump_ts": JUMPS, "rtol": 1e-5 if METHODS[method].order > 3 else 1e-3}
    sol, found = gradients_in_batch(kicked, Y0, ACROSS, MU, **options)
    own, right = gradients_alone(kicked, Y0, ACROSS, MU, **options)
    for i, one in enumerate(own):
        torch.testing.assert_close(sol.ys[:, i], one.ys, rtol=1e-10, atol=1e-10)
        assert sol.stats.samples.accepted[i] == one.stats.accepted
        assert sol.stats.samples.rejected[i] == one.stats.rejected
    same(found, right, 1e-9)
    still = solve(kicked, Y0, ACROSS, batch=1, rows=(MU,), **options)
    torch.testing.assert_close(still.ys, sol.ys, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["aca-auto", "aca-all", "direct"])
def test_jumps_that_are_differentiated(name):
    jumps, theirs = leaves(JUMPS, JUMPS)

    def f(t, y, mu, jumps=None):
        return kicked(t, y, mu)

    sol = solve(f, Y0, ACROSS, batch=1, rows=(MU,), jump_ts=jumps, gradient=SETTINGS[name])
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), jumps)
    total = sum(
        solve(f, Y0[i], ACROSS[i], args=(MU[i],), jump_ts=theirs, gradient=SETTINGS[name]).ys[-1].sum()
        for i in range(4)
    )
    (right,) = torch.autograd.grad(total, theirs)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_dense_output_is_that_of_each_sample(method):
    options = {"method": method, "dense": True, **({} if METHODS[method].adaptive else {"dt": 0.1})}
    t = torch.tensor([[0.0, 2.0], [1.0, 0.5], [0.5, 0.5], [3.0, 4.5]], dtype=DOUBLE)
    at = torch.stack([torch.lerp(t[:, 0], t[:, 1], part) for part in (0.0, 0.3, 0.95, 1.0)], 1)
    y0, mu = leaves(Y0, MU)
    sol = solve(forced, y0, t, batch=1, rows=(mu,), **options)
    found = sol(at)
    assert found.shape == (4, 4, 2)
    slopes = sol.derivative(at)
    theirs, their_mu = leaves(Y0, MU)
    for i in (0, 1, 3):
        own = solve(forced, theirs[i], t[i], args=(their_mu[i],), **options)
        torch.testing.assert_close(found[:, i], own(at[i]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(slopes[:, i], own.derivative(at[i]), rtol=1e-8, atol=1e-8)
        right = torch.autograd.grad(own(at[i]).square().sum(), [theirs, their_mu])
        mine = torch.autograd.grad(found[:, i].square().sum(), [y0, mu], retain_graph=True)
        same(mine, right, 1e-8)
    assert torch.equal(found[:, 2], y0[2].expand(4, 2))


def test_dense_output_at_times_of_all_and_outside():
    sol = solve(lambda t, y: -y, torch.ones(3, 2, dtype=DOUBLE), [0.0, 1.0], batch=1, dense=True, rtol=1e-8)
    assert sol(0.5).shape == (3, 2)
    assert sol([0.2, 0.5]).shape == (2, 3, 2)
    exact = torch.exp(-torch.tensor([0.2, 0.5], dtype=DOUBLE)).reshape(2, 1, 1).expand(2, 3, 2)
    torch.testing.assert_close(sol([0.2, 0.5]), exact, rtol=1e-6, atol=0)
    assert torch.equal(copy.deepcopy(sol)(0.3), sol(0.3))
    with pytest.raises(ValueError, match=r"t = 1.5 is outside of the solve of sample 0, \[0, 1\]"):
        sol(1.5)
    with pytest.raises(ValueError, match="batch sizes differ: the solution has 3 samples and t has 2 rows"):
        sol(torch.zeros(2, 4))
    at = torch.full((3, 1), 0.4, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(sol(at).sum(), at)
    torch.testing.assert_close(slope, torch.full_like(slope, -2 * 0.670320046), rtol=1e-4, atol=0)


def test_dense_output_of_samples_that_failed():
    y0 = torch.tensor([0.1, 1.0, 0.2], dtype=DOUBLE)
    sol = solve(lambda t, y: y * y, y0, [0.0, 2.0], batch=1, dense=True, on_failure="status")
    assert sol.status == ("success", "blow-up", "success")
    ys = sol([0.5, 1.5])
    assert ys.isnan().tolist() == [[False, False, False], [False, True, False]]
    torch.testing.assert_close(ys[0], y0 / (1 - 0.5 * y0), rtol=1e-3, atol=0)


def test_dense_output_of_nothing_to_do():
    for times in ([1.0, 1.0], OWN_TIMES[2]):
        sol = solve(lambda t, y: -y, Y0, [times] * 4, batch=1, dense=True)
        assert torch.equal(sol(times[0]), Y0)


def test_an_f_with_a_nested_state_has_dense_output():
    y0 = {"a": Y0, "b": Y0[:, 0]}
    sol = solve(lambda t, y: {"a": -y["a"] * t, "b": -y["b"]}, y0, [0.0, 1.0], batch=1, dense=True)
    assert {name: tuple(x.shape) for name, x in sol([0.5]).items()} == {"a": (1, 4, 2), "b": (1, 4)}


def test_samples_that_stay_move_with_their_times():
    t = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=DOUBLE)
    for some in (t, t[1:].expand(2, 2)):
        _, found = gradients_in_batch(forced, Y0[:2], some, MU[:2])
        _, right = gradients_alone(forced, Y0[:2], some, MU[:2])
        same(found, right)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_gradient_of_known_accuracy(direction):
    """At rest, where steps that are right for the solution are too long for its derivative."""
    gradient, y0 = aca.ACA(grad_rtol=1e-3), torch.tensor([[1.0], [1e-9], [0.3]], dtype=DOUBLE)
    t = direction * torch.tensor([[0.0, 4.0], [1.0, 9.0], [2.0, 5.0]], dtype=DOUBLE)
    y0, t, rate = leaves(y0, t, torch.tensor([0.5, 2.0, 1.0], dtype=DOUBLE))
    options = {"gradient": gradient, "rtol": 1e-3, "at_rest": "ignore"}
    sol = solve(
        lambda t, y, rate: -direction * rate[:, None] * torch.sin(y), y0, t, rows=(rate,), batch=1, **options
    )
    found = torch.autograd.grad(sol.ys[-1].sum(), [y0, rate, t])
    start, k, ends = leaves(y0, rate, t)
    span = direction * (ends[:, 1] - ends[:, 0])
    exact = 2 * torch.atan(torch.tan(start[:, 0] / 2) * torch.exp(-k * span))
    right = torch.autograd.grad(exact.sum(), [start, k, ends])
    for x, y in zip(found, right, strict=True):
        assert (x - y).norm() <= 3e-3 * y.norm()
    assert sol.stats.gradient_error < 1e-3
