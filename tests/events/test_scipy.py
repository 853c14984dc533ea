"""Times of events on ten systems with drag, beside scipy's `solve_ivp`."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from torchaca import Event, solve

DOUBLE = torch.float64
OFF = 1e-8


def stone(xp, t, y):
    return [y[1], -9.81 - 0.02 * y[1] * abs(y[1])]


def shot(xp, t, y):
    return [y[2], y[3], -0.3 * y[2], -9.81 - 0.3 * y[3]]


def shot_in_wind(xp, t, y):
    u, w = y[2] - 3.0 * xp.sin(t), y[3]
    speed = xp.sqrt(u * u + w * w)
    return [y[2], y[3], -0.05 * speed * u, -9.81 - 0.05 * speed * w]


def pendulum(xp, t, y):
    return [y[1], -xp.sin(y[0]) - 0.1 * y[1]]


def driven(xp, t, y):
    return [y[1], -4.0 * y[0] - 0.2 * y[1] + xp.cos(1.7 * t)]


def rocket(xp, t, y):
    thrust = 30.0 * xp.exp(-t)
    return [y[1], thrust - 9.81 - 0.01 * y[1] * abs(y[1])]


def reentry(xp, t, y):
    return [y[1], -9.81 + 0.02 * xp.exp(-y[0] / 7.0) * y[1] * y[1]]


def satellite(xp, t, y):
    r = xp.sqrt(y[0] * y[0] + y[1] * y[1])
    return [y[2], y[3], -y[0] / r**3 - 0.02 * y[2], -y[1] / r**3 - 0.02 * y[3]]


def duffing(xp, t, y):
    return [y[1], y[0] - y[0] ** 3 - 0.25 * y[1] + 0.3 * xp.cos(t)]


def slider(xp, t, y):
    return [y[1], -y[0] - 0.3 * xp.tanh(y[1] / 0.5)]


SYSTEMS = {
    "a stone reaches the ground": (stone, [20.0, 0.0], 5.0, lambda xp, t, y: y[0], -1),
    "a shot reaches the ground": (shot, [0.0, 1.0, 10.0, 12.0], 4.0, lambda xp, t, y: y[1], -1),
    "a shot in wind passes a wall": (
        shot_in_wind,
        [0.0, 1.0, 10.0, 12.0],
        4.0,
        lambda xp, t, y: y[0] - 9.0,
        0,
    ),
    "a pendulum passes the lowest point": (pendulum, [2.0, 0.0], 25.0, lambda xp, t, y: y[0], 0),
    "a driven oscillator passes a threshold": (driven, [0.0, 0.0], 30.0, lambda xp, t, y: y[0] - 0.3, 1),
    "a rocket is at its highest": (rocket, [0.0, 0.0], 4.0, lambda xp, t, y: y[1], -1),
    "a capsule opens its parachute": (reentry, [30.0, -2.0], 8.0, lambda xp, t, y: y[0] - 5.0, -1),
    "a satellite is at its nearest": (
        satellite,
        [1.0, 0.0, 0.0, 1.2],
        40.0,
        lambda xp, t, y: y[0] * y[2] + y[1] * y[3],
        1,
    ),
    "a Duffing oscillator turns": (duffing, [1.0, 0.0], 40.0, lambda xp, t, y: y[1], 0),
    "a slider passes a moving mark": (slider, [2.0, 0.0], 15.0, lambda xp, t, y: y[0] - 0.1 * t, 0),
}


def ours(f, y0, t1, g, direction, **options):
    sol = solve(
        lambda t, y: torch.stack(f(torch, t, y)),
        torch.tensor(y0, dtype=DOUBLE),
        [0.0, t1],
        events=Event(lambda t, y: g(torch, t, y), direction=direction),
        **options,
    )
    return sol.events[0]


@pytest.mark.parametrize("name", SYSTEMS)
def test_times_of_events(name):
    f, y0, t1, g, direction = SYSTEMS[name]

    def event(t, y):
        return g(np, t, y)

    event.direction = direction
    right = solve_ivp(
        lambda t, y: f(np, t, y),
        (0.0, t1),
        y0,
        method="DOP853",
        events=event,
        rtol=1e-12,
        atol=1e-13,
        max_step=t1 / 200,
    )
    found = ours(f, y0, t1, g, direction, method="dopri8", rtol=1e-11, atol=1e-12, at_rest="ignore")
    (times,), (states,) = right.t_events, right.y_events
    times, states = (x[times > 0] for x in (times, states))  # one that is zero at t0 has not left it
    assert len(times) > 0
    assert len(found.t) == len(times)
    np.testing.assert_allclose(found.t, times, rtol=0, atol=OFF)
    np.testing.assert_allclose(found.y, states, rtol=0, atol=OFF * 100)


def test_bounces_with_drag():
    """scipy has no jumps: its terminal events, one after the other."""

    def ground(t, y):
        return y[0]

    ground.terminal, ground.direction = True, -1
    y, t, times = np.array([20.0, 0.0]), 0.0, []
    while len(times) < 3:
        right = solve_ivp(
            lambda t, y: stone(np, t, y),
            (t, 7.0),
            y,
            method="DOP853",
            events=ground,
            rtol=1e-12,
            atol=1e-13,
            max_step=0.05,
        )
        t = right.t_events[0][0]
        times.append(t)
        y = np.array([1e-13, -0.7 * right.y_events[0][0][1]])
    sol = solve(
        lambda t, y: torch.stack(stone(torch, t, y)),
        torch.tensor([20.0, 0.0], dtype=DOUBLE),
        [0.0, 7.0],
        events=Event(
            lambda t, y: y[0], direction=-1, apply=lambda t, y: torch.stack([0 * y[0], -0.7 * y[1]])
        ),
        method="dopri8",
        rtol=1e-11,
        atol=1e-12,
        at_rest="ignore",
    )
    assert len(sol.events[0].t) >= 3
    np.testing.assert_allclose(sol.events[0].t[:3], times, rtol=0, atol=OFF)
