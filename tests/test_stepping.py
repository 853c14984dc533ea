"""The loop: alone, with a method and a control that follow a script, and what it costs with real ones."""

import math
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from covering import covering
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import BOTH_WAYS, DOUBLE
from stubs import (
    Counted,
    CountOperations,
    Recorder,
    ScriptedControl,
    ScriptedMethod,
    evaluations_of,
    problem,
    starts_with_known_slope,
)

from torchaca import ACA, METHODS, RungeKutta, SolverError, solve
from torchaca.control import Adaptive, FixedSteps
from torchaca.core import Log
from torchaca.loops.stepping import BAD_RATIO, TOO_SMALL, steps

ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
FIXED = list(METHODS)


def run(times, method=None, control=None, f=None):
    """The steps of a scripted solve, and everything that took part in it."""
    method, control, f = method or ScriptedMethod(), control or ScriptedControl(), f or Counted()
    p = problem(f, times, method, control)
    taken = [(float(step.t0), float(step.t1)) for step in steps(p)]
    return taken, method, control, p


def failing(times, method=None, control=None):
    method, control = method or ScriptedMethod((math.nan,)), control or ScriptedControl()
    p = problem(Counted(), times, method, control)
    accepted = []
    with pytest.raises(SolverError) as caught:
        accepted.extend(steps(p))
    return caught.value, accepted, method, p


# Where steps end.


@given(
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
    st.booleans(),
    st.lists(st.floats(0.0, 1.0), max_size=4),
    st.floats(1e-2, 2.0),
)
def test_lands_exactly_on_the_end_and_on_jumps(t0, span, backwards, fractions, dt0):
    t1 = t0 - span if backwards else t0 + span
    jumps = tuple(t0 + x * (t1 - t0) for x in fractions)
    stops = sorted({t for t in (*jumps, t1) if min(t0, t1) < t < max(t0, t1)} | {t1}, reverse=backwards)
    assume(all(abs(b - a) > 1e-9 for a, b in pairwise([t0, *stops])))
    control = ScriptedControl(dt0=dt0 * span, jump_ts=jumps)
    taken, *_ = run((t0, t1), control=control)
    starts, ends = zip(*taken, strict=True)
    assert starts == (t0, *ends[:-1])
    assert ends[-1] == t1
    assert set(stops) <= set(ends)
    assert min(t0, t1) <= min(ends) <= max(ends) <= max(t0, t1)


@given(st.floats(1e-3, 1e3), st.integers(1, 50))
def test_leaves_no_sliver(span, n):
    """A stop that is reached up to rounding is reached: n steps of span / n are n steps."""
    taken, method, *_ = run((0.0, span), control=ScriptedControl(dt0=span / n, grow=1.0))
    assert len(taken) == n
    assert min(method.sizes) > 0.9 * span / n


def test_restores_the_step_size_after_a_clipped_step():
    control = ScriptedControl(dt0=0.25, grow=1.0, jump_ts=(0.25 + 0.0625,))
    taken, *_ = run((0.0, 1.0), control=control)
    assert [end for _, end in taken] == [0.25, 0.3125, 0.5625, 0.8125, 1.0]


def test_takes_a_larger_step_size_from_a_clipped_step():
    control = ScriptedControl(dt0=0.25, grow=8.0, jump_ts=(0.125,))
    taken, *_ = run((0.0, 2.0), control=control)
    assert [end for _, end in taken] == [0.125, 1.125, 2.0]


def test_a_step_that_reaches_the_stop_exactly_is_not_clipped():
    control = ScriptedControl(dt0=0.25, grow=0.5, jump_ts=(0.25,))
    p = problem(Counted(), (0.0, 0.5), ScriptedMethod(), control)
    assert [(step.t0, step.t1) for step in islice(steps(p), 2)] == [(0.0, 0.25), (0.25, 0.375)]


def test_does_not_grow_after_a_rejection():
    _, method, control, p = run((0.0, 1.0), ScriptedMethod((2.0, 0.5)))
    assert method.spans[:4] == [(0.0, 0.25), (0.0, 0.125), (0.125, 0.25), (0.25, 0.5)]
    assert control.asked[:3] == [((2.0,), True), ((0.5,), True), ((0.5, 0.5), False)]
    assert (p.stats.accepted, p.stats.rejected) == (4, 1)


def test_the_controller_sees_the_newest_accepted_ratios_first():
    errors = (0.1, 0.2, 3.0, 0.3, 0.4)
    _, _, control, _ = run((0.0, 100.0), ScriptedMethod(errors))
    assert control.asked[:5] == [
        ((0.1,), False),
        ((0.2, 0.1), False),
        ((3.0,), True),
        ((0.3, 0.2, 0.1), True),
        ((0.4, 0.3, 0.2), False),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.0 + 1e-12])
def test_a_bad_ratio_is_a_rejection(bad):
    taken, method, control, p = run((0.0, 1.0), ScriptedMethod((bad, bad, 0.5)))
    assert method.spans[:3] == [(0.0, 0.25), (0.0, 0.125), (0.0, 0.0625)]
    assert taken[0] == (0.0, 0.0625)
    assert p.stats.rejected == 2
    if not math.isfinite(bad):
        assert control.asked[0] == ((BAD_RATIO,), True)


def test_a_ratio_of_one_is_accepted():
    taken, *_ = run((0.0, 1.0), ScriptedMethod((1.0,)))
    assert taken[0] == (0.0, 0.25)


def test_reversed_time_is_the_mirror_image():
    errors = (0.5, 2.0, 0.5, 0.5)
    ahead, *_ = run((0.0, 3.0), ScriptedMethod(errors), ScriptedControl(jump_ts=(1.1, 2.0)))
    back, *_ = run((0.0, -3.0), ScriptedMethod(errors), ScriptedControl(jump_ts=(-1.1, -2.0)))
    assert back == [(-t0, -t1) for t0, t1 in ahead]


@pytest.mark.parametrize("times", [(0.7,), (0.7, 0.7), (0.7, 0.7, 0.7)])
@pytest.mark.parametrize(
    "control", [ScriptedControl(), FixedSteps(dt=0.1), FixedSteps(n_steps=3), FixedSteps()]
)
def test_no_span_no_work(times, control):
    taken, method, _, p = run(times, control=control)
    assert taken == []
    assert method.trials == []
    assert p.f.call.nfe == 0
    assert (p.stats.accepted, p.stats.rejected) == (0, 0)


# Step sizes: their limits, and when the loop gives up.


def test_first_step_sizes():
    _, given_dt0, _, p = run((0.0, 1.0), control=ScriptedControl(dt0=0.25))
    _, chosen, _, q = run((0.0, 1.0), control=ScriptedControl(dt0=None))
    assert given_dt0.sizes[0] == 0.25
    assert chosen.sizes[0] == 0.125
    assert p.f.call.times[0] == q.f.call.times[0] == 0.0


def test_dt_max_limits_every_trial():
    control = ScriptedControl(dt0=5.0, dt_max=0.25)
    taken, method, *_ = run((0.0, 3.1), control=control)
    assert max(method.sizes) == 0.25
    assert len(taken) == 13


def test_growth_is_relative_to_the_step_taken_not_to_the_wish():
    method = ScriptedMethod((0.5, 0.5, 2.0, 0.5))
    run((0.0, 3.0), method, ScriptedControl(dt0=5.0, dt_max=0.25))
    assert method.sizes[:4] == [0.25, 0.25, 0.25, 0.125]


@pytest.mark.parametrize("t0", [0.0, 0.1, 0.2, 0.3, 0.7, 1.3, 2.1, 100.3])
def test_gives_up_at_dt_min(t0):
    """Rounding of t + dt_min, which may be more than dt_min, makes no difference."""
    control = ScriptedControl(dt0=0.03, dt_min=0.01)
    error, accepted, method, _ = failing((t0, t0 + 1.0), ScriptedMethod((2.0,)), control)
    assert error.kind in {"dt-min", "step-size"}
    assert "dt_min = 0.01" in str(error)
    assert accepted == []
    assert method.sizes == pytest.approx([0.03, 0.015, 0.01], rel=1e-9)


@pytest.mark.parametrize("t0", [0.0, 0.1, 0.2, 0.3, 0.7, 1.3, 2.1, 100.3])
def test_accepts_at_dt_min_where_told_to(t0):
    """torchdiffeq's `min_step`: another error than a hang."""
    control = ScriptedControl(dt0=0.03, dt_min=0.01, accept_at_dt_min=True)
    taken, method, *_ = run((t0, t0 + 1.0), ScriptedMethod((2.0,)), control)
    assert method.sizes[:3] == pytest.approx([0.03, 0.015, 0.01], rel=1e-9)
    assert len(taken) == 100
    assert len(method.trials) == 102


def test_dt_min_may_be_undercut_only_to_land():
    control = ScriptedControl(dt0=0.001, dt_min=0.3, grow=1.0)
    taken, *_ = run((0.0, 1.0), control=control)
    assert [round(end, 12) for _, end in taken] == [0.3, 0.6, 0.9, 1.0]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_steps_counts_accepted_and_rejected_trials(limit):
    method = ScriptedMethod((2.0, 0.5))
    control = ScriptedControl(grow=1.0, max_steps=limit)
    error, accepted, method, p = failing((0.0, 100.0), method, control)
    assert error.kind == "max-steps"
    assert f"max_steps = {limit}" in str(error)
    assert len(method.trials) == limit
    assert (p.stats.accepted, p.stats.rejected) == (limit - 1, 1)
    assert len(accepted) == limit - 1
    assert error.t == pytest.approx((limit - 1) * 0.125)


def test_max_steps_that_are_just_enough():
    taken, *_ = run((0.0, 1.0), control=ScriptedControl(grow=1.0, max_steps=4))
    assert len(taken) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2.0])
@pytest.mark.parametrize(("t0", "t1"), [(1.0, 2.0), (1.0, 0.0), (-1e6, 1e6), (1e-3, 1.0)])
def test_underflow_of_the_step_size(t0, t1, bad):
    error, accepted, method, _ = failing((t0, t1), ScriptedMethod((bad,)))
    assert error.kind == "step-size"
    assert "lost in the rounding of t" in str(error)
    assert error.t == t0
    assert accepted == []
    assert all(size > TOO_SMALL * math.ulp(t0) for size in method.sizes)
    assert error.dt <= TOO_SMALL * math.ulp(t0)
    assert len(method.trials) < 100


def test_accepted_steps_come_before_the_failure():
    error, accepted, _, p = failing((0.0, 1.0), ScriptedMethod((0.5, math.nan)))
    assert [float(step.t1) for step in accepted] == [0.25]
    assert error.t == 0.25
    assert error.stats is p.stats
    assert not error.backward


# Evaluations.


def test_a_step_starts_with_the_last_one_s_f1():
    _, method, _, p = run((0.0, 1.0), ScriptedMethod((0.5,), fsal=True), ScriptedControl(grow=1.0))
    assert method.given_f0 == [True] * 4
    assert p.f.call.times == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("fsal", [True, False])
def test_rejected_trials_do_not_evaluate_f0_again(fsal):
    errors = (2.0, 2.0, 0.5, 2.0, 0.5)
    _, method, _, p = run((0.0, 1.0), ScriptedMethod(errors, fsal=fsal))
    starts = [start for start, _ in method.spans]
    assert starts[:5] == [0.0, 0.0, 0.0, 0.0625, 0.0625]
    if fsal:  # the slope at t0, then the end of every trial
        assert p.f.call.times == [0.0, *(end for _, end in method.spans)]
    else:
        assert p.f.call.times == sorted(set(starts))


def trials(p):
    return p.stats.accepted + p.stats.rejected


def evaluations(method, stats, chosen_dt0):
    """First slope, first step size; then the other stages of every trial, and each step's first stage.

    Without those beside a state at rest, which are counted in test_rest.py.
    """
    per_trial = method.stages - 1
    firsts = 1 if starts_with_known_slope(method) else stats.accepted
    return firsts + chosen_dt0 + per_trial * (stats.accepted + stats.rejected)


@pytest.mark.parametrize("dt0", [None, 1.0])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_evaluations_of_an_adaptive_solve(name, dt0):
    f = Recorder(lambda t, y: 4 * y * torch.cos(9 * t))
    options = {"rtol": 1e-4, "atol": 1e-4, "dt0": dt0, "at_rest": "ignore"}
    sol = solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 3.0], method=name, **options)
    assert sol.stats.accepted > 2
    assert dt0 is None or sol.stats.rejected > 0
    assert sol.stats.nfe == f.nfe == evaluations(METHODS[name], sol.stats, dt0 is None)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_evaluations_with_outputs_between_steps(name):
    """Outputs cost at most the interpolant's own stages, in the steps that contain one."""
    method = METHODS[name]
    f = Recorder(lambda t, y: 4 * y * torch.cos(9 * t))
    times = torch.linspace(0, 3, 7, dtype=DOUBLE)
    options = {"rtol": 1e-4, "atol": 1e-4, "at_rest": "ignore"}
    sol = solve(f, torch.ones(2, dtype=DOUBLE), times, method=name, **options)
    ends = torch.tensor(sol.steps, dtype=DOUBLE)
    containing = [any((ends[i] < t < ends[i + 1]) for t in times) for i in range(len(ends) - 1)]
    expected = evaluations(method, sol.stats, 1)
    if isinstance(method, RungeKutta):
        expected += (len(method.nodes) - method.stages) * sum(containing)
        if method.f1_index is not None and not method.fsal:  # f1 is the next step's first stage
            expected -= sum(containing[:-1])
    assert sum(containing) > 0
    assert sol.stats.nfe == f.nfe == expected


@pytest.mark.parametrize("name", FIXED)
def test_evaluations_of_a_fixed_step_solve(name):
    method, f = METHODS[name], Recorder(lambda t, y: -y * t)
    sol = solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], method=name, n_steps=5)
    assert sol.stats.nfe == f.nfe == evaluations_of(method, 5)
    assert (sol.stats.accepted, sol.stats.rejected) == (5, 0)


# Host reads and operations.


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint"])
def test_one_host_read_a_trial(gradient, grad):
    y0, times = torch.ones(3, requires_grad=grad), torch.tensor([0.0, 0.3, 20.0])
    with CountOperations() as short:
        one = solve(lambda t, y: -y * t.cos(), y0, times, gradient=gradient, rtol=1e-4)
    with CountOperations() as long:
        two = solve(lambda t, y: -y * t.cos(), y0, times * 4, gradient=gradient, rtol=1e-4)
    more = trials(two) - trials(one)
    assert more > 30
    # Where a step's error says nothing, one more: how far it has moved the state.
    assert 0 <= long.host_reads - short.host_reads - more <= 2
    assert short.host_reads <= trials(one) + 4  # the first step size, and to spare


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint"])
@pytest.mark.parametrize("name", FIXED)
def test_no_host_read_in_a_fixed_step_solve(name, gradient):
    y0, times = torch.ones(3, requires_grad=True), torch.linspace(0, 1, 4)
    with CountOperations() as counts:
        sol = solve(lambda t, y: -y * t.cos(), y0, times, method=name, n_steps=7, gradient=gradient)
    assert sol.stats.accepted == 7
    assert counts.total > 50
    assert counts.host_reads == 0


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("gradient", "reads"),
    [("aca", 0), (ACA(checkpoints="all"), 1), ("direct", 0), (ACA(checkpoints="none"), 0)],
)
@pytest.mark.parametrize(
    "options", [{"method": "rk4", "n_steps": 7}, {"rtol": 1e-7}], ids=["fixed", "adaptive"]
)
def test_host_reads_of_a_training_step(options, gradient, reads, dense, timed):
    """The state is float32, and times, which the host has, are float64.

    A replay is compared with the solution: one read of a bool a pass, which after fixed steps it leaves out where
    it would wait for a device.
    """
    times = torch.tensor([0.0, 0.3, 0.35, 2.0], dtype=DOUBLE, requires_grad=timed)
    y0 = torch.ones(3, requires_grad=True)
    with CountOperations() as forward:
        sol = solve(lambda t, y: -y * t.cos(), y0, times, gradient=gradient, dense=dense, **options)
        loss = sol.ys.square().sum() + (sol(0.7).sum() if dense else 0.0)
    with CountOperations() as backward:
        loss.backward()
    searched = "rtol" in options
    assert sol.stats.accepted >= 7
    # and the first step size; and how far a step whose error says nothing has moved the state
    more = forward.reads_of[torch.float32] - (trials(sol) + 1 if searched else 0)
    assert 0 <= more <= (2 if searched else 0)
    assert backward.reads_of[torch.float32] == 0
    assert backward.reads_of[torch.bool] == reads


def test_operations_of_a_dopri5_trial():
    """At most 40 beyond f, and f's t among them."""

    def cost(span):
        with torch.no_grad(), CountOperations() as counts:
            sol = solve(lambda t, y: y.neg(), torch.ones(4), torch.tensor([0.0, span]), rtol=1e-6)
        return counts.total - sol.stats.nfe, trials(sol)

    (few, n), (many, m) = cost(1.0), cost(50.0)
    assert m - n > 20
    print(f"operations of a trial: {(many - few) / (m - n):.2f}")
    assert (many - few) / (m - n) <= 40


# f is never evaluated outside of [t0, t1].


@given(
    st.floats(-3.0, 3.0),
    st.floats(0.01, 5.0),
    st.booleans(),
    st.floats(-9.0, -1.0),
    st.sampled_from(["dopri5", "heun_euler", "bosh3", "fehlberg5", "dopri8", "tsit5"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1e-4, 1.0, 30.0]),
)
def test_stays_inside_the_span(t0, span, backwards, digits, name, dtype, speed):
    t1 = t0 - span if backwards else t0 + span
    tolerance = max(10**digits, 1e-5 if name == "heun_euler" or dtype == torch.float32 else 0.0)
    f = Recorder(lambda t, y: speed * torch.cos(speed * t) - speed * 0.1 * y)
    times = torch.tensor([t0, t0 + 0.3 * (t1 - t0), t1], dtype=DOUBLE)
    solve(f, torch.ones(1, dtype=dtype), times, method=name, rtol=tolerance, atol=tolerance)
    low, high = sorted(torch.tensor([t0, t1], dtype=DOUBLE).to(dtype).tolist())
    assert low <= min(f.times) <= max(f.times) <= high
    assert f.ts[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_for_the_first_step_stays_inside(dtype):
    """A slow solution asks for a first step of the whole span, whose end t0 + (t1 - t0) may round beyond t1."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(200, 2, dtype=DOUBLE, generator=generator)
    draws[100:] *= torch.tensor([-1.0, 1e-3], dtype=DOUBLE)  # from before 0 to just after it
    for t0, t1 in draws.tolist():
        f = Recorder(lambda t, y: 1e-6 * y)
        solve(f, torch.ones(1, dtype=dtype), torch.tensor([t0, t1], dtype=DOUBLE))
        low, high = sorted(torch.tensor([t0, t1], dtype=DOUBLE).to(dtype).tolist())
        assert low <= min(f.times), f"{min(f.times)!r} is before {low!r}"
        assert max(f.times) <= high, f"{max(f.times)!r} is after {high!r}"


# Jumps of f in time.

CONVENTIONS = {
    "before": lambda t, jump: t < jump,
    "at": lambda t, jump: t <= jump,
}


def step_function(jump, convention, low=0.0, high=1.0):
    before = CONVENTIONS[convention]
    return Recorder(lambda t, y: torch.where(before(t, jump), low, high).to(y.dtype).expand(y.shape))


@pytest.mark.parametrize(
    ("times", "dtype", "convention", "name"),
    covering(
        [(0.0, 0.5, 1.0), (1.0, 0.5, 0.0), (0.5, 1.0), (0.5, 0.0)],
        [torch.float32, torch.float64],
        CONVENTIONS,
        ADAPTIVE,
        strength=2,
    ),
    ids=str,
)
def test_no_step_looks_across_a_jump(name, convention, dtype, times):
    f = step_function(0.5, convention)
    tolerance = 1e-9 if dtype == DOUBLE else 1e-4
    sol = solve(
        f, torch.zeros(1, dtype=dtype), times, method=name, jump_ts=[0.5], rtol=tolerance, atol=tolerance
    )
    exact = [max(t, 0.5) - max(times[0], 0.5) for t in times]
    close = 4 * torch.finfo(dtype).eps
    assert sol.ys.flatten().tolist() == pytest.approx(exact, rel=0, abs=close)
    assert sol.stats.rejected == 0
    assert 0.5 in sol.steps
    assert 0.5 not in f.times[1:]


@pytest.mark.parametrize("given_as", [list, torch.tensor], ids=["list", "tensor"])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jumps_at_times_without_a_short_binary_form(convention, dtype, given_as):
    jumps = [0.3, 0.7]

    def f(t, y):
        before = CONVENTIONS[convention]
        return torch.where(before(t, 0.3), 0.0, torch.where(before(t, 0.7), 1.0, -1.0)).to(dtype).expand(1)

    given_jumps = jumps if given_as is list else torch.tensor(jumps, dtype=DOUBLE)
    sol = solve(f, torch.zeros(1, dtype=dtype), torch.tensor([0.0, 1.0], dtype=DOUBLE), jump_ts=given_jumps)
    assert sol.ys[-1].item() == pytest.approx(0.1, rel=0, abs=4 * torch.finfo(dtype).eps)
    assert sol.stats.rejected == 0
    assert set(jumps) <= set(sol.steps)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_search_for_the_first_step_does_not_touch_a_jump(convention):
    """A slow solution asks for a first step right up to the jump."""
    f = step_function(0.5, convention, low=1e-3, high=1e3)
    solve(f, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], jump_ts=[0.5])
    assert 0.5 not in f.times


def test_without_jump_ts_the_same_jump_costs_rejections():
    sol = solve(step_function(0.3, "at"), torch.zeros(1, dtype=DOUBLE), [0.0, 1.0], rtol=1e-9, atol=1e-9)
    assert sol.stats.rejected > 3


def test_first_stages_are_not_reused_across_a_jump():
    f = step_function(0.5, "at")
    sol = solve(f, torch.zeros(1, dtype=DOUBLE), [0.0, 1.0], jump_ts=[0.5], dt0=0.5)
    assert sol.steps[:2] == (0.0, 0.5)
    before = [t for t in f.times if t < 0.5]
    after = [t for t in f.times if t > 0.5]
    assert max(before) == math.nextafter(0.5, 0)
    assert min(after) == math.nextafter(0.5, 1)


# Fixed steps.


@pytest.mark.parametrize(
    ("t0", "t1", "dt", "n"),
    [
        (0.0, 1.0, 0.1, 10),
        (0.0, 1.0, 0.3, 4),
        (0.0, 1.0, 1.0, 1),
        (0.0, 1.0, 7.0, 1),
        (0.0, 0.3, 0.1, 3),
        (0.0, 2.1, 0.3, 7),  # 2.1 / 0.3 is 7.000000000000001
        (1.0, 0.0, 0.1, 10),
        (0.1, 0.7, 0.2, 3),
        (0.0, 1.0, 1 / 3, 3),
        (0.0, 100.0, 0.01, 10_000),
        (-2.0, -5.0, 0.4, 8),
    ],
)
def test_dt_takes_as_many_steps_as_fit(t0, t1, dt, n):
    times = FixedSteps(dt=dt).times(problem(None, (t0, t1), None, None).ts)
    sizes = [abs(b - a) for a, b in pairwise(times)]
    assert len(sizes) == n
    assert (times[0], times[-1]) == (t0, t1)
    assert sizes[:-1] == pytest.approx([dt] * (n - 1), rel=1e-9)
    assert 0 < sizes[-1] <= dt * (1 + 1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("span", [(0.0, 1.0), (2.0, -0.7)])
def test_n_steps_takes_that_many_equal_steps(span, n):
    times = FixedSteps(n_steps=n).times(problem(None, span, None, None).ts)
    assert (times[0], times[-1]) == span
    assert [b - a for a, b in pairwise(times)] == pytest.approx([(span[1] - span[0]) / n] * n)


def test_steps_are_those_asked_for():
    f, y0, times = (
        (lambda t, y: -y),
        torch.ones(1, dtype=DOUBLE),
        torch.tensor([0.0, 0.33, 1.0], dtype=DOUBLE),
    )
    grid = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=DOUBLE)
    assert solve(f, y0, times, method="rk4", grid=grid).steps == (0.0, 0.1, 0.5, 1.0)
    assert solve(f, y0, times, method="rk4", n_steps=4).steps == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert solve(f, y0, times, method="rk4", dt=0.25).steps == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert solve(f, y0, times, method="rk4", control=FixedSteps()).steps == (0.0, 0.33, 1.0)
    assert solve(f, y0, times, method="dopri5", n_steps=2).steps == (0.0, 0.5, 1.0)


def test_output_times_as_steps_skip_repeated_ones():
    ts = problem(None, (0.0, 0.0, 0.5, 0.5, 1.0, 1.0), None, None).ts
    assert FixedSteps().times(ts) == [0.0, 0.5, 1.0]


def test_output_steps_equal_a_grid_by_hand():
    """The loop does nothing but step: rk4, written out once more."""
    f = BOTH_WAYS["spiral"].f
    y, t, h = BOTH_WAYS["spiral"].y0, -1.0, 0.25
    for _ in range(10):
        k1 = f(torch.tensor(t, dtype=DOUBLE), y)
        k2 = f(torch.tensor(t + h / 2, dtype=DOUBLE), y + h / 2 * k1)
        k3 = f(torch.tensor(t + h / 2, dtype=DOUBLE), y + h / 2 * k2)
        k4 = f(torch.tensor(t + h, dtype=DOUBLE), y + h * k3)
        y, t = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), t + h
    sol = solve(f, BOTH_WAYS["spiral"].y0, [-1.0, 1.5], method="rk4", n_steps=10)
    torch.testing.assert_close(sol.ys[-1], y, rtol=1e-13, atol=1e-14)


# Watching.


def test_watchers_see_every_trial():
    seen = []
    p = problem(Counted(), (1.0, 0.0), ScriptedMethod((0.5, 2.0, 0.5)), ScriptedControl(grow=1.0))
    list(steps(replace(p, log=Log(watch=lambda *what: seen.append(what)))))
    assert [(event, t0, dt) for event, t0, _, dt in seen[:6]] == [
        ("trial", 1.0, -0.25),
        ("accepted", 1.0, -0.25),
        ("trial", 0.75, -0.25),
        ("rejected", 0.75, -0.25),
        ("trial", 0.75, -0.125),
        ("accepted", 0.75, -0.125),
    ]


def test_adaptive_controls_are_asked_through_the_same_door():
    """The scripted control and the real one are exchangeable: with equal factors they take equal steps."""
    real = Adaptive(rtol=0.0, atol=1.0, dt0=0.25, safety=0.5, factor_max=2.0)
    taken, *_ = run((0.0, 4.0), ScriptedMethod((0.25,)), real)
    assert taken == run((0.0, 4.0), ScriptedMethod((0.25,)), ScriptedControl(dt0=0.25, grow=2.0))[0]
