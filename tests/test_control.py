"""Error ratios, step size factors, the first step size, and what a control refuses."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import BOTH_WAYS, DOUBLE
from stubs import Counted, problem
from torch import Tensor

from torchaca import I_CONTROL, METHODS, PI_CONTROL, PID, PID_CONTROL, Adaptive, FixedSteps, solve
from torchaca.core import Times
from torchaca.loops.rule import TINY_RATIO
from torchaca.numbers import in_double, on_host


@dataclass
class Ended:
    """What a control reads of a step."""

    y0: Tensor
    y1: Tensor
    error: Tensor


def ended(y0, y1, error, dtype=DOUBLE):
    return Ended(*(torch.tensor(x, dtype=dtype) for x in (y0, y1, error)))


STEP = ended([1.0, -4.0, 0.0], [2.0, 3.0, 0.5], [1e-3, -2e-3, 4e-3])
SCALE = [1e-2 + 1e-1 * size for size in (2.0, 4.0, 0.5)]
SCALED = [error / scale for error, scale in zip((1e-3, 2e-3, 4e-3), SCALE, strict=True)]
RMS = math.sqrt(sum(x**2 for x in SCALED) / 3)


# Ratios.


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("rms", RMS),
        ("max", max(SCALED)),
        (lambda x: x.abs().sum(), sum(SCALED)),
    ],
)
def test_ratio_is_the_norm_of_the_error_over_its_tolerance(norm, expected):
    ratio = Adaptive(rtol=1e-1, atol=1e-2, norm=norm).ratio(STEP)
    assert ratio.shape == ()
    assert ratio.item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("norm", ["rms", "max", lambda x: x.abs().sum()])
def test_tolerances_as_numbers_and_as_tensors_give_the_same(norm):
    def full(value):
        return torch.full((3,), value, dtype=DOUBLE)

    expected = Adaptive(rtol=1e-1, atol=1e-2, norm=norm).ratio(STEP).item()
    for rtol, atol in [(full(1e-1), full(1e-2)), (full(1e-1), 1e-2), (1e-1, full(1e-2))]:
        assert Adaptive(rtol=rtol, atol=atol, norm=norm).ratio(STEP).item() == pytest.approx(
            expected, rel=1e-13
        )


def test_each_component_has_its_tolerance():
    atol = torch.tensor([1e-3, 1e-2, 1.0], dtype=DOUBLE)
    expected = math.sqrt(((1e-3 / 1e-3) ** 2 + (2e-3 / 1e-2) ** 2 + (4e-3 / 1.0) ** 2) / 3)
    assert Adaptive(rtol=0.0, atol=atol).ratio(STEP).item() == pytest.approx(expected, rel=1e-13)


def test_a_norm_may_return_a_number():
    ratio = Adaptive(rtol=1e-1, atol=1e-2, norm=lambda x: float(x.abs().sum())).ratio(STEP)
    assert ratio.item() == pytest.approx(sum(SCALED), rel=1e-6)


@pytest.mark.parametrize("norm", ["rms", "max"])
def test_nan_is_never_acceptable(norm):
    step = ended([1.0, 1.0], [1.0, math.nan], [0.0, math.nan])
    assert not Adaptive(norm=norm).ratio(step) <= 1
    assert not Adaptive(norm=norm, atol=torch.tensor([1.0, 1.0])).ratio(step) <= 1


def test_complex_errors_are_measured_by_their_modulus():
    step = ended([1.0], [3j], [3e-3 + 4e-3j], torch.complex128)
    ratio = Adaptive(rtol=0.0, atol=1e-2).ratio(step)
    assert ratio.dtype == DOUBLE
    assert ratio.item() == pytest.approx(0.5)
    assert Adaptive(rtol=1.0, atol=1e-2, norm="max").ratio(step).item() == pytest.approx(5e-3 / 3.01)


@pytest.mark.parametrize("norm", ["rms", "max"])
def test_a_state_without_components_has_no_error(norm):
    y0 = torch.ones(0, 3)
    sol = solve(lambda t, y: -y, y0, [0.0, 1.0], norm=norm)
    assert sol.ys.shape == (2, 0, 3)
    assert sol.stats.rejected == 0


def test_per_component_tolerances_steer_the_solve():
    def f(t, y):
        return torch.stack([torch.cos(30 * t), 0.1 * y[1]])

    y0 = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    tight = solve(f, y0, [0.0, 1.0], rtol=0.0, atol=1e-8)
    loose = solve(f, y0, [0.0, 1.0], rtol=0.0, atol=torch.tensor([1e3, 1e-8]))
    assert loose.stats.accepted < tight.stats.accepted / 3
    assert loose.ys[-1, 1].item() == pytest.approx(math.exp(0.1), abs=1e-7)


# Factors.


def by_hand(pid, ratios, order, safety=0.9):
    p, i, d = pid.p, pid.i, pid.d
    exponents = [-(p + i + d) / order, (p + 2 * d) / order, -d / order]
    factor = safety
    for ratio, exponent in zip(ratios, exponents, strict=False):
        factor *= ratio**exponent
    return factor


@pytest.mark.parametrize("order", [2, 5, 8])
@pytest.mark.parametrize("pid", [I_CONTROL, PI_CONTROL, PID_CONTROL, PID(0.2, 0.5, 0.1)])
@given(st.lists(st.floats(0.01, 3.0), min_size=1, max_size=3))
def test_factor_follows_its_formula(pid, order, ratios):
    control = Adaptive(pid=pid, factor_min=1e-9, factor_max=1e9)
    assert control.factor(ratios, order) == pytest.approx(by_hand(pid, ratios, order), rel=1e-12)


def test_the_named_controllers_are_those_of_the_literature():
    r0, r1, r2 = 0.3, 0.7, 1.2
    wide = {"factor_min": 1e-9, "factor_max": 1e9}
    factor = {name: Adaptive(pid=pid, **wide).factor([r0, r1, r2], 5) for name, pid in NAMED.items()}
    assert factor["I"] == pytest.approx(0.9 * r0 ** (-1 / 5))
    assert factor["PI"] == pytest.approx(0.9 * r0 ** (-0.7 / 5) * r1 ** (0.4 / 5))
    assert factor["PID"] == pytest.approx(
        0.9 * r0 ** (-(0.1 + 0.3 + 0.0333) / 5) * r1 ** ((0.1 + 2 * 0.0333) / 5) * r2 ** (-0.0333 / 5)
    )


NAMED = {"I": I_CONTROL, "PI": PI_CONTROL, "PID": PID_CONTROL}


@pytest.mark.parametrize("pid", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("after_rejection", [False, True])
@given(st.lists(st.floats(0.0, 1e12), min_size=1, max_size=3))
def test_numbers_and_tensors_give_the_same_factor(pid, after_rejection, ratios):
    control = Adaptive(pid=pid)
    host = control.factor(ratios, 5, after_rejection=after_rejection)
    device = control.factor(
        [torch.tensor(r, dtype=DOUBLE) for r in ratios], 5, after_rejection=after_rejection
    )
    assert isinstance(host, float)
    assert isinstance(device, Tensor)
    assert device.shape == ()
    assert device.item() == pytest.approx(host, rel=1e-13)


def test_factor_stays_within_its_limits():
    control = Adaptive(factor_min=0.2, factor_max=10.0)
    assert control.factor([0.0], 5) == 10.0
    assert control.factor([TINY_RATIO / 2], 5) == 10.0
    assert control.factor([1e10], 5) == 0.2
    assert control.factor([0.0], 5, after_rejection=True) == 1.0
    assert control.factor([1.0], 5, after_rejection=True) == 0.9
    assert control.factor([1e10], 5, after_rejection=True) == 0.2
    assert Adaptive(safety=0.5).factor([1.0], 5) == 0.5


def test_factor_of_a_tensor_can_be_differentiated():
    ratio = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    Adaptive().factor([ratio], 5).backward()
    assert ratio.grad.item() == pytest.approx(-0.2 * 0.9 * 0.5 ** (-1.2))


@pytest.mark.parametrize("pid", NAMED.values(), ids=NAMED)
def test_controllers_keep_the_tolerance(pid):
    p = BOTH_WAYS["cosine"]
    sol = solve(p.f, p.y0, p.times(2), control=Adaptive(rtol=1e-8, atol=1e-8, pid=pid))
    assert (sol.ys[-1] - p.y1).abs().max() < 1e-6
    assert sol.stats.rejected <= 0.2 * sol.stats.accepted + 2


# The first step size.


def hairer(f, t0, y0, sign, order, rtol, atol, longest):
    """Hairer, Norsett, Wanner, section II.4, "starting step size", word for word."""

    def norm(x):
        return ((x / (atol + rtol * y0.abs())) ** 2).mean().sqrt().item()

    f0 = f(t0, y0)
    d0, d1 = norm(y0), norm(f0)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, longest)
    d2 = norm(f(t0 + sign * h0, y0 + sign * h0 * f0) - f0) / h0
    if max(d1, d2) <= 1e-15:
        h1 = max(1e-6, h0 * 1e-3)
    else:
        h1 = (0.01 / max(d1, d2)) ** (1 / order)
    return min(100 * h0, h1)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
@pytest.mark.parametrize("name", [name for name in BOTH_WAYS if "oscillation" not in name])
def test_first_step_size_is_hairer_s(name, method):
    p, control = BOTH_WAYS[name], Adaptive(rtol=1e-5, atol=1e-7)
    f = Counted(p.f)
    q = problem(f, p.span, METHODS[method], control, p.y0)
    chosen = control.initial_step(q, p.f(torch.tensor(p.span[0], dtype=DOUBLE), p.y0))
    sign, longest = math.copysign(1, p.span[1] - p.span[0]), abs(p.span[1] - p.span[0])

    def g(t, y):
        return p.f(torch.tensor(t, dtype=DOUBLE), y)

    expected = hairer(g, p.span[0], p.y0, sign, METHODS[method].order, 1e-5, 1e-7, longest)
    assert chosen.shape == ()
    assert chosen.item() == pytest.approx(expected, rel=1e-12)
    assert f.nfe == 1


@pytest.mark.parametrize(
    ("y0", "slope"),
    [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e30, 1.0), (1.0, 1e-30), (1.0, 1e15), (1e-30, 1.0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (5.0, 5.0 + 1e-4), (-1e4, 1e4)])
@pytest.mark.parametrize("numbers", [in_double, on_host])
def test_first_step_size_is_positive_finite_and_looks_no_further_than_the_span(
    numbers, t0, t1, dtype, y0, slope
):
    control = Adaptive()
    f = Counted(lambda t, y: torch.full_like(y, slope) * (1 + 0 * y))
    q = problem(f, (t0, t1), METHODS["dopri5"], control, torch.full((2,), y0, dtype=dtype))
    chosen = float(control.initial_step(q, f(t0, q.y0), numbers))
    assert 0 < chosen < math.inf
    assert min(t0, t1) <= torch.tensor(f.times[-1]).item() <= max(t0, t1) * (1 + 1e-7)


@pytest.mark.parametrize("jump", [1.0, 1e12, math.nan, math.inf])
@pytest.mark.parametrize("slope", [0.0, 1e-30, 1.0, 1e200, math.inf, math.nan])
@pytest.mark.parametrize("y0", [0.0, 1.0, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_first_step_size_is_the_same_on_the_host(dtype, y0, slope, jump):
    """`jump`: the factor between the two evaluations of f."""
    sizes = []
    for numbers in (in_double, on_host):
        f = Counted(
            lambda t, y: torch.ones(y.shape, dtype=DOUBLE).mul(slope).mul(jump if float(t) > 0 else 1.0).to(y)
        )
        q = problem(f, (0.0, 1.0), METHODS["dopri5"], Adaptive(), torch.full((2,), y0, dtype=dtype))
        sizes.append(float(Adaptive().initial_step(q, f(0.0, q.y0), numbers)))
        assert len(f.times) == 2
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-14, nan_ok=True)


def test_the_first_step_looks_no_further_than_the_first_stop_and_dt_max():
    f = Counted(lambda t, y: 1e-4 * y)
    for control, reach in [
        (Adaptive(jump_ts=(0.25,)), 0.25),
        (Adaptive(dt_max=0.125), 0.125),
        (Adaptive(stop_ts=(0.5, 0.375)), 0.375),
        (Adaptive(), 1.0),
    ]:
        q = problem(f, (0.0, 1.0), METHODS["dopri5"], control, torch.ones(1, dtype=DOUBLE))
        control.initial_step(q, f(0.0, q.y0))
        assert 0.4 * reach < f.times[-1] <= reach


# Stops and boundaries.


@pytest.mark.parametrize(
    ("values", "jumps", "expected"),
    [
        ((0.0, 1.0), (0.7, 0.3), [0.3, 0.7, 1.0]),
        ((1.0, 0.0), (0.7, 0.3), [0.7, 0.3, 0.0]),
        ((0.0, 1.0), (0.3, 0.3, -1.0, 2.0, 0.0, 1.0), [0.3, 1.0]),
        ((0.0, 0.5, 1.0), (), [1.0]),
    ],
)
def test_stops_lie_inside_in_the_direction_of_the_solve(values, jumps, expected):
    assert Adaptive(jump_ts=jumps).stops(Times(values)) == expected
    assert Adaptive(stop_ts=jumps).stops(Times(values)) == expected
    assert Adaptive(jump_ts=jumps[:1], stop_ts=jumps[1:]).stops(Times(values)) == expected


def test_stop_ts_end_steps_and_nothing_else():
    f = Counted()
    p = BOTH_WAYS["cosine"]
    free = solve(p.f, p.y0, p.times(2), control=Adaptive())
    sol = solve(p.f, p.y0, p.times(2), control=Adaptive(stop_ts=(0.25, 1.25)))
    assert {0.25, 1.25} <= set(sol.steps)
    assert not {0.25, 1.25} & set(free.steps)
    assert f.nfe == 0


def test_boundaries_move_with_the_times_they_were_made_from():
    tensor = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE, requires_grad=True)
    moving, still = Times((0.0, 0.5, 1.0), tensor), Times((0.0, 0.5, 1.0))
    taken = [0.0, 0.2, 0.7, 1.0]
    assert Adaptive().boundaries(still, taken) == taken
    first, *inner, last = Adaptive().boundaries(moving, taken)
    assert inner == [0.2, 0.7]
    assert (first.item(), last.item()) == (0.0, 1.0)
    assert first.requires_grad
    assert last.requires_grad
    middle = FixedSteps(n_steps=2).boundaries(moving, [0.0, 0.5, 1.0])[1]
    assert torch.autograd.grad(middle, tensor)[0].tolist() == [0.5, 0.0, 0.5]
    middle = FixedSteps(dt=0.75).boundaries(moving, [0.0, 0.75, 1.0])[1]
    assert torch.autograd.grad(middle, tensor)[0].tolist() == [1.0, 0.0, 0.0]
    middle = FixedSteps().boundaries(moving, [0.0, 0.5, 1.0])[1]
    assert torch.autograd.grad(middle, tensor)[0].tolist() == [0.0, 1.0, 0.0]


# Settings that make no sense.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"safety": 0.0}, r"safety must be greater than 0, got 0.0"),
        ({"safety": math.nan}, r"safety must be greater than 0"),
        ({"factor_min": 0.0}, r"factor_min must be greater than 0"),
        ({"factor_min": 1.0}, r"factor_min < 1 < factor_max must hold, got 1.0, 10.0"),
        ({"factor_max": 1.0}, r"factor_min < 1 < factor_max must hold, got 0.2, 1.0"),
        ({"factor_max": math.nan}, r"factor_min < 1 < factor_max"),
        ({"dt0": 0.0}, r"dt0 is the size of the first step, a positive number; got 0.0"),
        ({"dt0": -0.1}, r"dt0 .* got -0.1"),
        ({"dt0": math.inf}, r"dt0 .* got inf"),
        ({"dt0": math.nan}, r"dt0 .* got nan"),
        ({"dt_min": -1.0}, r"0 <= dt_min <= dt_max must hold, got -1.0, inf"),
        ({"dt_min": 1.0, "dt_max": 0.5}, r"0 <= dt_min <= dt_max must hold, got 1.0, 0.5"),
        ({"dt_min": math.nan}, r"0 <= dt_min <= dt_max"),
        ({"dt_max": 0.0}, r"dt_max must be greater than 0"),
        ({"max_steps": 0}, r"max_steps must be greater than 0, got 0"),
        ({"norm": "l2"}, r"unknown norm 'l2': use 'rms', 'max' or a callable"),
        ({"rtol": -1e-3}, r"rtol must not be negative, got -0.001"),
        ({"atol": math.nan}, r"atol must not be negative"),
        ({"atol": torch.tensor([1.0, -1.0])}, r"atol must not be negative"),
        ({"atol": torch.tensor([1.0, math.nan])}, r"atol"),
        ({"rtol": 0.0, "atol": 0.0}, r"rtol and atol cannot both be zero"),
        ({"rtol": 0, "atol": 0}, r"rtol and atol cannot both be zero"),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(**settings)


@pytest.mark.parametrize("settings", [{"rtol": 0.0}, {"atol": 0.0}, {"dt_min": 0.1, "dt_max": 0.1}])
def test_settings_at_their_limits_are_fine(settings):
    p = BOTH_WAYS["cosine"]
    sol = solve(p.f, p.y0, p.times(2), control=Adaptive(**settings))
    assert sol.status == "success"


@pytest.mark.parametrize("atol", [0.0, torch.zeros(2, dtype=DOUBLE)], ids=["number", "tensor"])
def test_a_component_that_stays_zero_needs_no_atol(atol):
    y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    sol = solve(lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-6, atol=atol)
    torch.testing.assert_close(sol.ys[-1], y0 * math.exp(-1), rtol=1e-6, atol=0)
