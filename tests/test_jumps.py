"""Jumps and stops that rounding cannot tell apart, from each other, from outputs or from the ends: one step's end."""

import math

import pytest
import torch
from gradient_cases import SETTINGS, takes
from problems import DOUBLE

from torchaca import METHODS, Adaptive, solve

U = math.ulp
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
NEAR = {
    "twice": [0.5, 0.5],
    "two": [0.5, 0.5 + U(0.5)],
    "a row": [0.5 + i * U(0.5) for i in range(-3, 12)],
    "at the ends": [0.0, 0.5, 1.0],
    "inside the ends": [U(0.0), 0.5, 1 - U(0.5)],
    "outside the ends": [-U(0.0), 0.5, 1 + U(1.0)],
    "by a subnormal": [1e-40, 0.5],
    "beside outputs": [0.3 + U(0.3), 0.5, 0.7 - U(0.5)],
    "beside two outputs": [0.5, 0.5 + 2 * U(0.5)],
}
TIMES = [0.0, 0.3, 0.5, 0.5 + U(0.5), 0.7, 1.0]
EXACT = torch.tensor([0.0, 0.3, 0.5, 0.5, 0.1, -0.5])


def tooth(t, y):
    """1 before t = 0.5, -2 after it, in both conventions of what holds at 0.5 itself."""
    return torch.where(t < 0.5, 1.0, -2.0).to(y.dtype).expand(y.shape) + 0 * y


def solved(given, dtype, backwards, **options):
    y0 = torch.full((2,), -0.5 if backwards else 0.0, dtype=dtype, requires_grad=True)
    exact = EXACT.flip(0) if backwards else EXACT
    sol = solve(tooth, y0, TIMES[::-1] if backwards else TIMES, **given, **options)
    torch.testing.assert_close(sol.ys[:, 0].double(), exact.double(), rtol=0, atol=2e-6)
    (slope,) = torch.autograd.grad(sol.ys.sum(), y0)
    torch.testing.assert_close(slope, torch.full_like(slope, len(TIMES)), rtol=1e-5, atol=0)
    assert min(abs(b - a) for a, b in zip(sol.steps, sol.steps[1:], strict=False)) > 1e-6
    return sol


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("near", NEAR)
def test_jumps_that_are_as_near_as_rounding_are_one(near, dtype, backwards):
    sol = solved({"jump_ts": NEAR[near]}, dtype, backwards)
    assert sol.stats.rejected == 0
    stops = Adaptive(stop_ts=tuple(NEAR[near]), jump_ts=(0.5,))
    assert solved({"control": stops}, dtype, backwards).stats.rejected == 0


@pytest.mark.parametrize("near", ["a row", "beside two outputs"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_under_every_gradient(setting, near):
    solved({"jump_ts": NEAR[near]}, DOUBLE, False, gradient=SETTINGS[setting], method=takes(setting)[0])


@pytest.mark.parametrize("method", ADAPTIVE)
def test_in_every_method(method):
    solved({"jump_ts": NEAR["a row"]}, DOUBLE, True, method=method)


def test_jumps_farther_apart_than_the_state_s_precision_stay_two():
    apart = [0.5, 0.5 + 1e-9]
    for dtype, jumps in ((torch.float32, 1), (DOUBLE, 2)):
        sol = solve(lambda t, y: -y, torch.ones(1, dtype=dtype), [0.0, 1.0], jump_ts=apart)
        assert len({t for t in sol.steps if 0.4999 < t < 0.5001}) == jumps


@pytest.mark.parametrize(
    "times", [[1.0, 1 + U(1.0)], [1.0, 0.5 + U(0.5), 0.5, 0.2], [0.0, 1e-40, 1.0]], ids=str
)
@pytest.mark.parametrize("setting", SETTINGS)
def test_output_times_that_are_as_near(setting, times):
    """The adjoint integrates backwards from one to the next."""
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    sol = solve(lambda t, y: -y, y0, times, gradient=SETTINGS[setting], method=takes(setting)[0])
    (slope,) = torch.autograd.grad(sol.ys[-1].sum(), y0)
    torch.testing.assert_close(
        slope, torch.full_like(slope, math.exp(times[0] - times[-1])), rtol=1e-2, atol=0
    )
