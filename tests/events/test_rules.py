"""Which crossings count, in which order they happen, and what a solve is after them."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from gradients.settings import EVERY, options_for

import torchaca as aca
from torchaca import METHODS, Event, solve

DOUBLE = torch.float64
FINE = {"rtol": 1e-9, "atol": 1e-11}


def options_of(name, n=400):
    return {"method": name, **(FINE if METHODS[name].adaptive else {"n_steps": n})}


def clock(t, y):
    return torch.ones_like(y)


def start(*values):
    return torch.tensor(values, dtype=DOUBLE)


def wave(t, y):
    """sin t and cos t."""
    return torch.stack([y[1], -y[0]])


def times(sol, i=0):
    return sol.events[i].t.tolist()


def test_direction_counts_in_the_direction_of_the_solve():
    for direction, expected in ((0, [1, 2, 3]), (1, [2]), (-1, [1, 3])):
        sol = solve(
            wave, start(0.0, 1.0), [0.0, 10.0], events=Event(lambda t, y: y[0], direction=direction), **FINE
        )
        assert times(sol) == pytest.approx([k * math.pi for k in expected], abs=1e-7)
        assert sol.status == "success"
    back = solve(wave, start(0.0, 1.0), [0.0, -10.0], events=Event(lambda t, y: y[0], direction=1), **FINE)
    assert times(back) == pytest.approx([-math.pi, -3 * math.pi], abs=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_an_event_ends_every_method_as_precisely_as_its_order_allows(name):
    """The error of t* falls with the order of the method."""
    method, off = METHODS[name], []
    for n in (10, 20, 40, 80):
        sol = solve(
            lambda t, y: torch.stack([y[1] + 0.1 * t * y[0], -torch.sin(y[0]) * (1 + t)]),
            start(1.0, 0.3),
            [0.0, 2.0],
            method=name,
            n_steps=n,
            events=Event(lambda t, y: y[0] - 0.2 - 0.1 * t, terminal=True),
        )
        assert sol.status == "event"
        off.append(abs(sol.ts[-1].item() - REFERENCE))
    resolved = [x for x in off if x > 1e-12] if off[1] > 1e-12 else off[:2]
    slope = math.log2(resolved[0] / resolved[-1]) / (len(resolved) - 1)
    assert slope > method.order - 0.5


REFERENCE = (
    solve(
        lambda t, y: torch.stack([y[1] + 0.1 * t * y[0], -torch.sin(y[0]) * (1 + t)]),
        start(1.0, 0.3),
        [0.0, 2.0],
        method="dopri8",
        rtol=1e-13,
        atol=1e-14,
        events=Event(lambda t, y: y[0] - 0.2 - 0.1 * t, terminal=True),
    )
    .ts[-1]
    .item()
)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.adaptive])
def test_what_an_event_costs(name):
    """At most a step more than a solve that ends there; nothing where there is none."""
    method = METHODS[name]
    extra = max(
        0, getattr(method, "dense_stages", 0) - method.stages
    )  # an interpolant with stages of its own

    coarse = {"rtol": 1e-5, "atol": 1e-7}

    def cost(t1, level=None):
        events = None if level is None else Event(lambda t, y: y[0] - level, terminal=True)
        sol = solve(wave, start(1.0, 0.0), [0.0, t1], events=events, method=name, dt0=0.1, **coarse)
        return sol.stats.nfe, sol

    alone, _ = cost(4.0)
    assert cost(4.0, level=7.0)[0] == alone
    evaluations, sol = cost(4.0, level=0.3)
    assert sol.status == "event"
    least, other = cost(sol.ts[-1].item())
    tried = sol.stats.rejected - other.stats.rejected  # steps over the event that were too long for y as well
    assert evaluations <= least + (1 + tried) * method.stages + extra


def test_what_a_jump_costs():
    """At most two steps more, and the first evaluation after it."""
    kick = Event(lambda t, y: y[0] - 0.3, direction=-1, apply=lambda t, y: y + torch.tensor([0.0, -0.1]))
    sol = solve(wave, start(1.0, 0.0), [0.0, 2.0], events=kick, rtol=1e-6, atol=1e-8)
    assert len(times(sol)) == 1
    at = times(sol)[0]
    first = solve(wave, start(1.0, 0.0), [0.0, at], rtol=1e-6, atol=1e-8)
    second = solve(wave, first.ys[-1] + start(0.0, -0.1), [at, 2.0], rtol=1e-6, atol=1e-8)
    assert sol.stats.nfe <= first.stats.nfe + second.stats.nfe + METHODS["dopri5"].stages


def test_two_crossings_in_one_step_are_seen_at_its_quarters():
    """A step of length 1 from 0: g is below zero between 0.4 and 0.6 alone."""
    event = Event(lambda t, y: (y[0] - 0.4) * (y[0] - 0.6))
    sol = solve(clock, start(0.0), [0.0, 1.0], n_steps=1, method="rk4", events=event)
    assert times(sol) == pytest.approx([0.4, 0.6])


def test_an_event_that_is_zero_at_the_start_counts_after_it_has_left_zero():
    sol = solve(wave, start(0.0, 1.0), [0.0, 4.0], events=Event(lambda t, y: y[0]), **FINE)
    assert times(sol) == pytest.approx([math.pi])
    rounding = solve(wave, start(1e-16, 1.0), [0.0, 4.0], events=Event(lambda t, y: y[0]), **FINE)
    assert times(rounding) == pytest.approx([math.pi])
    still = solve(lambda t, y: 0 * y, start(0.0), [0.0, 4.0], events=Event(lambda t, y: y[0]), **FINE)
    assert times(still) == []


def test_a_hop_far_shorter_than_the_step_is_not_missed():
    """The ball leaves the ground and is below it at the first quarter of the step: it has bounced in between."""

    def fall(t, y):
        return torch.stack([y[1], y[0] * 0 - 10])

    bounce = Event(lambda t, y: y[0], direction=-1, apply=lambda t, y: torch.stack([y[0], -y[1]]))
    sol = solve(fall, start(0.0, 0.5), [0.0, 10.0], method="rk4", n_steps=5, events=bounce)
    assert times(sol) == pytest.approx([0.1 * k for k in range(1, 100 + 1)], abs=1e-9)
    assert sol.ys[-1, 0].item() == pytest.approx(0.0, abs=1e-8)


def test_events_fire_in_order_of_time_and_simultaneous_ones_in_order_of_the_list():
    seen = []

    def named(name, level):
        def apply(t, y):
            seen.append((name, t.item()))
            return y + 0

        return Event(lambda t, y: y[0] - level, apply=apply)

    events = [named("late", 0.8), named("first", 0.5), named("second", 0.5), named("early", 0.2)]
    sol = solve(clock, start(0.0), [0.0, 1.0], n_steps=1, method="rk4", events=events)
    assert [name for name, _ in seen] == ["early", "first", "second", "late"]
    assert [t for _, t in seen] == pytest.approx([0.2, 0.5, 0.5, 0.8])
    assert [times(sol, i) for i in range(4)] == [pytest.approx([x]) for x in (0.8, 0.5, 0.5, 0.2)]


def test_a_simultaneous_terminal_event_ends_after_those_before_it():
    add = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y + 1)
    end = Event(lambda t, y: t - 0.5, terminal=True)
    sol = solve(clock, start(0.0), [0.0, 1.0], events=[add, end])
    assert sol.status == "event"
    assert sol.ys[-1].item() == pytest.approx(1.5)
    other = solve(clock, start(0.0), [0.0, 1.0], events=[end, add])
    assert other.ys[-1].item() == pytest.approx(0.5)
    assert times(other, 1) == []


def test_outputs_around_an_event_are_states_before_and_after_it():
    jump = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y + 1)
    t = [0.0, 0.25, 0.5 - 1e-6, 0.5 + 1e-6, 0.75, 1.0]
    sol = solve(clock, start(0.0), t, events=jump)
    assert sol.ts.tolist() == t
    assert sol.ys[:, 0].tolist() == pytest.approx([0.0, 0.25, 0.5, 1.5, 1.75, 2.0], abs=1e-5)
    assert sol.events[0].y[0].item() == pytest.approx(0.5)


def test_an_output_at_the_event_is_the_state_after_the_jump():
    jump = Event(lambda t, y: t - 0.5, apply=lambda t, y: y + 1)
    sol = solve(clock, start(0.0), [0.0, 0.5, 0.5, 1.0], events=jump)
    assert sol.ys[:, 0].tolist() == pytest.approx([0.0, 1.5, 1.5, 2.0])
    last = solve(clock, start(0.0), [0.0, 0.5], events=jump)
    assert last.ys[:, 0].tolist() == pytest.approx([0.0, 1.5])
    end = solve(clock, start(0.0), [0.0, 0.25, 0.5, 1.0], events=Event(lambda t, y: t - 0.5, terminal=True))
    assert end.ts.tolist() == pytest.approx([0.0, 0.25, 0.5])
    assert end.ys[:, 0].tolist() == pytest.approx([0.0, 0.25, 0.5])


def test_a_terminal_event_that_is_never_reached_is_no_failure():
    sol = solve(clock, start(0.0), [0.0, 1.0], events=Event(lambda t, y: y[0] - 7, terminal=True))
    assert sol.status == "success"
    assert sol.events[0].t.shape == (0,)
    assert sol.events[0].y.shape == (0, 1)
    assert sol.ts.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("on_failure", aca.options.ON_FAILURE)
def test_events_without_end(on_failure):
    ball = partial(
        solve,
        lambda t, y: torch.stack([y[1], y[0] * 0 - 9.81]),
        start(10.0, 0.0),
        [0.0, 1.0, 20.0],
        events=Event(lambda t, y: y[0], apply=lambda t, y: torch.stack([y[0], -0.5 * y[1]])),
        at_rest="ignore",
        on_failure=on_failure,
    )
    end = 3 * math.sqrt(2 * 10 / 9.81)  # the sum of all bounces
    if on_failure == "raise":
        with pytest.raises(aca.SolverError, match=r"events\[0\]: 3 events in a row") as caught:
            ball()
        assert caught.value.kind == "zeno"
        sol = caught.value.partial
        assert sol.ts.tolist() == [0.0, 1.0]
    else:
        sol = ball()
        assert sol.status == "zeno"
        assert len(sol.ys) == (3 if on_failure == "nan" else 2)
    assert times(sol)[-1] == pytest.approx(end)


def test_grazing_has_values_and_no_derivative():
    y0 = start(0.0).requires_grad_()
    event = Event(lambda t, y: (y[0] - 0.5) ** 3, terminal=True)
    with torch.no_grad():
        assert times(solve(clock, y0, [0.0, 1.0], events=event)) == pytest.approx([0.5], abs=1e-4)
    with pytest.raises(aca.SolverError, match="only grazes zero") as caught:
        solve(clock, y0, [0.0, 1.0], events=event)
    assert caught.value.kind == "grazing"


def test_a_state_of_any_structure():
    y0 = {"a": torch.zeros(2, 3), "b": (torch.ones((), dtype=DOUBLE),)}

    def f(t, y, rate):
        return {"a": torch.ones_like(y["a"]) * rate, "b": (-y["b"][0],)}

    def apply(t, y, rate):
        return {"b": y["b"], "a": y["a"] - rate}

    rate = torch.tensor(2.0, requires_grad=True)
    event = Event(lambda t, y, rate: y["a"].sum() - 3 * rate, apply=apply)
    sol = solve(f, y0, [0.0, 0.75], args=(rate,), events=event, rtol=1e-6, atol=1e-8)
    assert times(sol) == pytest.approx([0.5], abs=1e-6)
    assert sol.events[0].y["a"].shape == (1, 2, 3)
    assert sol.events[0].y["a"].dtype == torch.float32
    assert sol.ys["a"][-1].tolist() == [pytest.approx([-0.5] * 3, abs=1e-5)] * 2
    (slope,) = torch.autograd.grad(sol.ys["a"][-1, 0, 0], rate)
    assert slope.item() == pytest.approx(-0.25, abs=1e-5)  # it jumps by the rate, and runs for 0.75 in all


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_dtypes(dtype):
    y0 = torch.ones(2, dtype=dtype, requires_grad=True)
    sol = solve(
        lambda t, y: -y,
        y0,
        [0.0, 3.0],
        events=Event(lambda t, y: y[0].abs() - 0.5, terminal=True),
        rtol=1e-6,
        atol=1e-8,
    )
    assert times(sol) == pytest.approx([math.log(2)], abs=1e-5)
    (slope,) = torch.autograd.grad(sol.ts[-1], y0)
    assert torch.view_as_real(slope.to(torch.complex128))[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_f_that_draws_and_counts_is_undone_where_a_step_is_cut():
    """The solve up to the event and on from it draws as one that lands there does."""
    torch.manual_seed(1)
    drop = torch.nn.Dropout(0.5)
    weight = torch.ones(40, dtype=DOUBLE, requires_grad=True)

    def noisy(t, y):
        return torch.cat([torch.ones_like(y[:1]), drop(weight * y[1:])])

    def run(gradient, **more):
        torch.manual_seed(3)
        y0 = torch.ones(41, dtype=DOUBLE)
        sol = solve(noisy, y0, [0.0, 1.0], method="rk4", dt=0.25, gradient=gradient, **more)
        return sol, torch.autograd.grad(sol.ys[-1].sum(), weight)[0]

    half = Event(lambda t, y: y[0] - 1.4, apply=lambda t, y: y * 2)
    for name in ("aca", "direct"):
        sol, slope = run(name, events=half)
        again, twin = run(aca.ACA(checkpoints="all"), events=half)
        assert torch.equal(sol.ys, again.ys)
        torch.testing.assert_close(slope, twin)


def test_a_solution_with_events_is_copied_and_pickled():
    y0 = start(0.0).requires_grad_()
    sol = solve(clock, y0, [0.0, 1.0], events=Event(lambda t, y: y[0] - 0.5, terminal=True))
    for other in (copy.deepcopy(sol), pickle.loads(pickle.dumps(copy.deepcopy(sol)))):
        assert times(other) == times(sol)
        assert not other.events[0].t.requires_grad
        assert other.status == "event"


@pytest.mark.parametrize("name", EVERY)
def test_gradient_of_an_output_after_an_event_counts_the_times(name):
    """y' = 1, at y = c it is doubled: y(1) = 2 c + (1 - t*), t* = c - y0."""
    y0, c, t1 = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (0.1, 0.5, 1.0))
    sol = solve(
        lambda t, y: torch.ones_like(y),
        y0,
        torch.stack([torch.zeros_like(t1), t1]),
        events=Event(lambda t, y: y - c, apply=lambda t, y: 2 * y),
        **options_for(EVERY[name]),
    )
    assert sol.ys[-1].item() == pytest.approx(1.6)
    found = torch.autograd.grad(sol.ys[-1], (y0, c, t1))
    assert [x.item() for x in found] == pytest.approx([1.0, 1.0, 1.0])


def bounce_of(i):
    def apply(t, y):
        return torch.cat([y[:i], y[i : i + 1], -0.7 * y[i + 1 : i + 2] - 0.1 * t, y[i + 2 :]])

    return Event(lambda t, y: y[i], direction=-1, apply=apply)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_of_simultaneous_events_are_those_of_one_after_the_other(name):
    """Independent stones that meet the ground at the same time: each has the gradient that it has alone."""

    def end(y0, events):
        sol = solve(
            lambda t, y: torch.cat([y[1:2], -9.81 - 0 * y[:1], y[3:], -9.81 - 0 * y[2:3]]),
            y0,
            [0.0, 2.0],
            events=events,
            **options_for(EVERY[name], **({} if name == "mali" else FINE)),
        )
        return sol.ys[-1], *(x.t for x in sol.events)

    both = start(10.0, 0.0, 10.0, 0.0).requires_grad_()
    ys, *t = end(both, [bounce_of(0), bounce_of(2)])
    assert [len(x) for x in t] == [1, 1]
    weights = start(0.3, 1.0, -0.2, 0.7)
    (found,) = torch.autograd.grad(ys @ weights + t[0].sum() - 2 * t[1].sum(), both)
    apart = start(10.0, 0.0, 10.0 + 1e-4, 0.0).requires_grad_()
    ys, *t = end(apart, [bounce_of(0), bounce_of(2)])
    (right,) = torch.autograd.grad(ys @ weights + t[0].sum() - 2 * t[1].sum(), apart)
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [0.0, 1e-9, 3e-7, 1e-5, 1e-3])
def test_events_that_almost_coincide_both_happen(apart, dtype):
    y0 = torch.tensor([1.0, 1.0 + apart], dtype=dtype)
    found = [Event(lambda t, y, i=i: y[i], apply=lambda t, y: y + 0) for i in (0, 1)]
    sol = solve(lambda t, y: -torch.ones_like(y), y0, [0.0, 2.0], n_steps=3, method="rk4", events=found)
    assert [len(x.t) for x in sol.events] == [1, 1]
    ended = solve(
        lambda t, y: -torch.ones_like(y),
        y0,
        [0.0, 2.0],
        n_steps=3,
        events=[found[1], Event(lambda t, y: y[0])],
    )
    assert [len(x.t) for x in ended.events] == [1, 1]


def test_a_deadline_in_g_is_a_constant_time():
    """Where g jumps by t alone; where it jumps by y, its time has a derivative that nobody can know."""
    y0 = start(0.0).requires_grad_()

    def until(t, y):
        return torch.zeros_like(t) if t > 0.7 else 2 - y[0]

    sol = solve(clock, y0, [0.0, 1.0], events=Event(until, terminal=True), rtol=1e-3)
    assert times(sol) == pytest.approx([0.7], abs=1e-12)
    assert torch.autograd.grad(sol.ys[-1].sum(), y0)[0].item() == pytest.approx(1.0)
    by_state = Event(lambda t, y: torch.where(y[0] > 0.7, -1.0, 1.0), terminal=True)
    with torch.no_grad():
        assert times(solve(clock, y0, [0.0, 1.0], events=by_state)) == pytest.approx([0.7], abs=1e-12)
    with pytest.raises(aca.SolverError, match="only grazes zero"):
        solve(clock, y0, [0.0, 1.0], events=by_state)


def test_second_derivatives_of_simultaneous_events():
    """By differences: events that are moved apart happen as one behind the other."""

    def end(y0, drop):
        def bounce(i):
            def apply(t, y):
                return torch.cat([y[:i], y[i : i + 1], -drop * y[i + 1 : i + 2] - 0.1 * t, y[i + 2 :]])

            return Event(lambda t, y: y[i] - 0.1 * t, direction=-1, apply=apply)

        sol = solve(
            lambda t, y: torch.cat([y[1:2], -9.81 - 0.3 * y[1:2], y[3:], -9.81 - 0.3 * y[3:]]),
            y0,
            [0.0, 1.5],
            events=[bounce(0), bounce(2)],
            method="dopri8",
            rtol=1e-9,
            atol=1e-11,
            gradient="direct",
        )
        return sol.ys[-1], sol.events[0].t, sol.events[1].t

    given = start(4.0, 0.0, 4.0, 0.0).requires_grad_(), torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(end, given, eps=1e-5, rtol=1e-4, atol=1e-5)
    assert torch.autograd.gradgradcheck(end, given, eps=1e-5, rtol=1e-3, atol=1e-3, fast_mode=True)


def test_a_jump_over_zero_is_no_crossing():
    up = Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y + 1)
    over = Event(lambda t, y: y[0] - 0.7, direction=1)
    sol = solve(clock, start(0.0), [0.0, 1.0], events=[up, over])
    assert [len(x.t) for x in sol.events] == [1, 0]
