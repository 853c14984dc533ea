"""Events of each sample of a batch: they are those of a solve of its own."""

import copy
import math
from functools import partial

import pytest
import torch
from batch.cases import FIXED, SETTINGS
from batch.event_cases import (
    DOUBLE,
    MU,
    STARTS,
    TIMES,
    alone,
    compared,
    events,
    in_batch,
    leaves,
    same_solutions,
    swings,
    weights_of,
)
from gradients.settings import options_for

import torchaca as aca
from torchaca import METHODS, Event, SolverError, solve

LEVEL = torch.tensor(0.02, dtype=DOUBLE)
WAYS = {"on": events, "ends": partial(events, terminal=True)}
SHARED = torch.tensor([0.0, 1.0, 1.0, 5.0], dtype=DOUBLE)


def same(found, right, near=1e-9):
    for x, y in zip(found, right, strict=True):
        torch.testing.assert_close(x, y, rtol=near, atol=near)


def fall(t, y):
    return torch.stack([y[..., 1], torch.full_like(y[..., 1], -8.0)], -1)


def dropped(heights):
    return torch.stack([heights, torch.zeros_like(heights)], -1)


def decays(t, y, rate):
    return -rate * y


GROUND = Event(lambda t, y: y[..., 0], terminal=True)
HEIGHTS = torch.tensor([1.0, 3.0, 10.0], dtype=DOUBLE)


@pytest.mark.parametrize("t", [[0.0, 100.0], [[0.0, 100.0]] * 3], ids=["shared", "own"])
def test_falling_bodies(t):
    (heights,) = leaves(HEIGHTS)
    sol = solve(fall, dropped(heights), t, batch=1, events=GROUND)
    landed = (heights / 4).sqrt()
    assert sol.status == ("event",) * 3
    assert sol.events[0].count.tolist() == [1, 1, 1]
    torch.testing.assert_close(sol.events[0].t, landed[None], rtol=1e-12, atol=0)
    torch.testing.assert_close(sol.ys[-1], torch.stack([0 * landed, -8 * landed], -1), rtol=1e-12, atol=1e-12)
    assert sol.mask.tolist() == [[True] * 3, [False] * 3]
    if sol.ts.ndim == 2:
        torch.testing.assert_close(sol.ts[-1], landed)
    (slopes,) = torch.autograd.grad(sol.events[0].t.sum(), heights)
    torch.testing.assert_close(slopes, 1 / (8 * landed.detach()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["aca-all", "direct"])
def test_bouncing_balls(name):
    """Height h, restitution r: the k-th bounce is at (1 + 2 r + ... + 2 r^(k-1)) sqrt(h / 4)."""
    heights, restitution = leaves(HEIGHTS, torch.tensor([0.5, 0.8, 0.9], dtype=DOUBLE))

    def ball(t, y, r):
        return fall(t, y)

    def bounce(t, y, r):
        return torch.stack([y[..., 0], -r * y[..., 1]], -1)

    ground = Event(lambda t, y, r: y[..., 0], direction=-1, apply=bounce)
    options = options_for(SETTINGS[name], rtol=1e-4)
    ends = torch.tensor([1.3, 4.1, 5.5], dtype=DOUBLE)
    t = torch.stack([torch.zeros_like(ends), ends], 1)
    sol = solve(ball, dropped(heights), t, batch=1, rows=(restitution,), events=ground, **options)
    first, r = (heights / 4).sqrt(), restitution
    times = [first]
    for k in range(1, 20):
        times.append(times[-1] + 2 * r**k * first)
    exact = torch.stack(times)
    counts = (exact < ends).sum(0)
    assert sol.events[0].count.tolist() == counts.tolist()
    some = ~sol.events[0].t.isnan()
    torch.testing.assert_close(sol.events[0].t[some], exact[: len(some)][some], rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(sol.events[0].t[some].sum(), [heights, restitution])
    same(found, torch.autograd.grad(exact[: len(some)][some].sum(), [heights, restitution]), 1e-8)


def test_decay_to_a_level_of_each_sample():
    """And its second derivatives; g is for batches of that size alone."""
    rate, level = leaves(
        torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE), torch.tensor([0.3, 0.1, 0.7], dtype=DOUBLE)
    )

    def run(rate, level):
        event = Event(lambda t, y, rate: y - level.reshape(y.shape), terminal=True)
        one = torch.ones(3, dtype=DOUBLE)
        fine = {"rtol": 1e-10, "atol": 1e-12}
        return solve(decays, one, [0.0, 30.0], batch=1, rows=(rate,), events=event, **fine).events[0].t[0]

    exact = -level.log() / rate
    t = run(rate, level)
    torch.testing.assert_close(t, exact, rtol=1e-9, atol=1e-9)
    slopes = torch.autograd.grad(t.sum(), [rate, level], create_graph=True)
    right = torch.autograd.grad(exact.sum(), [rate, level], create_graph=True)
    same(slopes, right, 1e-8)
    found = torch.autograd.grad(sum(x.sum() for x in slopes), [rate, level])
    same(found, torch.autograd.grad(sum(x.sum() for x in right), [rate, level]), 1e-7)


SLOW = ("mali", "aca-stagewise-sqrt", "aca-sqrt", "aca-stagewise", "aca-grad-rtol")
PRODUCT = [
    pytest.param(
        name, t, way, marks=[pytest.mark.slow] if name in SLOW or (t, way) != ("own", "ends") else []
    )
    for name in SETTINGS
    for t in ("own", "shared")
    for way in WAYS
]


@pytest.mark.parametrize(("name", "t", "way"), PRODUCT)
def test_gradients_are_those_of_each_sample(name, t, way):
    """With respect to y0, all times, rows, and what g and apply capture."""
    options = options_for(SETTINGS[name], rtol=1e-4 if name == "mali" else 1e-5)
    t = TIMES if t == "own" else SHARED
    if name == "aca-grad-rtol":
        t = t[..., ::3] if t.ndim == 1 else torch.tensor([[0.0, 5.0], [2.0, -2.5], [0.5, 4.0], [3.0, -1.0]])
        t = t.to(DOUBLE)
    sol, found = in_batch(swings, STARTS, t, MU, WAYS[way], LEVEL, **options)
    owns, right = alone(swings, STARTS, t, MU, WAYS[way], LEVEL, **options)
    same_solutions(sol, owns, 1e-9)
    same(found, right, 1e-7 if name == "aca-grad-rtol" else 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    options = {"method": method, **({"rtol": 1e-3, "dt0": 0.2} if METHODS[method].adaptive else {"dt": 0.3})}
    sol, found = in_batch(swings, STARTS, TIMES, MU, events, LEVEL, **options)
    owns, right = alone(swings, STARTS, TIMES, MU, events, LEVEL, **options)
    same_solutions(sol, owns, 1e-8 if METHODS[method].order > 5 else 1e-10)
    same(found, right, 1e-7 if METHODS[method].order > 5 else 1e-8)


@pytest.mark.parametrize("steps", FIXED)
@pytest.mark.parametrize("way", WAYS)
def test_fixed_steps(steps, way):
    options = {"method": "rk4", **FIXED[steps]}
    sol, found = in_batch(swings, STARTS, TIMES, MU, WAYS[way], LEVEL, **options)
    owns, right = alone(swings, STARTS, TIMES, MU, WAYS[way], LEVEL, **options)
    same_solutions(sol, owns, 1e-10)
    same(found, right)


@pytest.mark.parametrize("way", WAYS)
def test_without_derivatives(way):
    """The same bits, also in inference mode, where rates of g are differences."""
    run = partial(solve, swings, t=TIMES, batch=1, rows=(MU,), events=WAYS[way](LEVEL))
    recorded, still = run(y0=STARTS.clone().requires_grad_()), run(y0=STARTS)
    assert recorded.events[0].t.requires_grad
    torch.testing.assert_close(still.ys, recorded.ys.detach(), rtol=1e-13, atol=1e-13)
    with torch.inference_mode():
        inferred = run(y0=STARTS)
    for sol, near in ((still, 1e-13), (inferred, 1e-9)):
        for event, right in zip(sol.events, recorded.events, strict=True):
            torch.testing.assert_close(event.t, right.t.detach(), rtol=near, atol=near, equal_nan=True)
            assert event.count.tolist() == right.count.tolist()


def seconds(run, *point):
    """Derivatives of a combination of first derivatives."""
    first = torch.autograd.grad(run(*point), point, create_graph=True)
    total = sum((weights_of(x.shape) * x.nan_to_num()).sum() for x in first)
    return torch.autograd.grad(total, point)


@pytest.mark.parametrize("name", ["aca-auto", "aca-all", "direct"])
def test_second_derivatives_are_those_of_each_sample(name):
    t = TIMES[:3, [0, 1, 3]].nan_to_num(4.0)
    options = {"gradient": SETTINGS[name], "rtol": 1e-4}

    def batch(y0, t, mu, level):
        sol = solve(swings, y0, t, rows=(mu,), batch=1, events=events(level), **options)
        return sum((e.t.nan_to_num() ** 2).sum() for e in sol.events) + (sol.ys**2).sum()

    def single(y0, t, mu, level):
        total = 0.0
        for one in zip(y0, t, mu, strict=True):
            sol = solve(swings, *one[:2], args=one[2:], events=events(level), **options)
            total = total + sum((e.t**2).sum() for e in sol.events) + (sol.ys**2).sum()
        return total

    found = seconds(batch, *leaves(STARTS[:3], t, MU[:3], LEVEL))
    same(found, seconds(single, *leaves(STARTS[:3], t, MU[:3], LEVEL)), 1e-8)


@pytest.mark.slow
def test_gradcheck():
    """Jumps, and an event that ends the solve; the times are those of each sample."""
    t = torch.tensor([[0.0, 1.9, 5.0], [3.0, 2.9, -1.0]], dtype=DOUBLE, requires_grad=True)

    def run(y0, t, mu, level):
        how, fine = events(level, terminal=True), {"method": "dopri8", "rtol": 1e-11, "atol": 1e-13}
        sol = solve(swings, y0, t, rows=(mu,), batch=1, events=how, **fine)
        assert [event.count.tolist() for event in sol.events] == [[2, 1], [3, 1], [0, 1]]
        return sol.ys[1:], *(event.t.nan_to_num() for event in sol.events), sol.events[0].y

    point = (*leaves(STARTS[2:]), t, *leaves(MU[2:], LEVEL))
    assert torch.autograd.gradcheck(run, point, eps=1e-5, rtol=1e-4, atol=1e-5, fast_mode=True)


def clock(t, y):
    return torch.ones_like(y)


def test_several_events_at_once_are_in_order_of_the_list():
    """And each is differentiated at its own zero, as in a single solve."""
    y0 = torch.tensor([0.0, 0.1, -0.3], dtype=DOUBLE)
    add = Event(lambda t, y: y.flatten().reshape(y.shape) - 0.5, apply=lambda t, y: y + 1)
    twice = Event(lambda t, y: 2 * y - 1, apply=lambda t, y: y * y)
    end = Event(lambda t, y: (y - 2.5) * (y - 0.5), terminal=True, direction=1)
    for how in ([add, twice], [twice, add], [add, end], [twice, add, end]):
        sol = compared(clock, y0, [0.0, 1.0, 3.0], (), how)
        assert sol.status == (("event",) * 3 if end in how else ("success",) * 3)
        mine, theirs = leaves(y0, y0)
        found = solve(clock, mine, [0.0, 3.0], batch=1, events=how)
        sums = sum(torch.nan_to_num(e.t).sum() for e in found.events) + found.ys[-1].sum()
        right = 0.0
        for y in theirs:
            own = solve(clock, y, [0.0, 3.0], events=how)
            right = right + sum(e.t.sum() for e in own.events) + own.ys[-1]
        same(torch.autograd.grad(sums, mine), torch.autograd.grad(right, theirs), 1e-12)


def test_outputs_at_and_around_jumps():
    jump = Event(lambda t, y: t - 0.5, apply=lambda t, y: y + 1)
    for t in ([0.0, 0.25, 0.5 - 1e-6, 0.5 + 1e-6, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, 0.5]):
        compared(clock, torch.tensor([0.0, 2.0], dtype=DOUBLE), t, (), jump)
    end = Event(lambda t, y: t - 0.5, terminal=True)
    sol = compared(clock, torch.tensor([0.0, 2.0], dtype=DOUBLE), [0.0, 0.25, 0.5, 1.0], (), end)
    assert sol.mask[:, 0].tolist() == [True, True, True, False]


def test_an_event_that_is_zero_at_the_start_counts_after_it_has_left_zero():
    def wave(t, y):
        return torch.stack([y[..., 1], -y[..., 0]], -1)

    y0 = torch.tensor([[0.0, 1.0], [1e-16, 1.0], [0.5, 0.5], [0.0, 0.0]], dtype=DOUBLE)
    fine = {"rtol": 1e-9, "atol": 1e-11}
    sol = compared(wave, y0, [0.0, 4.0], (), Event(lambda t, y: y[..., 0]), **fine)
    assert sol.events[0].count.tolist() == [1, 1, 1, 0]
    compared(wave, y0, [0.0, -7.0], (), Event(lambda t, y: y[..., 0], direction=1), **fine)


def test_an_event_that_no_sample_reaches():
    for ends in (True, False):
        sol = compared(clock, torch.zeros(3, dtype=DOUBLE), [0.0, 1.0], (), Event(lambda t, y: y - 7, ends))
        assert sol.status == ("success",) * 3
        assert sol.events[0].t.shape == (0, 3)
        assert sol.events[0].count.tolist() == [0, 0, 0]


def test_states_of_several_tensors_float32_and_complex():
    """t is (B, 1, 1), as the tensor with most dimensions asks for it."""
    y0 = {"a": torch.tensor([[1.0, 2.0], [3.0, 0.5]]), "b": (torch.ones(2, 2, 2),)}

    def f(t, y):
        return {"a": -y["a"], "b": (0 * y["b"][0] + t,)}

    def half(t, y):
        assert t.ndim == y["b"][0].ndim
        return {"b": (y["b"][0] * 2,), "a": y["a"] * 2}

    events = [Event(lambda t, y: y["a"][..., 0] - 0.5, apply=half), Event(lambda t, y: t - 0.25)]
    sol = solve(f, y0, [0.0, 3.0], batch=1, events=events, rtol=1e-5)
    for i in range(2):
        start = {"a": y0["a"][i], "b": (y0["b"][0][i],)}
        one = [Event(events[0].g, apply=lambda t, y: {"b": (y["b"][0] * 2,), "a": y["a"] * 2}), events[1]]

        def alone(t, y):
            return {"a": -y["a"], "b": (0 * y["b"][0] + t,)}

        own = solve(alone, start, [0.0, 3.0], events=one, rtol=1e-5)
        for event, right in zip(sol.events, own.events, strict=True):
            n = int(event.count[i])
            torch.testing.assert_close(event.t[:n, i], right.t, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(event.y["b"][0][:n, i], right.y["b"][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sol.ys["a"][:, i], own.ys["a"], rtol=1e-5, atol=1e-5)
    assert sol.events[1].y["a"].dtype == torch.float32
    turns = torch.tensor([1.0 + 0j, 1j, -0.5], dtype=torch.complex128)
    compared(
        lambda t, y: 1j * y, turns, [0.0, 9.0], (), Event(lambda t, y: y.real, apply=lambda t, y: y * 0.9)
    )


def test_tolerances_jumps_of_f_and_steps_at_most():
    rtol = torch.tensor([1e-3, 1e-6, 1e-8, 1e-4], dtype=DOUBLE)[:, None]
    sol = solve(swings, STARTS, TIMES, batch=1, rows=(MU,), events=events(LEVEL), rtol=rtol, atol=rtol)
    for i in range(4):
        t, own = TIMES[i][~TIMES[i].isnan()], {"rtol": rtol[i].item(), "atol": rtol[i].item()}
        right = solve(swings, STARTS[i], t, args=(MU[i],), events=events(LEVEL), **own)
        assert sol.stats.samples.accepted[i] == right.stats.accepted
        n = int(sol.events[1].count[i])
        torch.testing.assert_close(sol.events[1].t[:n, i], right.events[1].t, rtol=1e-10, atol=1e-10)

    def kicked(t, y, mu):
        return swings(t, y, mu) + torch.where(t >= 0.8, 0.5, 0.0)

    jumps = torch.tensor([0.8, 2.6], dtype=DOUBLE)
    compared(kicked, STARTS, SHARED, (MU,), events(LEVEL), jump_ts=jumps, dt0=0.1)
    few = partial(solve, t=[0.0, 5.0], on_failure="status", max_steps=9, events=events(LEVEL))
    sol = few(swings, STARTS, batch=1, rows=(MU,))
    assert "max-steps" in sol.status
    assert [few(swings, STARTS[i], args=(MU[i],)).status for i in range(4)] == list(sol.status)


def test_dense_output_goes_through_events():
    at = torch.stack([torch.linspace(float(t[0]), float(t[~t.isnan()][-1]), 9) for t in TIMES]).double()
    for way in WAYS.values():
        sol = solve(swings, STARTS, TIMES, batch=1, rows=(MU,), events=way(LEVEL), dense=True)
        found, slopes = sol(at), sol.derivative(at)
        for i in range(4):
            t, how = TIMES[i][~TIMES[i].isnan()], way(LEVEL)
            own = solve(swings, STARTS[i], t, args=(MU[i],), events=how, dense=True)
            sign = (t[-1] - t[0]).sign()
            here = sign * at[i] <= sign * own.ts[-1]
            torch.testing.assert_close(found[here, i], own(at[i][here]), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(slopes[here, i], own.derivative(at[i][here]), rtol=1e-9, atol=1e-9)
            assert found[~here, i].isnan().all()
        assert torch.equal(copy.deepcopy(sol)(at).nan_to_num(), found.nan_to_num())
    with pytest.raises(ValueError, match="outside"):
        sol(torch.full((4, 1), 9.0))
    (y0,) = leaves(STARTS)
    sol = solve(swings, y0, [0.0, 5.0], batch=1, rows=(MU,), events=events(LEVEL), dense=True)
    (found,) = torch.autograd.grad(sol([1.0, 4.0]).sum(), y0)
    (right,) = torch.autograd.grad(
        solve(swings, y0, [0.0, 1.0, 4.0, 5.0], batch=1, rows=(MU,), events=events(LEVEL)).ys[1:3].sum(), y0
    )
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


def test_a_sample_that_bounces_without_end_fails_alone():
    def ball(t, y, r):
        return fall(t, y)

    heights, r = torch.tensor([1.0, 1.0], dtype=DOUBLE), torch.tensor([0.2, 0.9], dtype=DOUBLE)
    bounce = Event(
        lambda t, y, r: y[..., 0],
        direction=-1,
        apply=lambda t, y, r: torch.stack([0 * y[..., 0], -r * y[..., 1]], -1),
    )
    run = partial(solve, ball, t=[0.0, 0.7, 2.0], events=bounce, on_failure="status")
    with torch.no_grad():
        sol = run(y0=dropped(heights), batch=1, rows=(r,))
        own = run(y0=dropped(heights)[0], args=(r[0],))
    assert sol.status == ("zeno", "success")
    assert own.status == "zeno"
    assert sol.events[0].count[0] == len(own.events[0].t)
    assert sol.mask.T.tolist() == [[True, True, False], [True, True, True]]
    assert sol.ys.isfinite().all()
    with pytest.raises(SolverError, match=r"sample 0.*ever shorter"), torch.no_grad():
        solve(ball, dropped(heights), [0.0, 2.0], batch=1, rows=(r,), events=bounce)


def test_a_sample_that_grazes_fails_alone_where_a_derivative_is_wanted():
    y0, level = torch.zeros(2, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)

    def parabola(t, y, level):
        return 2 * (t - 1)

    graze = Event(lambda t, y, level: y + 1 - level, terminal=True)
    run = partial(
        solve, parabola, t=[0.0, 3.0], batch=1, rows=(level,), events=graze, method="rk4", n_steps=3
    )
    sol = run(y0=y0)
    assert sol.status == ("event", "event")
    sol = run(y0=y0.clone().requires_grad_(), on_failure="status")
    assert sol.status == ("grazing", "event")
    assert sol.failure.kind == "grazing"
    with pytest.raises(SolverError, match=r"sample 0.*only grazes"):
        run(y0=y0.clone().requires_grad_())


@pytest.mark.parametrize("steps", [{}, {"n_steps": 9, "method": "rk4"}], ids=["own", "fixed"])
def test_a_sample_whose_event_is_not_finite_fails_alone(steps):
    event = Event(lambda t, y: torch.sqrt(y - 0.25), terminal=True)
    y0, rate = torch.tensor([1.0, 1.0, 2.0], dtype=DOUBLE), torch.tensor([1.0, 0.1, -1.0], dtype=DOUBLE)

    def f(t, y, rate):
        return -rate * y

    event = Event(lambda t, y, rate: torch.sqrt(y - 0.25) - 1.2, terminal=True)
    (rates,) = leaves(rate)
    run = partial(solve, f, y0, [0.0, 0.5, 3.0], batch=1, rows=(rates,), events=event, **steps)
    sol = run(on_failure="status")
    assert sol.status == ("event", "success", "success")
    assert sol.kinds == ("event", "", "")
    assert sol.mask.T.tolist() == [[True, True, False], [True, True, True], [True, True, True]]
    (slopes,) = torch.autograd.grad(sol.ys[sol.mask].sum(), rates)
    assert slopes.isfinite().all()
    with pytest.raises(SolverError, match=r"sample 0.*nan or inf"):
        run()


G = r"must return one number for each sample, of shape \(4,\) or \(4, 1\)"


@pytest.mark.parametrize(
    ("event", "error", "match"),
    [
        (lambda t, y, mu: y, ValueError, rf"{G}, got shape \(4, 2\): write one Event"),
        (lambda t, y, mu: y[..., 0] - t, ValueError, rf"{G}, got shape \(4, 4\): t is"),
        (lambda t, y, mu: y.sum(), ValueError, rf"{G}, got shape \(\)"),
        (lambda t, y, mu: 1.0, TypeError, G),
        (lambda t, y, mu: y[..., 0] > 0, TypeError, "real floating-point"),
        (lambda t, y, mu: y.mul_(2)[..., 0], ValueError, "in place"),
    ],
)
def test_what_g_must_return(event, error, match):
    with pytest.raises(error, match=match):
        solve(swings, STARTS.clone(), [0.0, 1.0], batch=1, rows=(MU,), events=Event(event))


@pytest.mark.parametrize(
    ("apply", "error", "match"),
    [
        (lambda t, y, mu: y[0], ValueError, "keep shapes"),
        (lambda t, y, mu: [y], TypeError, "structure of y"),
        (lambda t, y, mu: y * math.nan, ValueError, "nan or inf at t = 1.12"),
    ],
)
def test_what_apply_must_return(apply, error, match):
    event = Event(events(LEVEL)[0].g, direction=-1, apply=apply)
    with pytest.raises(error, match=match):
        solve(swings, STARTS, [0.0, 2.0], batch=1, rows=(MU,), events=event)


def test_apply_of_other_samples_is_not_looked_at():
    def apply(t, y, mu):
        return torch.where((y[:, :1] < 0.5) & (t > 0.1), 0.9 * y, math.nan)

    event = Event(events(LEVEL)[0].g, direction=-1, apply=apply)
    sol = solve(swings, STARTS, [0.0, 1.235], batch=1, rows=(MU,), events=event)
    assert sol.ys.isfinite().all()
    assert sol.events[0].count.tolist() == [1, 0, 1, 1]


def test_one_number_for_each_sample_may_have_more_dimensions():
    for shape in ((4,), (4, 1), (4, 1, 1)):
        event = Event(lambda t, y, mu, shape=shape: (y[..., 0] - 0.3).reshape(shape), terminal=True)
        sol = solve(swings, STARTS, [0.0, 3.0], batch=1, rows=(MU,), events=event, deterministic=True)
        assert sol.status == ("event",) * 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": "joint"}, "end those of all"),
        ({"gradient": "naive"}, "a solve of each sample"),
        ({"gradient": "adjoint"}, "a solve of each sample"),
        ({"debug": True}, "a solve of each sample"),
    ],
)
def test_what_is_refused(options, match):
    with pytest.raises(NotImplementedError, match=match):
        solve(swings, STARTS, [0.0, 1.0], batch=1, rows=(MU,), events=events(LEVEL), **options)


def test_compiled():
    """The eager loop solves in its place, and says so."""
    run = partial(solve, swings, STARTS, [0.0, 3.0], batch=1, rows=(MU,), events=events(LEVEL))
    with pytest.warns(UserWarning, match="events of samples are found in the loop in Python"):
        sol = run(compile=True)
    assert sol.stats.executor == "eager"
    assert torch.equal(sol.events[0].t.nan_to_num(), run().events[0].t.nan_to_num())
    with pytest.raises(ValueError, match="events of samples"):
        run(compile="native")
    told = aca.explain(swings, STARTS, [0.0, 3.0], batch=1, rows=(MU,), events=events(LEVEL))
    assert told.executor == "eager"
    assert "events of samples" in told.passed_over["native"]


def test_samples_that_are_done_are_left_out():
    """And their results do not depend on their batch mates."""
    sizes = []

    def f(t, y, mu):
        sizes.append(len(y))
        return swings(t, y, mu)

    mu = torch.cat([MU, torch.full((12,), 0.5, dtype=DOUBLE)])
    y0 = torch.cat([STARTS, STARTS[:1].expand(12, 2)])
    t = torch.tensor([[0.0, 9.0]] + [[0.0, 0.5]] * 15, dtype=DOUBLE)
    sol = solve(f, y0, t, batch=1, rows=(mu,), events=events(LEVEL))
    assert sum(size == 1 for size in sizes) > len(sizes) / 3
    own = solve(swings, STARTS[:1], t[:1], batch=1, rows=(MU[:1],), events=events(LEVEL))
    n = len(own.events[1].t)
    assert n > 2
    assert torch.equal(sol.events[1].t[:n, 0], own.events[1].t[:, 0])
    assert torch.equal(sol.ys[:, 0], own.ys[:, 0])


def test_nothing_to_solve():
    event = Event(lambda t, y: y.flatten(1).sum(1), terminal=True)
    for y0, t in (
        (torch.zeros(0, 2, dtype=DOUBLE), [0.0, 1.0]),
        (torch.zeros(3, 0, dtype=DOUBLE), [0.0, 1.0]),
        (torch.ones(3, 2, dtype=DOUBLE), [0.0]),
        (torch.ones(3, 2, dtype=DOUBLE), [1.0, 1.0]),
    ):
        sol = solve(lambda t, y: -y, y0, t, batch=1, events=event)
        assert sol.status == ("success",) * len(y0)
        assert sol.events[0].t.shape == (0, len(y0))
        assert sol.mask.all()
        assert sol.ys.shape == (len(t), *y0.shape)


def test_a_copy_has_the_events():
    sol = solve(
        swings, STARTS.clone().requires_grad_(), [0.0, 3.0], batch=1, rows=(MU,), events=events(LEVEL)
    )
    other = copy.deepcopy(sol)
    assert torch.equal(other.events[0].t.nan_to_num(), sol.events[0].t.nan_to_num())
    assert not other.events[0].t.requires_grad


def test_a_grid_of_all_samples():
    """Its times are differentiated where steps end at them, as in a single solve."""
    run = partial(solve, swings, t=[0.0, 2.0, 5.0], events=events(LEVEL), method="rk4")
    mine, theirs = leaves(*[torch.linspace(0, 5, 12, dtype=DOUBLE)] * 2)
    sol = run(y0=STARTS, batch=1, rows=(MU,), grid=mine)
    owns = [run(y0=STARTS[i], args=(MU[i],), grid=theirs) for i in range(4)]
    same_solutions(sol, owns, 1e-10)
    total = (sol.ys**2).sum() + sum(event.t.nan_to_num().sum() for event in sol.events)
    right = sum((own.ys**2).sum() + sum(event.t.sum() for event in own.events) for own in owns)
    same(torch.autograd.grad(total, mine), torch.autograd.grad(right, theirs))
