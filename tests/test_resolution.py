"""Tolerances that f's precision cannot meet: raised to what it can, in words, and only then."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

import torchaca
from torchaca import METHODS, PI_CONTROL, Adaptive, executors, solve
from torchaca.field.precision import estimate_floor

ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SPAN = [0.0, 1.0]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))


NET, X = network(), torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def solved(f=None, y0=X, autocast=None, t=SPAN, **options):
    """The solution, and what was warned of."""
    context = torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
    with warnings.catch_warnings(record=True) as caught, context:
        warnings.simplefilter("always")
        sol = solve(f or (lambda t, y: NET(y)), y0, t, **options)
    return sol, [str(w.message) for w in caught]


# --- no explosion ---


@pytest.mark.parametrize("tolerances", [(1e-3, 1e-6), (1e-4, 1e-4), (1e-6, 1e-6)], ids=str)
@pytest.mark.parametrize("steep", [1.0, 8.0])
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5", "dopri8"])
def test_evaluations_under_autocast(method, half, steep, tolerances):
    """At most half as many again as in float32 at the tolerance given, and as accurate as a half precision f is."""
    options = {"method": method, "rtol": tolerances[0], "atol": tolerances[1]}
    with torch.no_grad():
        full, warned = solved(lambda t, y: steep * NET(y), **options)
        assert not warned
        cast, _ = solved(lambda t, y: steep * NET(y), autocast=half, **options)
        exact = solved(lambda t, y: steep * NET(y), rtol=1e-6)[0].ys[-1]
    assert cast.ys.dtype == torch.float32
    assert cast.stats.nfe <= 1.5 * full.stats.nfe
    assert (cast.ys[-1] - exact).norm() <= 2 * torch.finfo(half).eps * exact.norm()


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_precision_states(half):
    net = network().to(half)
    with torch.no_grad():
        full, _ = solved(rtol=1e-6, atol=1e-6)
        sol, (message,) = solved(lambda t, y: net(y), X.to(half), rtol=1e-6, atol=1e-6)
    assert sol.ys.dtype == half
    assert sol.stats.nfe <= 1.5 * full.stats.nfe
    assert str(half) in message


@pytest.mark.parametrize("gradient", torchaca.GRADIENTS)
@pytest.mark.parametrize("widened", [False, True])
def test_every_gradient_sees_the_precision_inside_of_f(gradient, widened):
    """Also where f hands back float32 that was computed in bfloat16."""
    net, calls = network(), []

    def f(t, y):
        calls.append(1)
        k = net(y)
        return k.float() if widened else k

    method = "alf" if gradient == "mali" else "dopri5"
    options = {"method": method, "rtol": 1e-6, "atol": 1e-6}
    sol, (message,) = solved(f, autocast=torch.bfloat16, gradient=gradient, **options)
    assert "torch.bfloat16" in message
    assert sol.stats.nfe <= 30
    calls.clear()
    sol.ys[-1].square().sum().backward()
    assert len(calls) == sol.stats.nfe_backward <= 100


@pytest.mark.parametrize(
    "settings",
    [
        {"rtol": 1e-6, "atol": 1e-6},
        {"control": Adaptive(rtol=1e-6)},
        {"method": METHODS["tsit5"]},
    ],
    ids=str,
)
def test_a_backward_integration_with_tolerances_of_its_own(settings):
    gradient = torchaca.Adjoint(**settings)
    with torch.autocast("cpu", torch.bfloat16):
        sol, (message,) = solved(y0=X.clone().requires_grad_(), gradient=gradient, rtol=1e-2, atol=1e-2)
    assert "torch.bfloat16" in message
    sol.ys[-1].sum().backward()
    assert sol.stats.nfe_backward <= 40


def test_a_cast_by_hand():
    net = network().bfloat16()
    sol, (message,) = solved(lambda t, y: net(y.bfloat16()).float(), rtol=1e-6, atol=1e-6)
    assert "torch.bfloat16" in message
    assert sol.stats.nfe <= 30


def test_float32_below_its_rounding():
    for method, most in (("dopri5", 50), ("dopri8", 200)):
        with torch.no_grad():
            sol, (message,) = solved(method=method, rtol=1e-9, atol=1e-9)
        assert "torch.float32" in message
        assert sol.stats.nfe <= most


# --- the words ---


def test_the_warning_names_dtype_and_tolerances_and_points_at_the_caller():
    warns = pytest.warns(UserWarning, match="f computes in torch.bfloat16")
    with warns as caught, torch.autocast("cpu", torch.bfloat16):
        solve(lambda t, y: NET(y), X, SPAN, rtol=1e-6, atol=1e-5)
    (one,) = caught
    assert one.filename == __file__
    floor = estimate_floor(METHODS["dopri5"], torch.finfo(torch.bfloat16).eps)
    atol = floor * X.square().mean().sqrt().item()
    assert "rtol = 1e-06, atol = 1e-05 (dopri5)" in str(one.message)
    assert f"rtol = {floor:.2g}, atol = {atol:.2g} are used" in str(one.message)
    sol, warned = solved(
        autocast=torch.bfloat16, rtol=floor, atol=atol
    )  # what it recommends is silent, and the same
    assert not warned
    torch.testing.assert_close(
        sol.steps, solved(autocast=torch.bfloat16, rtol=1e-6, atol=1e-5)[0].steps, rtol=1e-3, atol=0
    )


def test_each_tensor_of_a_state_has_its_floor():
    y0 = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(2)}
    _, (message,) = solved(lambda t, y: {"b": -y["b"], "a": -y["a"]}, y0, rtol=1e-9, atol=1e-9)
    assert "torch.float32" in message
    assert "rtol = 1e-09 to " in message.split("are used")[0].split("):")[1]
    assert not solved(lambda t, y: {"b": -y["b"], "a": -y["a"]}, y0, rtol=1e-8, atol=1e-8)[1]


def test_the_rest_of_a_control_stays():
    control = Adaptive(rtol=1e-6, atol=1e-6, pid=PI_CONTROL, dt_max=0.1)
    sol, warned = solved(autocast=torch.bfloat16, control=control)
    assert len(warned) == 1
    assert sol.stats.accepted >= 10


def test_inside_transforms():
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends = torch.func.vmap(lambda y: solve(lambda t, y: NET(y), y, SPAN, rtol=1e-6).ys[-1])(X)
        torch.func.jvp(lambda y: solve(lambda t, y: NET(y), y, SPAN, rtol=1e-6).ys[-1], (X,), (X,))
    assert any("torch.bfloat16" in str(w.message) for w in caught)
    assert ends.shape == X.shape


# --- nothing else changes ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tolerances", [(1e-3, 1e-6), (1e-7, 1e-9), (0.0, 1e-6), (6e-8, 0.0)], ids=str)
def test_tolerances_that_a_dtype_can_meet_are_not_touched(dtype, tolerances, monkeypatch):
    net, options = network().to(dtype), dict(zip(("rtol", "atol"), tolerances, strict=True))
    runs = []
    for floor in (executors.floored, lambda p, f: p):
        monkeypatch.setattr(executors, "floored", floor)
        with torch.no_grad():
            sol, warned = solved(lambda t, y: net(y), X.to(dtype), **options)
        assert not warned
        runs.append(sol)
    assert torch.equal(runs[0].ys, runs[1].ys)
    assert runs[0].steps == runs[1].steps


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_loose_tolerances_under_autocast_are_silent(half):
    for options in (
        {"rtol": 1e-2, "atol": 1e-2},
        {"rtol": 1e-6, "atol": 1e-2},
        {"method": "rk4", "n_steps": 3},
    ):
        assert not solved(autocast=half, **options)[1]


# --- where the floor comes from ---


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_floor_grows_with_the_rounding(method):
    floors = [estimate_floor(METHODS[method], 2.0**-bits) for bits in (24, 11, 8)]
    assert floors[0] < floors[1] < floors[2]


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
def test_the_estimate_holds_the_noise_that_the_derivation_says(method):
    """A step of y' = 1 whose evaluations are rounded at random: |error| = h |k| u |e|_2, and no truncation."""
    row, n, u = METHODS[method], 100_000, 1e-3
    ones = torch.ones(n, dtype=torch.float64)
    step = row.step(lambda t, y: ones + u * torch.randn(n, dtype=torch.float64), 0.0, 0.5, ones)
    weights = [float(b - e) for b, e in zip(row.weights, row.embedded, strict=True)]
    expected = 0.5 * u * sum(w * w for w in weights) ** 0.5
    assert step.error.square().mean().sqrt().item() == pytest.approx(expected, rel=0.02)
