"""`event_fn` and `odeint_event` as torchdiffeq has them: shapes, direction, errors, and programs of its own."""

import math
from functools import partial

import pytest
import torch

import torchaca as aca
from torchaca import METHODS, odeint, odeint_adjoint, odeint_event

DOUBLE = torch.float64
INTERFACES = {"odeint": odeint, "odeint_adjoint": odeint_adjoint}


class Sine(torch.nn.Module):
    """torchdiffeq's test problem of that name: y = 0.5 t^4 sin 2t - 0.25 t^2 sin 2t + t^3 - t^2 + ... solved from 1."""

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))

    def forward(self, t, y):
        return torch.stack([y[1], -(self.rate**2) * y[0]])


def start():
    return torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)


def options_of(name):
    if METHODS[name].adaptive:
        return {"method": name, "rtol": 1e-7, "atol": 1e-9}
    return {"method": name, "options": {"step_size": 0.01}}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["dopri5", "tsit5", "bosh3", "rk4", "midpoint", "euler", "dopri8"])
def test_the_time_the_shapes_and_the_gradients(name, reverse):
    f, y0, t0 = Sine(), start(), torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    t, ys = odeint_event(
        f, y0, t0, event_fn=lambda t, y: y[0] - 0.9, reverse_time=reverse, **options_of(name)
    )
    assert t.shape == ()
    assert t.dtype == DOUBLE
    assert ys.shape == (2, 2)
    assert torch.equal(ys[0], y0)
    sign, off = (-1 if reverse else 1), (5e-2 if name == "euler" else 1e-4)
    first = math.asin(0.9)
    exact = 0.5 + first if not reverse else 0.5 - (math.pi + first)
    assert t.item() == pytest.approx(exact, abs=off)
    assert ys[1, 0].item() == pytest.approx(0.9, abs=off)
    by_t0, by_rate, by_y0 = torch.autograd.grad(t, (t0, f.rate, y0))
    assert by_t0.item() == pytest.approx(1.0, abs=10 * off)
    slope = 1 / math.cos(first) if not reverse else -1 / math.cos(first)
    assert by_y0[0].abs().item() > 0
    assert sign * slope > 0
    assert math.isfinite(by_rate.item())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_it(name):
    t, _ = odeint_event(
        Sine(), start(), torch.tensor(0.0), event_fn=lambda t, y: y[0] - 0.9, **options_of(name)
    )
    assert t.item() == pytest.approx(math.asin(0.9), abs=2e-2 if name == "euler" else 1e-3)


@pytest.mark.parametrize("interface", INTERFACES)
def test_any_entry_of_the_event_function_ends_the_solve(interface):
    y0 = torch.tensor([1.0, 0.3, -2.0], dtype=DOUBLE)
    t, ys = INTERFACES[interface](
        lambda t, y: -torch.ones_like(y) * torch.tensor([1.0, 1.0, -1.0]).to(y),
        y0,
        torch.tensor([0.0, 1.0], dtype=DOUBLE),
        event_fn=lambda t, y: y,
        **({"adjoint_params": ()} if interface == "odeint_adjoint" else {}),
    )
    assert t.item() == pytest.approx(0.3)
    assert ys[-1].tolist() == pytest.approx([0.7, 0.0, -1.7], abs=1e-8)


class Ball(torch.nn.Module):
    """torchdiffeq's example bouncing_ball.py: a tuple of states, times that feed the next solve."""

    def __init__(self, interface):
        super().__init__()
        self.gravity = torch.nn.Parameter(torch.tensor([9.8], dtype=DOUBLE))
        self.log_radius = torch.nn.Parameter(torch.log(torch.tensor(0.1, dtype=DOUBLE)))
        self.t0 = torch.nn.Parameter(torch.tensor([0.0], dtype=DOUBLE))
        self.pos = torch.nn.Parameter(torch.tensor([10.0], dtype=DOUBLE))
        self.vel = torch.nn.Parameter(torch.tensor([0.0], dtype=DOUBLE))
        self.absorption = torch.nn.Parameter(torch.tensor([0.2], dtype=DOUBLE))
        self.interface = interface

    def forward(self, t, state):
        _, vel, _ = state
        return vel, -self.gravity, torch.zeros_like(state[2])

    def event_fn(self, t, state):
        return state[0] - torch.exp(state[2])

    def collisions(self, n):
        t0, state = self.t0, (self.pos, self.vel, self.log_radius)
        times = []
        for _ in range(n):
            t, ys = odeint_event(
                self,
                state,
                t0,
                event_fn=self.event_fn,
                reverse_time=False,
                atol=1e-10,
                rtol=1e-10,
                odeint_interface=self.interface,
            )
            pos, vel, radius = (y[-1] for y in ys)
            state = pos + 1e-9, -vel * (1 - self.absorption), radius
            t0 = t
            times.append(t)
        return times


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint, partial(odeint, method="tsit5")])
def test_the_bouncing_ball_of_torchdiffeq(interface):
    ball = Ball(interface)
    times = ball.collisions(5)
    h = ball.pos.detach() - ball.log_radius.exp().detach()
    g, e = ball.gravity.detach().requires_grad_(), (1 - ball.absorption).detach()
    first = torch.sqrt(2 * h / g)
    last = first * (1 + 2 * sum(e**k for k in range(1, 5)))
    assert times[-1].item() == pytest.approx(last.item(), abs=1e-6)
    (found,) = torch.autograd.grad(times[-1], ball.gravity, retain_graph=True)
    assert found.item() == pytest.approx(torch.autograd.grad(last, g)[0].item(), abs=1e-6)
    (start,) = torch.autograd.grad(times[-1], ball.t0, retain_graph=True)
    assert start.item() == pytest.approx(1.0)
    times[-1].backward()
    assert ball.log_radius.grad.item() != 0


def test_what_torchdiffeq_refuses():
    f, y0 = Sine(), start()
    with pytest.raises(AssertionError, match="requires `step_size`"):
        odeint_event(f, y0, torch.tensor(0.0), event_fn=lambda t, y: y[0] - 2, method="rk4")
    with pytest.raises(ValueError, match=r"We require len\(t\) == 2"):
        odeint(f, y0, torch.tensor([0.0, 1.0, 2.0]), event_fn=lambda t, y: y[0])
    with pytest.raises(AssertionError, match=r"max_num_steps exceeded"):
        odeint_event(f, y0, torch.tensor(0.0), event_fn=lambda t, y: y[0] - 2, options={"max_num_steps": 100})


@pytest.mark.slow
def test_fixed_steps_end_where_torchdiffeq_gives_up():
    with pytest.raises(RuntimeError, match="Reached maximum number of iterations 20000"):
        odeint_event(
            Sine(),
            start(),
            torch.tensor(0.0),
            event_fn=lambda t, y: y[0] - 2,
            method="euler",
            options={"step_size": 1e-3},
        )


def test_an_event_far_behind_the_first_window():
    """y' = 1e-3: it takes 900 units of time, and few steps."""
    sol = odeint_event(
        lambda t, y: torch.full_like(y, 1e-3),
        torch.zeros(1, dtype=DOUBLE),
        torch.tensor(0.0, dtype=DOUBLE),
        event_fn=lambda t, y: y - 0.9,
    )
    assert sol[0].item() == pytest.approx(900.0)


def test_the_names_are_there():
    assert aca.odeint_event is odeint_event
