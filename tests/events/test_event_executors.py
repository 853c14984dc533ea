"""Events under every executor: the same solution and derivatives, and who found them."""

import math
import warnings

import pytest
import torch
from gradients.settings import EVERY, options_for

import torchaca as aca
from torchaca import Event, explain, solve
from torchaca.executors import EXECUTORS
from torchaca.native.door import takes

DOUBLE = torch.float64
FINE = {"rtol": 1e-7, "atol": 1e-9}
NATIVE = [
    name for name, gradient in EVERY.items() if takes(gradient) and "method" not in options_for(gradient)
]


class Swing(torch.nn.Module):
    """A pendulum whose damping is learned."""

    def __init__(self):
        super().__init__()
        self.damping = torch.nn.Parameter(torch.tensor(0.1, dtype=DOUBLE))

    def forward(self, t, y):
        return torch.stack([y[1], -torch.sin(y[0]) - self.damping * y[1] + 0.1 * torch.cos(t)])


def path(mode, leaves, terminal=False, **options):
    """A swing that is kicked, or ends, where it passes a level."""
    f, y0, level, kick, t0 = leaves
    event = Event(
        lambda t, y: y[0] - level,
        terminal=terminal,
        direction=-1,
        apply=None if terminal else lambda t, y: torch.stack([y[0], y[1] * kick]),
    )
    ts = torch.stack([t0, t0 + 1.0, torch.full_like(t0, 9.0)])
    return solve(f, y0, ts, events=event, compile=mode, **{**FINE, **options})


def leaves():
    y0 = torch.tensor([1.0, 0.3], dtype=DOUBLE, requires_grad=True)
    return Swing(), y0, *(torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (0.2, 0.9, 0.1))


def slopes(sol, given):
    f, *rest = given
    loss = sol.ys[-1].square().sum() + sol.ys[1].sum() + sol.events[0].t.sum() + sol.events[0].y[:, 1].sum()
    return torch.autograd.grad(loss, [f.damping, *rest], allow_unused=True)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", NATIVE)
def test_native_steps_meet_events(name, terminal):
    """The loop in C stops at events, or each step is native; without a warning."""
    found = {}
    for mode in (False, "native"):
        given = leaves()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sol = path(mode, given, terminal, gradient=EVERY[name])
        found[mode] = sol, slopes(sol, given)
    (right, wanted), (sol, grads) = found.values()
    assert sol.stats.executor == "native"
    assert len(sol.events[0].t) == (1 if terminal else len(right.events[0].t)) > 0
    torch.testing.assert_close(sol.events[0].t, right.events[0].t, rtol=0, atol=1e-11)
    torch.testing.assert_close(sol.ys, right.ys, rtol=0, atol=1e-10)
    for x, y in zip(grads, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_without_a_gradient_and_with_fixed_steps_and_dense_output():
    with torch.no_grad():
        for options in ({}, {"rtol": None, "atol": None, "dt": 0.05}, {"method": "dopri8", "dense": True}):
            sol, right = (path(mode, leaves(), **options) for mode in ("native", False))
            assert sol.stats.executor == "native"
            assert (sol.stats.accepted, sol.stats.rejected) == (right.stats.accepted, right.stats.rejected)
            assert sol.stats.nfe <= right.stats.nfe + len(right.events[0].t)
            torch.testing.assert_close(sol.events[0].t, right.events[0].t, rtol=0, atol=1e-9)
            if sol.dense is not None:
                times = torch.linspace(0.1, 9.0, 20, dtype=DOUBLE)
                torch.testing.assert_close(sol(times), right(times), rtol=0, atol=1e-9)


def test_second_derivatives_are_refused_in_words():
    given = leaves()
    sol = path(True, given)
    (first,) = torch.autograd.grad(sol.ys[-1].sum(), given[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of a native solve"):
        first.sum().backward()


@pytest.mark.parametrize("mode", [mode for mode in EXECUTORS if mode not in ("steps", "cuda-graphs")])
def test_who_solves_is_said(mode):
    options = {"events": Event(lambda t, y: y[0] - 0.5, terminal=True), "compile": mode}
    y0, t = torch.zeros(1, dtype=DOUBLE), [0.0, 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if mode == "loops" else "error")
        sol = solve(lambda t, y: torch.ones_like(y), y0, t, **options)
    said = explain(lambda t, y: torch.ones_like(y), y0, t, **options)
    assert said.executor == sol.stats.executor == ("native" if mode == "native" else "eager")
    assert ("in loops in C" if mode == "native" else "the loop in Python, operation") in str(said)


def test_whole_solves_that_cannot_stop_leave_events_to_the_eager_loop():
    event = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y - 0.5)
    y0, t = torch.zeros(1, dtype=DOUBLE), [0.0, 1.2]
    with pytest.warns(UserWarning, match="events are found in the eager loop"):
        sol = solve(lambda t, y: torch.ones_like(y), y0, t, events=event, compile="loops")
    assert sol.events[0].t.tolist() == pytest.approx([0.5, 1.0])
    eager = solve(lambda t, y: torch.ones_like(y), y0, t, events=event)
    assert (sol.stats.nfe, sol.stats.accepted) == (eager.stats.nfe, eager.stats.accepted)


@pytest.mark.slow
def test_compiled_steps_meet_events():
    event = Event(lambda t, y: y[0] - 0.5, terminal=True)
    y0 = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    sol = solve(
        lambda t, y: torch.stack([y[1], -y[0]]), y0, [0.0, 1.0], events=event, compile="steps", **FINE
    )
    assert sol.events[0].t.item() == pytest.approx(math.pi / 6)
    assert sol.stats.executor == "steps"


def test_explain_takes_a_state():
    state = solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0]).state
    assert explain(lambda t, y: -y, state, [1.0, 2.0]).executor == "native"
    with pytest.raises(ValueError, match="the state is at t = 1"):
        explain(lambda t, y: -y, state, [0.0, 2.0])
    assert aca.explain(lambda t, y: -y, state, [1.0, 2.0], compile=False).executor == "eager"
