"""Gradients of output times and grids in compiled solves, against the eager loop, run by Python (see `interpreted`)."""

import pytest
import torch
from compiled_helpers import Net, assert_equal, both
from covering import pairs

from torchaca import Adaptive, FixedSteps, solve
from torchaca.compiled import run

pytestmark = pytest.mark.usefixtures("interpreted")

TIMES = {
    "two": [0.0, 2.0],
    "backwards": [2.0, 0.0],
    "inside": [0.0, 0.3, 0.31, 1.0, 1.7, 2.0],
    "inside, backwards": [2.0, 1.99, 0.5, 0.0],
    "repeated": [0.0, 0.0, 0.4, 0.4, 2.0, 2.0],
}


def leaf(times):
    return torch.tensor(times, dtype=torch.float64, requires_grad=True)


def assert_same(t, *leaves, tolerance=1e-12, **options):
    """The times' gradients among those of everything else, which are the eager loop's."""
    f, y0 = Net(), torch.randn(3, 2, dtype=torch.float64)
    eager, compiled = both(f, y0, t, (*leaves, *f.parameters()), **options)
    assert eager[1][1].abs().sum() > 0
    if landing(eager[0]):  # the eager loop does not interpolate there, but its backward pass does
        extra = compiled[0].stats.nfe - eager[0].stats.nfe
        assert 0 <= extra <= 3 * eager[0].stats.accepted
        compiled[0].stats.nfe -= extra
    assert_equal(eager, compiled, tolerance)


def landing(solution):
    """Whether an output that is not the end of a step by definition falls on one."""
    return bool({*solution.ts.tolist()[:-1]} & {*solution.steps[1:]}) or solution.ts[-2] == solution.ts[-1]


STEPS = [
    {"method": "dopri5", "rtol": 1e-4},
    {"method": "heun_euler", "rtol": 1e-2, "atol": 1e-3},
    {"method": "fehlberg5", "rtol": 1e-4},
    {"method": "dopri8", "rtol": 1e-9, "atol": 1e-9, "dt0": 0.3},
    {"method": "rk4", "n_steps": 7},
    {"method": "dopri5", "dt": 0.3},
    {"method": "midpoint", "control": FixedSteps()},  # from output to output
    {"method": "bosh3", "control": Adaptive(rtol=1e-4, stop_ts=(0.3, 0.5))},
]


@pytest.mark.parametrize(("steps", "times"), pairs(STEPS, TIMES), ids=str)
def test_times_have_the_gradients_of_the_eager_loop(steps, times):
    t = leaf(TIMES[times])
    assert_same(t, t, tolerance=1e-11, **steps)


@pytest.mark.parametrize("moving", [True, False])
def test_a_grid_moves(moving):
    grid = leaf([0.0, 0.35, 0.7, 1.9, 2.0])  # not at an output inside, which would not move with it
    t = leaf(TIMES["inside"]) if moving else TIMES["inside"]
    assert_same(t, grid, *([t] if moving else []), method="rk4", grid=grid)


def test_times_computed_from_others():
    end = leaf(1.5)
    assert_same(torch.stack([0 * end, end / 3, end]), end, method="dopri5")


def test_times_across_chunks(monkeypatch):
    monkeypatch.setattr(run, "CHUNK_BYTES", 1)  # eight steps a chunk
    for options in ({"method": "dopri5", "dt_max": 0.1}, {"method": "fehlberg5", "n_steps": 21}):
        t = leaf(TIMES["inside"])
        assert_same(t, t, **options)


def test_times_of_float32_states():
    t, y0 = leaf(TIMES["inside"]), torch.randn(3, 2)
    f = Net(dtype=torch.float32)
    assert_equal(*both(f, y0, t, (t,), method="dopri5", n_steps=5), 1e-6)


def test_times_of_a_prefix():
    t, y0 = leaf([0.0, 0.1, 0.2, 2.0]), torch.full((2,), 1.5, dtype=torch.float64)
    eager, compiled = both(lambda t, y: y * y, y0, t, (t,), on_failure="status")
    assert compiled[0].status == "blow-up"
    assert_equal(eager, compiled)


FAILED = {
    "behind outputs": ([0.0, 0.05, 0.3, 2.0], {"max_steps": 9, "rtol": 1e-5, "atol": 1e-5}),
    "backwards": ([1.1, 0.7, 0.1], {"max_steps": 9, "rtol": 1e-5, "atol": 1e-5}),
    "before the first output": ([0.0, 5.0], {"max_steps": 2}),
    "before the first step": (
        [0.0, 0.0, 0.1, 5.0],
        {"max_steps": 1, "dt0": 0.05, "rtol": 1e-8, "atol": 1e-8},
    ),
}


@pytest.mark.parametrize(("case", "timed"), pairs(FAILED, [False, True]))
def test_gradients_of_what_a_failed_solve_has_reached(case, timed):
    """f depends on time, so that an evaluation at the wrong one shows."""
    (times, options), found = FAILED[case], []
    for compiled in (False, "loops"):
        torch.manual_seed(1)
        net = torch.nn.Linear(2, 2).double()
        t = torch.tensor(times, dtype=torch.float64, requires_grad=timed)
        y0 = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
        sol = solve(
            lambda t, y, net=net: torch.tanh(net(y)) * torch.cos(3 * t) - 0.3 * y,
            y0,
            t,
            method="bosh3",
            compile=compiled,
            on_failure="status",
            **options,
        )
        assert sol.failure is not None
        grads = torch.autograd.grad(sol.ys.square().sum(), [y0, *net.parameters()], allow_unused=True)
        grads = [torch.zeros(()) if g is None else g for g in grads]
        found.append([sol.ys, *(g.expand_as(x) for g, x in zip(grads, [y0, *net.parameters()], strict=True))])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other.to(mine.dtype), rtol=1e-12, atol=1e-12, check_dtype=False)
