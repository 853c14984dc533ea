"""Events beside what else a solve can do: save=, debug=True, progress=True, states, inference mode."""

import math

import pytest
import torch
from gradients.settings import EVERY, options_for

from torchaca import Event, SolverError, solve
from torchaca.gradients import Facts, fitting

DOUBLE = torch.float64
MOVES = [name for name, gradient in EVERY.items() if Facts.of(gradient).moves]


def leaf(x):
    return torch.tensor(x, dtype=DOUBLE, requires_grad=True)


def fall(rate):
    return lambda t, y: torch.stack([y[1], -rate * y[0] - 0.1 * y[1]])


def kick(level, terminal=False):
    def apply(t, y):
        return torch.stack([y[0], -0.5 * y[1] - 1.0])

    return Event(lambda t, y: y[0] - level, terminal, direction=-1, apply=None if terminal else apply)


def run(name, terminal=False, **options):
    given = leaf(1.3), leaf(0.2), leaf([1.0, 0.0])
    rate, level, y0 = given
    events = kick(level, terminal)
    return given, solve(
        fall(rate), y0, [0.0, 0.5, 1.7, 3.0], events=events, **options_for(EVERY[name], **options)
    )


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_save_is_a_function_of_each_output(name, terminal):
    """Its time as well, which is that of the event if that ends the solve."""
    given, sol = run(name, terminal, save=lambda t, y: (t * y[0], y.square().sum()))
    own, right = run(name, terminal)
    assert sol.status == right.status == ("event" if terminal else "success")
    values = torch.stack([t * y[0] for t, y in zip(right.ts, right.ys, strict=True)])
    squares = right.ys.square().sum(1)
    torch.testing.assert_close(sol.ys, (values, squares), rtol=0, atol=1e-12)
    found = torch.autograd.grad(sol.ys[0].sum() + sol.ys[1].sum(), given)
    wanted = torch.autograd.grad(values.sum() + squares.sum(), own)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.state.y, right.state.y, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:torchaca")
@pytest.mark.parametrize("name", MOVES)
def test_debug_follows_all_stretches(name):
    given, sol = run(name, debug=True)
    own, right = run(name)
    assert len(sol.events[0].t) > 0
    found = torch.autograd.grad(sol.ys[-1].sum(), given)
    torch.testing.assert_close(found, torch.autograd.grad(right.ys[-1].sum(), own), rtol=1e-9, atol=1e-12)
    numbers = [point.step for point in sol.trace.points]
    assert numbers == [*reversed(range(len(numbers)))]
    assert sol.trace.ts == sorted(sol.trace.ts)
    assert sol.trace.ts[0] == 0.0
    assert sol.trace.ts[-1] == 3.0


def test_debug_names_the_step_in_which_a_gradient_becomes_infinite():
    def f(t, y):
        return torch.where(t < 1, 0.0 * y, torch.sqrt(y * 0.0)) + 1.0

    y0 = leaf([0.0])
    event = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y + 1)
    sol = solve(f, y0, [0.0, 1.5], dt=0.25, method="rk4", events=event, debug=True)
    with pytest.raises(SolverError, match=r"in step 6 of 6") as caught:
        sol.ys[-1].sum().backward()
    assert caught.value.kind == "gradient"


def test_a_solve_with_events_goes_on():
    """Two windows are one solve, but for the step that ends between them."""
    rate, level, y0 = leaf(1.3), leaf(0.2), leaf([1.0, 0.0])
    fine = {"rtol": 1e-9, "atol": 1e-11}
    whole = solve(fall(rate), y0, [0.0, 3.0, 6.0], events=kick(level), **fine)
    first = solve(fall(rate), y0, [0.0, 3.0], events=kick(level), **fine)
    second = solve(fall(rate), first.state, [3.0, 6.0], events=kick(level), **fine)
    times = torch.cat([first.events[0].t, second.events[0].t])
    torch.testing.assert_close(times, whole.events[0].t, rtol=0, atol=1e-8)
    assert second.stats.accepted > first.stats.accepted
    grads = (torch.autograd.grad(sol.ys[-1].sum(), (rate, level, y0)) for sol in (second, whole))
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"method": "alf", "rtol": 1e-4, "atol": 1e-6}, {"dt": 0.1}])
def test_it_goes_on_from_a_terminal_event(options):
    y0 = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    end = Event(lambda t, y: y[0] - 0.5, terminal=True)
    first = solve(lambda t, y: torch.stack([y[1], -y[0]]), y0, [0.0, 3.0], events=end, **options)
    t = first.state.t
    assert t == first.ts[-1].item() == pytest.approx(math.pi / 6, abs=1e-2)
    second = solve(lambda t, y: torch.stack([y[1], -y[0]]), first.state, [t, t + 1.0], **options)
    assert second.ys[-1, 0].item() == pytest.approx(math.sin(math.pi / 6 + 1), abs=1e-2)


def test_inference_mode_finds_the_same():
    level = torch.tensor(0.2, dtype=DOUBLE)
    y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            sol = solve(fall(1.3), y0.clone(), [0.0, 9.0], events=kick(level.clone()), method="rk4", dt=0.3)
        found.append(sol.events[0].t.clone())
    assert len(found[0]) > 1
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)


def test_the_budget_of_graphs_is_that_of_all_stretches(monkeypatch):
    """What the first stretch has recorded is not there for the second."""

    def once():
        return run("aca-auto", dt=0.02, method="rk4")

    made = []
    init = fitting.Budget.__init__

    def spy(self, *args):
        init(self, *args)
        made.append(self)

    with monkeypatch.context() as m:
        m.setattr(fitting.Budget, "__init__", spy)
        given, whole = once()
    wanted = torch.autograd.grad(whole.ys[-1].sum(), given)
    assert whole.stats.nfe_backward == 0
    first, last = (fitting.BUDGET - budget.left for budget in made)
    room = int(max(first, last - first)) + made[0].step
    assert room < last
    monkeypatch.setattr(fitting, "BUDGET", room)
    given, sol = once()
    found = torch.autograd.grad(sol.ys[-1].sum(), given)
    assert sol.stats.nfe_backward > 0  # each stretch alone would have fitted
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
