"""Times of events, states there, and all their derivatives against closed forms."""

import math

import pytest
import torch
from gradients.settings import EVERY as SETTINGS
from gradients.settings import options_for
from torch.autograd import grad, gradcheck, gradgradcheck

import torchaca as aca

EVERY = {**SETTINGS, "aca-grad-rtol": aca.ACA(grad_rtol=1e-7)}
DOUBLE = torch.float64
FINE = {"rtol": 1e-9, "atol": 1e-11}
TWICE = [name for name in EVERY if name not in ("adjoint", "mali")]
"""Gradients with second derivatives."""


def leaf(x):
    return torch.tensor(x, dtype=DOUBLE, requires_grad=True)


def steps(gradient, **options):
    """Tolerances that suit the method: a method of second order takes 1e4 steps at 1e-9."""
    own = options_for(gradient, **options)
    return {**own, "rtol": 1e-5, "atol": 1e-7} if "method" in own else {**FINE, **own}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("x0", [1.0, 3.0, 10.0])
def test_a_falling_stone(name, x0):
    height = leaf(x0)
    sol = aca.solve(
        lambda t, y: torch.stack([y[1], y[1] * 0 - 8]),
        torch.stack([height, torch.zeros_like(height)]),
        [0.0, 0.3, 2.5, 9.0],
        events=aca.Event(lambda t, y: y[0], terminal=True),
        **steps(EVERY[name]),
    )
    (t,) = sol.events[0].t
    assert sol.status == "event"
    assert sol.ts.tolist() == [*(s for s in (0.0, 0.3, 2.5) if s < t), t]
    assert t.item() == pytest.approx(math.sqrt(x0 / 4), abs=1e-7)
    (slope,) = grad(t, height, retain_graph=True)
    assert slope.item() == pytest.approx(1 / (8 * t.item()), rel=1e-6)
    speed, at = sol.ys[-1, 1], sol.events[0].y[0, 0]
    assert grad(speed, height, retain_graph=True)[0].item() == pytest.approx(-1 / t.item(), rel=1e-6)
    assert grad(at, height)[0].item() == pytest.approx(
        0.0, abs=1e-6
    )  # it is on the ground, wherever it came from


@pytest.mark.parametrize("name", TWICE)
def test_decay_with_all_first_and_second_derivatives(name):
    a, c = leaf(0.7), leaf(0.3)
    sol = aca.solve(
        lambda t, y: -a * y,
        torch.ones(1, dtype=DOUBLE),
        [0.0, 20.0],
        events=aca.Event(lambda t, y: y[0] - c, terminal=True),
        **steps(EVERY[name]),
    )
    (t,) = sol.events[0].t
    exact = torch.log(1 / c) / a
    assert t.item() == pytest.approx(exact.item(), abs=1e-9)
    firsts, right = grad(t, (a, c), create_graph=True), grad(exact, (a, c), create_graph=True)
    for first, expected in zip(firsts, right, strict=True):
        assert first.item() == pytest.approx(expected.item(), rel=1e-7)
        found = grad(first, (a, c), retain_graph=True)
        for second, wanted in zip(found, grad(expected, (a, c), retain_graph=True), strict=True):
            assert second.item() == pytest.approx(wanted.item(), rel=1e-7)


def bounces(h, g, e, n):
    """The first n bounce times of a ball dropped from h."""
    first = torch.sqrt(2 * h / g)
    return torch.stack([first * (1 + 2 * sum(e**j for j in range(1, k + 1))) for k in range(n)])


def dropped(h, g, e, t1, **options):
    """A ball that bounces with restitution e."""
    return aca.solve(
        lambda t, y: torch.stack([y[1], -g]),
        torch.stack([h, torch.zeros_like(h)]),
        [0.0, 2.0, 5.5, t1],
        events=aca.Event(lambda t, y: y[0], direction=-1, apply=lambda t, y: torch.stack([y[0], -e * y[1]])),
        **options,
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "mali" else name for name in EVERY]
)
def test_ten_bounces_and_their_derivatives(name):
    h, g, e = leaf(10.0), leaf(9.81), leaf(0.8)
    sol = dropped(h, g, e, 11.4, **{**steps(EVERY[name]), "at_rest": "ignore"})
    t, exact = sol.events[0].t, bounces(h, g, e, 10)
    assert sol.status == "success"
    assert len(t) == 10
    assert (t - exact).abs().max() < 1e-8
    for k in (0, 1, 9):
        wanted = grad(exact[k], (h, g, e), retain_graph=True, materialize_grads=True)
        found = grad(t[k], (h, g, e), retain_graph=True, materialize_grads=True)
        for x, expected in zip(found, wanted, strict=True):
            assert x.item() == pytest.approx(expected.item(), abs=1e-7)
    fell = h - g * sol.ts[1].double() ** 2 / 2
    late = sol.ys[2, 0]  # after several bounces
    k = int((t < 5.5).sum())
    speed = torch.sqrt(2 * g * h) * e**k
    right = speed * (5.5 - exact[k - 1]) - g * (5.5 - exact[k - 1]) ** 2 / 2
    assert late.item() == pytest.approx(right.item(), abs=1e-7)
    for x, expected in zip(grad(late, (h, g, e)), grad(right, (h, g, e)), strict=True):
        assert x.item() == pytest.approx(expected.item(), rel=1e-6)
    assert fell.item() < h.item()


@pytest.mark.parametrize("name", TWICE)
def test_a_neuron_that_fires(name):
    tau, threshold, current = leaf(2.0), leaf(1.0), leaf(1.5)
    sol = aca.solve(
        lambda t, v: (current - v) / tau,
        torch.zeros((), dtype=DOUBLE),
        [0.0, 7.0],
        events=aca.Event(lambda t, v: v - threshold, direction=1, apply=lambda t, v: v - threshold),
        **steps(EVERY[name]),
    )
    t = sol.events[0].t
    period = tau * torch.log(current / (current - threshold))
    assert len(t) == int(7.0 / period.item())
    for k in range(len(t)):
        assert t[k].item() == pytest.approx((k + 1) * period.item(), abs=1e-8)
        by_threshold, by_current = grad(t[k], (threshold, current), retain_graph=True)
        i, th = current.item(), threshold.item()
        assert by_threshold.item() == pytest.approx((k + 1) * tau.item() / (i - th), rel=1e-6)
        assert by_current.item() == pytest.approx(-(k + 1) * tau.item() * th / (i * (i - th)), rel=1e-6)
    end = (threshold - current) * 0 + current * (1 - torch.exp(-(7.0 - len(t) * period) / tau))
    for x, y in zip(grad(sol.ys[-1], (tau, threshold)), grad(end, (tau, threshold)), strict=True):
        assert x.item() == pytest.approx(y.item(), rel=1e-6)


def thermostat(low, high, heat, loss, gradient):
    """Two guards that exchange: heating ends at `high`, and begins at `low`; the mode is a part of the state."""

    def f(t, y):
        temperature, on = y
        return torch.stack([heat * on - loss * temperature, torch.zeros_like(on)])

    def switch(to):
        return lambda t, y: torch.stack([y[0], torch.full_like(y[1], to)])

    return aca.solve(
        f,
        torch.stack([low, torch.ones_like(low)]),
        [0.0, 4.0],
        events=[
            aca.Event(lambda t, y: y[0] - high, direction=1, apply=switch(0.0)),
            aca.Event(lambda t, y: y[0] - low, direction=-1, apply=switch(1.0)),
        ],
        gradient=gradient,
        **FINE,
    )


@pytest.mark.parametrize("name", TWICE)
def test_two_guards_that_exchange(name):
    low, high, heat, loss = leaf(1.0), leaf(2.0), leaf(5.0), leaf(1.25)
    sol = thermostat(low, high, heat, loss, EVERY[name])
    up = torch.log((heat / loss - low) / (heat / loss - high)) / loss
    down = torch.log(high / low) / loss
    assert [len(x.t) for x in sol.events] == [5, 4]
    for k in (0, 3):
        for t, exact in (
            (sol.events[0].t[k], up + k * (up + down)),
            (sol.events[1].t[k], (k + 1) * (up + down)),
        ):
            assert t.item() == pytest.approx(exact.item(), abs=1e-8)
            found = grad(t, (low, high, heat, loss), retain_graph=True)
            wanted = grad(exact, (low, high, heat, loss), retain_graph=True, materialize_grads=True)
            for x, expected in zip(found, wanted, strict=True):
                assert x.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aca-all", {"method": "rk4", "n_steps": 40}),
        *(pytest.param(name, FINE, marks=pytest.mark.slow) for name in TWICE),
    ],
)
def test_first_and_second_derivatives_by_finite_differences(name, options):
    def path(y0, weight, level, kick, t0):
        times = torch.stack([t0, torch.full_like(t0, 1.3), torch.full_like(t0, 2.0)])
        sol = aca.solve(
            lambda t, y: torch.stack([y[1] * weight, -torch.sin(y[0]) + 0.1 * torch.cos(3 * t)]),
            y0,
            times,
            events=aca.Event(
                lambda t, y: y[0] * y[0] + 0.1 * t - level,
                direction=1,
                apply=lambda t, y: torch.stack([y[0], y[1] * kick - 0.3 * t]),
            ),
            gradient=EVERY[name],
            **options,
        )
        assert len(sol.events[0].t) == 2
        return sol.ys[1:], sol.events[0].t, sol.events[0].y

    given = (torch.tensor([0.2, 1.0], dtype=DOUBLE, requires_grad=True), *map(leaf, (1.1, 0.6, -0.7, 0.1)))
    assert gradcheck(path, given, rtol=2e-4, atol=1e-6)
    assert gradgradcheck(path, given, rtol=1e-3, atol=1e-5)
