"""Events of native solves: the loop in C stops at them, and finds what the loop in Python finds."""

import warnings
from collections import Counter

import pytest
import torch
from gradients.settings import EVERY, options_for

from torchaca import ACA, Event, SolverError, explain, odeint_event, solve
from torchaca.compiled import CannotCompile
from torchaca.events import Guard
from torchaca.gradients import Facts
from torchaca.native import executor, programs, run
from torchaca.native.door import takes
from torchaca.native.steps import NativeSteps
from torchaca.native.watched import Lookout

DOUBLE = torch.float64
FINE = {"rtol": 1e-7, "atol": 1e-9}
IN_C = [
    name
    for name, gradient in EVERY.items()
    if takes(gradient)
    and "method" not in options_for(gradient)
    and (Facts.of(gradient).replaceable or Facts.of(gradient).states)
]
"""The gradients whose solves are loops in C."""


class Net(torch.nn.Module):
    """A swing with a small net in it."""

    def __init__(self, dtype=DOUBLE):
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(
            dtype
        )

    def forward(self, t, y, *args):
        return torch.stack([y[1], -torch.sin(y[0])]) + 0.05 * self.net(y) * torch.cos(t)


NET, SINGLE = Net(), Net(torch.float32)
START = [1.0, 0.3]


def level(at, **options):
    return Event(lambda t, y: y[0] - at, **options)


def kick(t, y):
    return torch.stack([y[0], 0.9 * y[1]])


def fall(t, y):
    return torch.stack([y[1], torch.full_like(y[1], -9.81)])


def rest(t, y):
    return torch.stack([y[1], -y[1]])


TIMES = [0.1, 1.1, 6.0]
SYSTEMS = {
    "both directions": (NET, START, TIMES, level(0.2), {}),
    "rising": (NET, START, TIMES, level(0.2, direction=1), {}),
    "kicks": (NET, START, TIMES, level(0.2, direction=-1, apply=kick), {}),
    "backwards": (NET, START, [6.0, 1.1, 0.1], level(0.2, direction=1, apply=kick), {}),
    "the first of several": (NET, START, TIMES, [level(-0.5, terminal=True), level(0.9), level(-2.0)], {}),
    "at the same time": (
        NET,
        START,
        TIMES,
        [level(0.2), level(0.2, apply=kick), Event(lambda t, y: t - 2.0)],
        {},
    ),
    "zero at the start": (NET, START, TIMES, level(1.0), {}),
    "at rest": (rest, [0.5, 0.0], TIMES, level(0.5), {}),
    "a bounce": (
        fall,
        [1.0, 0.0],
        [0.0, 0.5, 1.5],
        level(0.0, direction=-1, apply=lambda t, y: -0.8 * y),
        {},
    ),
    "a deadline": (NET, START, TIMES, Event(lambda t, y: torch.sign(t - 1.3), terminal=True), {}),
    "an output at the event": (
        NET,
        START,
        [0.1, 2.0, 6.0],
        Event(lambda t, y: t - 2.0, apply=lambda t, y: 0.5 * y),
        {},
    ),
    "an event at the end": (NET, START, [0.1, 2.0], Event(lambda t, y: t - 2.0), {}),
    "twice in a step": (
        rest,
        [0.0, 1.0],
        [0.0, 5.0],
        Event(lambda t, y: (t - 1.9) * (t - 2.1)),
        {"dt0": 5.0, "rtol": 0.1},
    ),
    "jumps of f": (lambda t, y: NET(t, y) + (t > 1.5), START, TIMES, level(0.2), {"jump_ts": [1.5]}),
    "dense output": (NET, START, TIMES, level(0.2, apply=kick), {"dense": True, "method": "dopri8"}),
    "without f at the end": (
        NET,
        START,
        TIMES,
        level(0.2, apply=kick),
        {"method": "heun_euler", "rtol": 1e-4},
    ),
    "fixed steps": (NET, START, TIMES, level(0.2, apply=kick), {"method": "rk4", "dt": 0.07}),
    "a grid": (
        NET,
        START,
        [0.1, 6.0],
        level(0.2),
        {"method": "rk4", "grid": torch.linspace(0.1, 6.0, 60, dtype=DOUBLE).tolist()},
    ),
    "single precision": (SINGLE, START, TIMES, level(0.2, apply=kick), {"rtol": 1e-4, "atol": 1e-5}),
    "low accuracy": (NET, START, TIMES, level(0.2), {"rtol": 1e-3, "atol": 1e-6}),
}


def options_of(name):
    options = SYSTEMS[name][-1]
    return options if {"dt", "grid"} & {*options} else {**FINE, **options}


def solved(name, mode):
    f, start, t, events, _ = SYSTEMS[name]
    y0 = torch.tensor(start, dtype=torch.float32 if f is SINGLE else DOUBLE)
    return solve(f, y0, t, events=events, compile=mode, **options_of(name))


@pytest.fixture
def in_python(monkeypatch):
    """Have native solves look at each step in Python from now on."""

    def now():
        def none(*_):
            raise CannotCompile("told to stay in Python")

        monkeypatch.setattr(executor, "code_of_events", none)

    return now


def assert_same(sol, want, near):
    assert sol.status == want.status
    torch.testing.assert_close(sol.ts, want.ts, rtol=0, atol=near)
    torch.testing.assert_close(sol.ys, want.ys, rtol=near, atol=near)
    for own, others in zip(sol.events, want.events, strict=True):
        torch.testing.assert_close(own.t, others.t, rtol=0, atol=near)
        torch.testing.assert_close(own.y, others.y, rtol=near, atol=near)
    assert (sol.stats.accepted, sol.stats.rejected) == (want.stats.accepted, want.stats.rejected)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_loop_in_c_finds_what_the_loop_in_python_finds(name, in_python):
    """Times, states, steps and evaluations are those of the eager loop; the native steps in Python agree."""
    near = 1e-4 if SYSTEMS[name][0] is SINGLE else 1e-10
    with torch.no_grad():
        sol, want = solved(name, "native"), solved(name, False)
        assert (sol.stats.executor, sol.stats.stepwise) == ("native", "")
        assert_same(sol, want, near)
        assert sol.stats.nfe == want.stats.nfe
        in_python()
        other = solved(name, "native")
        assert other.stats.stepwise == "told to stay in Python"
        assert_same(sol, other, max(near, 1e-3 * options_of(name).get("rtol", 0)))
        if sol.dense is not None:
            at = torch.linspace(0.2, 5.9, 30, dtype=DOUBLE)
            torch.testing.assert_close(sol(at), want(at), rtol=0, atol=1e-9)


def slopes(mode, gradient, options):
    f, level_at = NET, torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)
    y0 = torch.tensor(START, dtype=DOUBLE, requires_grad=True)
    t = torch.tensor(TIMES, dtype=DOUBLE, requires_grad=True)
    events = [
        Event(lambda t, y: y[0] - level_at, direction=-1, apply=kick),
        Event(lambda t, y: y[0] + level_at, terminal=True),
    ]
    sol = solve(f, y0, t, events=events, compile=mode, gradient=gradient, **options)
    loss = sol.ys[1:].square().sum() + sol.ts[-1] + sum(e.t.sum() + e.y.sum() for e in sol.events)
    if sol.dense is not None:
        loss = loss + sol(torch.tensor([0.5, 1.3], dtype=DOUBLE)).sum()
    return sol, torch.autograd.grad(loss, [y0, t, level_at, *f.parameters()], allow_unused=True)


STEPS = {"adaptive": FINE, "dense": {**FINE, "dense": True}, "fixed": {"method": "rk4", "dt": 0.05}}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", IN_C)
def test_gradients_are_those_of_the_eager_loop(name, steps, monkeypatch):
    monkeypatch.setattr(run, "FIRST_CHUNK", 300)  # several chunks before the event
    monkeypatch.setattr(run, "CHUNK", 300)
    (sol, own), (want, grads) = (slopes(mode, EVERY[name], STEPS[steps]) for mode in ("native", False))
    assert (sol.stats.executor, sol.stats.stepwise, sol.status) == ("native", "", "event")
    assert_same(sol, want, 1e-11)
    torch.testing.assert_close(own, grads, rtol=1e-9, atol=1e-10)
    assert sol.stats.nfe_backward <= want.stats.nfe_backward


def test_steps_differentiated_as_several():
    (_, own), (_, grads) = (slopes(mode, ACA(substeps=3), FINE) for mode in ("native", False))
    torch.testing.assert_close(own, grads, rtol=1e-9, atol=1e-10)


def counted(monkeypatch, n, n_events):
    """Calls of g from Python, steps and looks in Python, of a solve of n steps in which so many events happen."""
    calls = Counter()

    def counting(own, name):
        def counts(*args):
            calls[name] += 1
            return own(*args)

        return counts

    for owner, name in ((Guard, "__call__"), (NativeSteps, "__call__"), (Lookout, "stops")):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name), f"{owner.__name__}.{name}"))
    with torch.no_grad():
        sol = solve(
            NET, torch.tensor(START, dtype=DOUBLE), [0.1, 6.0], events=level(0.2), n_steps=n, compile="native"
        )
    monkeypatch.undo()
    assert (sol.stats.accepted >= n, len(sol.events[0].t)) == (True, n_events)
    return calls


def test_python_is_asked_for_each_event_and_not_for_each_step(monkeypatch):
    """As often for 3000 steps as for 50: first of all in each stretch, and where an event happens."""
    few, many = (counted(monkeypatch, n, 2) for n in (50, 3000))
    assert few == many
    assert few["NativeSteps.__call__"] == 0
    assert few["Lookout.stops"] <= 2 * 2 + 1
    assert few["Guard.__call__"] <= 30


def test_nothing_is_compiled_again(monkeypatch):
    """For other starts, times, tolerances, levels, directions: the same code, of f and of g."""
    made, own = [], programs.compiled
    monkeypatch.setattr(programs, "compiled", lambda *given: made.append(given[1]) or own(*given))

    def solve_to(at, start, t, **options):
        event = Event(lambda t, y: y[0] ** 2 - at, direction=-1)
        return solve(NET, torch.tensor(start, dtype=DOUBLE), t, events=event, compile="native", **options)

    for at, end in (
        (0.3, 4.0),
        (0.4, 4.0),
        (0.5, 4.0),
    ):  # a number that changes is an input from the second on
        solve_to(at, START, [0.0, end], **FINE)
    made.clear()
    for i in range(4):
        solve_to(0.6 + 0.01 * i, [1.0, 0.1 * i], [0.0, 1.0, 5.0 + i], rtol=10.0 ** (-3 - i), atol=1e-6)
    assert made == []


def test_no_g_is_stale():
    """What g reads changes from solve to solve, or in `apply`: each time it is the eager loop's event."""
    net, read = (
        torch.nn.Linear(2, 1).to(DOUBLE),
        {"at": 0.2, "sign": 1.0, "tensor": torch.tensor(0.0, dtype=DOUBLE)},
    )

    def g(t, y):
        return read["sign"] * (y[0] - read["at"]) + read["tensor"] + 0.01 * net(y)[0]

    def moved(t, y):
        read["mark"] = -0.2
        return y

    def change(name, value):
        return lambda: read.__setitem__(name, value)

    changes = (
        lambda: None,
        *(change("at", x) for x in (0.3, 0.4, 0.5)),
        change("sign", -1.0),
        change("tensor", torch.tensor(0.05, dtype=DOUBLE)),
        lambda: net.weight.data.mul_(-2.0),
        lambda: net.register_forward_hook(lambda module, x, y: 2 * y),
    )
    seen = set()
    for make in changes:
        make()
        found = []
        for mode in ("native", False):
            read["mark"] = 5.0
            events = [Event(g, apply=moved), Event(lambda t, y: y[1] - read["mark"])]
            sol = solve(NET, torch.tensor(START, dtype=DOUBLE), TIMES, events=events, compile=mode, **FINE)
            found.append([t for e in sol.events for t in e.t.tolist()])
            assert len(sol.events[1].t) > 0
        assert sol.stats.stepwise == ""
        assert found[0] == pytest.approx(found[1], abs=1e-10)
        seen.add(tuple(found[1]))
    assert len(seen) == len(changes)


def branching(t, y):
    return y[0] - 0.2 if y[1] < 5 else y[0]


def remembering(t, y, seen=[]):  # noqa: B006
    seen.append(t.item())
    return y[0] - 0.2


def uncovered(t, y):
    return torch.linalg.eigvalsh(torch.diag(y))[0] - 0.2


@pytest.mark.parametrize("g", [branching, remembering, uncovered])
def test_what_cannot_be_code_is_looked_at_in_python(g):
    """The solution is the same, its steps are native ones, and why is said: in `stats` and by `explain`."""
    event, y0 = Event(g, terminal=True), torch.tensor(START, dtype=DOUBLE)
    sol, want = (solve(NET, y0, TIMES, events=event, compile=mode, **FINE) for mode in (True, False))
    assert sol.stats.executor == "native"
    assert sol.stats.stepwise.startswith("g of events[0] ")
    assert_same(sol, want, 1e-10)
    said = explain(NET, y0, TIMES, events=event, **FINE)
    assert said.stepwise == sol.stats.stepwise
    assert f"in the loop in Python: {said.stepwise}" in str(said)


def test_why_else_the_loop_is_in_python():
    """A bar, and gradients that go from step to step themselves."""
    event, y0 = level(0.2), torch.tensor(START, dtype=DOUBLE, requires_grad=True)
    sol = solve(NET, y0, TIMES, events=event, compile=True, gradient=ACA(grad_rtol=0.1), **FINE)
    assert sol.stats.executor == "native"
    assert "'aca' with these settings goes from step to step" in sol.stats.stepwise
    assert solve(NET, y0, TIMES, compile=True, **FINE).stats.stepwise == ""


def test_a_state_of_any_structure_and_dtypes():
    """g gets args and the structure; its own dtype may be another one."""
    y0 = {"q": torch.tensor([1.0, 2.0], dtype=DOUBLE), "p": torch.zeros(2)}
    rate = torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)

    def f(t, y, rate):
        return {"q": y["p"].double(), "p": (-rate * y["q"]).float()}

    event = Event(lambda t, y, rate: y["p"].sum() + rate.float(), terminal=True)
    found = []
    for mode in ("native", False):
        sol = solve(f, y0, [0.0, 4.0], args=(rate,), events=event, compile=mode, rtol=1e-5, atol=1e-6)
        found.append((sol.ts[-1], *torch.autograd.grad(sol.ts[-1] + sol.ys["q"][-1].sum(), rate)))
        assert sol.stats.stepwise == ""
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


FAILING = {
    "nan": (NET, [0.1, 6.0], Event(lambda t, y: torch.sqrt(0.9 - t) + 1), {}),
    "inf": (NET, [0.1, 2.0, 6.0], Event(lambda t, y: 1 / (2.5 - t).clamp(min=0)), {}),
    "nan at the start": (NET, [0.1, 6.0], Event(lambda t, y: torch.log(y[0] - 2)), {}),
    "zeno": (
        fall,
        [0.0, 9.0],
        level(0.0, direction=-1, apply=lambda t, y: torch.stack([y[0], -0.5 * y[1]])),
        {},
    ),
    "max steps of all stretches": (NET, [0.1, 60.0], level(0.2), {"max_steps": 60}),
}


@pytest.mark.parametrize("case", FAILING)
def test_failures_are_told_of_in_the_same_words(case):
    f, t, event, options = FAILING[case]
    found = []
    for mode in ("native", False):
        y0 = torch.tensor(START, dtype=DOUBLE, requires_grad=True)
        given = {"events": event, "compile": mode, **FINE, **options}
        sol = solve(f, y0, t, on_failure="status", **given)
        with pytest.raises(SolverError) as failure:
            solve(f, y0, t, **given)
        found.append((sol, failure.value))
    (sol, error), (want, wanted) = found
    assert (sol.stats.executor, sol.stats.stepwise) == ("native", "")
    assert (error.kind, str(error)) == (wanted.kind, str(wanted))
    assert_same(sol, want, 1e-9)


def test_a_solve_goes_on_behind_a_terminal_event():
    ends = []
    for mode in ("native", False):
        sol = solve(
            NET,
            torch.tensor(START, dtype=DOUBLE),
            TIMES,
            events=level(0.2, terminal=True),
            compile=mode,
            **FINE,
        )
        on = solve(NET, sol.state, [sol.ts[-1], 6.0], events=level(-0.2), compile=mode, **FINE)
        ends.append((on.ys[-1], on.events[0].t))
        assert on.stats.executor == (mode or "eager")
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)


def test_torchdiffeq_events():
    """Windows until an event happens, of several numbers."""
    t0, y0 = torch.tensor(0.0, dtype=DOUBLE), torch.tensor([3.0, 0.3], dtype=DOUBLE)
    found = [
        odeint_event(
            lambda t, y: -0.1 * y,
            y0,
            t0,
            event_fn=lambda t, y: torch.stack([y[0] - 0.02, y[1] - 0.01]),
            compile=mode,
        )
        for mode in ("native", False)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_memory_of_the_last_step_is_not_lent_out():
    """What the crossing knows of a chunk is copied: two solves after each other do not meet."""
    y0 = torch.tensor(START, dtype=DOUBLE, requires_grad=True)
    first = solve(NET, y0, TIMES, events=level(0.2, apply=kick), compile="native", **FINE)
    before = first.ys.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(NET, 0.5 * y0, TIMES, events=level(0.2, apply=kick), compile="native", **FINE)
    assert torch.equal(first.ys, before)
