"""Agreement with other solvers, and the error that an evaluation of f buys, next to torchdiffeq."""

import math
from functools import cache

import numpy as np
import pytest
import scipy.integrate
import torch
import torchdiffeq
from problems import BOTH_WAYS, CLOSED_FORMS, DOUBLE, OPEN
from stubs import Recorder

from torchaca import METHODS, solve

PROBLEMS = {**BOTH_WAYS, **OPEN}
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
OUTPUTS = 6

THEIRS = {
    "heun_euler": "adaptive_heun",
    "bosh3": "bosh3",
    "fehlberg2": "fehlberg2",
    "dopri5": "dopri5",
    "dopri8": "dopri8",
}
"""Adaptive methods of torchdiffeq 0.2.5, by our names."""

THEIR_FIXED = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun2", "heun3": "heun3", "rk4_38": "rk4"}


@cache
def reference(name):
    """scipy's DOP853 at rtol = atol = 1e-12: the states at OUTPUTS times."""
    p = PROBLEMS[name]
    y0, times = p.y0, p.times(OUTPUTS)

    def f(t, y):
        state = torch.from_numpy(y.astype(complex if y0.is_complex() else float)).reshape(y0.shape)
        return p.f(torch.tensor(t, dtype=DOUBLE), state).reshape(-1).numpy()

    found = scipy.integrate.solve_ivp(
        f, p.span, y0.reshape(-1).numpy(), "DOP853", times.numpy(), rtol=1e-12, atol=1e-12
    )
    assert found.success
    return torch.from_numpy(found.y.T.copy()).reshape(OUTPUTS, *y0.shape)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_the_reference_is_right(name):
    p = PROBLEMS[name]
    torch.testing.assert_close(reference(name), p.exact(p.times(OUTPUTS)), rtol=1e-10, atol=1e-10)


TIGHT = {
    **dict.fromkeys(("heun_euler", "fehlberg2", "alf", "reversible_heun"), 1e-5),
    "bosh3": 1e-7,
    "dopri8": 1e-11,
}
LOW = (
    "heun_euler",
    "fehlberg2",
    "alf",
    "reversible_heun",
    "bosh3",
)  # they take thousands of steps, and solve the closed forms only
PAIRS = [(name, method) for method in ADAPTIVE for name in (CLOSED_FORMS if method in LOW else PROBLEMS)]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_agrees_with_scipy(name, method):
    p, tolerance = PROBLEMS[name], TIGHT.get(method, 1e-9)
    with torch.no_grad():
        sol = solve(p.f, p.y0, p.times(OUTPUTS), method=method, rtol=tolerance, atol=tolerance)
    scale = reference(name).abs().max().item()
    off = (sol.ys - reference(name)).abs().max().item()
    assert off <= 1e3 * tolerance * scale


@pytest.mark.parametrize("name", PROBLEMS)
def test_agrees_with_torchdiffeq(name):
    p = PROBLEMS[name]
    with torch.no_grad():
        ours = solve(p.f, p.y0, p.times(OUTPUTS), method="dopri5", rtol=1e-8, atol=1e-8).ys
        theirs = torchdiffeq.odeint(p.f, p.y0, p.times(OUTPUTS), method="dopri5", rtol=1e-8, atol=1e-8)
    scale = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("method", THEIR_FIXED)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_torchdiffeq_on_the_same_grid(name, method):
    p = PROBLEMS[name]
    times = p.times(41)
    with torch.no_grad():
        ours = solve(p.f, p.y0, times, method=method, grid=times).ys
        theirs = torchdiffeq.odeint(p.f, p.y0, times, method=THEIR_FIXED[method])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13, equal_nan=True)


# Work and precision.


def ours(name, method, tolerance):
    p = PROBLEMS[name]
    with torch.no_grad():
        sol = solve(p.f, p.y0, p.times(2), method=method, rtol=tolerance, atol=tolerance)
    return sol.stats.nfe, final_error(name, sol.ys[-1])


def theirs(name, method, tolerance):
    p = PROBLEMS[name]
    f = Recorder(p.f)
    with torch.no_grad():
        ys = torchdiffeq.odeint(f, p.y0, p.times(2), method=THEIRS[method], rtol=tolerance, atol=tolerance)
    return f.nfe, final_error(name, ys[-1])


def final_error(name, y):
    return max((y - reference(name)[-1]).abs().max().item(), 1e-16)


def curve(solver, name, method, tolerances):
    """log(nfe), log(error) of solves from loose to tight, as two arrays that increase with the work."""
    points = sorted(solver(name, method, tolerance) for tolerance in tolerances)
    work, error = np.log(np.array(points)).T
    return work, error


def ratios_at_equal_work(name, method, tolerances):
    """Our final error over torchdiffeq's, at the evaluations that torchdiffeq needs at each of the tolerances."""
    around = np.geomspace(max(tolerances) * 10, min(tolerances) / 10, 4 + 2 * len(tolerances))
    work, error = curve(ours, name, method, around)
    for tolerance in tolerances:
        nfe, their_error = theirs(name, method, tolerance)
        # A straight line through the neighbours in log-log takes the scatter out; its slope is about -order.
        near = np.argsort(np.abs(work - math.log(nfe)))[:4]
        slope, height = np.polyfit(work[near], error[near], 1)
        yield math.exp(slope * math.log(nfe) + height) / their_error


SMOOTH = [name for name in PROBLEMS if name != "van der pol"]


@pytest.mark.parametrize(
    ("method", "tolerances"),
    [
        ("dopri5", (1e-4, 1e-5, 1e-6)),
        ("bosh3", (1e-4,)),
        pytest.param("bosh3", (1e-4, 1e-5, 1e-6), marks=pytest.mark.slow),
        pytest.param("dopri8", (1e-5, 1e-7, 1e-9), marks=pytest.mark.slow),
    ],
)
def test_error_at_equal_work_is_no_larger_than_torchdiffeq_s(method, tolerances):
    every = []
    for name in SMOOTH:
        ratios = list(ratios_at_equal_work(name, method, tolerances))
        every.extend(ratios)
        shown = ", ".join(f"{ratio:.3g}" for ratio in ratios)
        print(
            f"{method} {name}: error {shown} times torchdiffeq's at equal evaluations, tolerances {tolerances}"
        )
    median = float(np.median(every))
    print(f"{method}: median {median:.3g}")
    assert median <= 1


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dopri8"])
def test_error_follows_the_tolerance(method):
    """Ten times tighter is about ten times more accurate."""
    for name in ("cosine", "spiral", "linear"):
        loose, tight = ours(name, method, 1e-4), ours(name, method, 1e-7)
        assert tight[1] < loose[1] / 50
        assert tight[0] > loose[0]


def test_error_stays_near_the_tolerance():
    for name in BOTH_WAYS:
        nfe, error = ours(name, "dopri5", 1e-6)
        assert error < 2e-4
        assert nfe < 400
