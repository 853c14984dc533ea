"""Derivatives with respect to times: of outputs, of the start, of a grid, of jumps, inside an event's arguments."""

import pytest
import torch
from gradients.settings import EVERY, options_for
from torch.autograd import gradcheck

from torchaca import Event, solve

DOUBLE = torch.float64
RIGHT = "direct"


def leaf(x):
    return torch.tensor(x, dtype=DOUBLE, requires_grad=True)


def wave(t, y, at):
    return torch.stack([y[1], -y[0] + 0.2 * torch.cos(t)])


def event(at):
    """At a time that is an argument: g depends on it, and so does the jump."""
    return Event(
        lambda t, y, at: y[0] + 0.3 * (t - at), direction=-1, apply=lambda t, y, at: y * (1 + 0.1 * (t - at))
    )


def outputs(ts, at, gradient, terminal=False, **options):
    how = event(at) if not terminal else Event(event(at).g, terminal=True, direction=-1)
    own = options_for(gradient, **options)
    sol = solve(wave, torch.tensor([1.0, 0.0], dtype=DOUBLE), ts, args=(at,), events=how, **own)
    return sol.ys, sol.events[0].t, sol.ts


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_output_times_and_times_inside_of_events(name, terminal):
    found = []
    for own in (name, RIGHT):
        ts, at = leaf([0.1, 0.9, 2.4, 4.0, 5.0]), leaf(0.5)
        method = {"method": "alf"} if name == "mali" else {}
        ys, t, _ = outputs(ts, at, EVERY[own], terminal, rtol=1e-5, atol=1e-7, **method)
        found.append(torch.autograd.grad(ys.sum() + t.sum(), (ts, at)))
    close = {"rtol": 2e-3, "atol": 2e-3} if name in ("adjoint", "naive") else {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(*found, **close)


@pytest.mark.parametrize("terminal", [False, True])
def test_they_are_those_of_differences(terminal):
    def function(ts, at):
        ys, t, reached = outputs(ts, at, EVERY[RIGHT], terminal, rtol=1e-10, atol=1e-12, method="dopri8")
        return ys, t, reached

    assert gradcheck(function, (leaf([0.1, 0.9, 2.4, 4.0]), leaf(0.5)), eps=1e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", [name for name in EVERY if name != "mali"])
def test_a_grid(name, terminal):
    """Of steps of Euler's method, so that it matters where they end; the event is at a time that does not move."""

    def function(grid):
        sol = solve(
            lambda t, y: torch.stack([torch.ones_like(t), -y[1] * (1 + t)]),
            torch.tensor([0.1, 1.0], dtype=DOUBLE),
            [0.1, 0.8, 3.0],
            grid=grid,
            method="euler",
            events=Event(lambda t, y: y[0] - 1.8, terminal, apply=None if terminal else lambda t, y: 1.5 * y),
            gradient=EVERY[name],
        )
        return sol.ys, sol.events[0].y

    grid = leaf([0.1, 0.5, 0.9, 1.5, 1.9, 2.4, 3.0])
    if name in ("adjoint", "aca-grad-rtol"):
        with pytest.raises(ValueError, match=r"pass grid.detach\(\)"):
            function(grid)
        return
    assert gradcheck(function, (grid,), rtol=1e-6, atol=1e-8)
    ys, _ = function(grid)
    (slopes,) = torch.autograd.grad(ys[-1].sum(), grid)
    assert (slopes[1:4] != 0).all()
    assert (slopes[4:6] != 0).any() != terminal


@pytest.mark.parametrize("name", ["aca-auto", "aca-all", "direct"])
def test_times_of_jumps(name):
    """Before and behind the event."""

    def function(jumps):
        def f(t, y):
            return torch.where(t < 0.5, 1.0, torch.where(t < 2.0, 0.5, 0.25)) * torch.ones_like(y)

        sol = solve(
            f,
            torch.zeros(1, dtype=DOUBLE),
            [0.0, 3.0],
            jump_ts=jumps,
            events=Event(lambda t, y: y[0] - 0.7, apply=lambda t, y: 2 * y),
            gradient=EVERY[name],
        )
        return sol.ys[-1], sol.events[0].t

    (ys, t), jumps = function(leaf([0.5, 2.0])), leaf([0.5, 2.0])
    assert t.item() == pytest.approx(0.9)
    ys, t = function(jumps)
    # t* = 2 (0.7 - j0 / 2), y(3) = 1.4 + (j1 - t*) / 2 + (3 - j1) / 4
    assert torch.autograd.grad(t.sum(), jumps, retain_graph=True)[0].tolist() == pytest.approx([-1.0, 0.0])
    assert torch.autograd.grad(ys.sum(), jumps)[0].tolist() == pytest.approx([0.5, 0.25])
