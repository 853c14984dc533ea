"""Times that f's precision cannot resolve: a warning that names the cure, once, and none where nothing is wrong."""

import math
import re
import warnings

import pytest
import torch
from gradient_cases import ADAPTIVE, SETTINGS, takes
from problems import DOUBLE
from torch import nn
from torch.func import jvp, vmap

from torchaca import METHODS, FixedSteps, solve
from torchaca.loops.clock import coarse

FAR = {"twelve days in seconds": 1e6, "unix seconds": 1.7e9, "before": -1.7e9}
CURE = r"cannot tell the stages of a step apart.*Shift t to start at 0.*or use a float64 state"
STEPS = {
    "adaptive": {},
    "n_steps": {"n_steps": 20},
    "dt": {"dt": 0.5},
    "outputs": {"control": FixedSteps()},
    "grid": {"grid": "t"},
    "jumps": {"jump_ts": "t"},
}


def forced(t, y):
    return torch.cos(t).to(y.dtype) - 0.1 * y


def options_for(steps, t):
    return {name: t[:1] + t[2:-2] + t[-1:] if value == "t" else value for name, value in STEPS[steps].items()}


def times(start, n=6, span=10.0):
    return [start + span * i / (n - 1) for i in range(n)]


def warned(**options):
    """What a solve says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(**options)
    return [str(w.message) for w in caught if "apart" in str(w.message)]


def run(f=forced, y0=None, t=None, backward=False, **options):
    y0 = torch.zeros(2) if y0 is None else y0
    y0 = y0.requires_grad_(backward)
    sol = solve(f, y0, times(1.7e9) if t is None else t, **options)
    if backward:
        sol.ys.float().sum().backward()
    return sol


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("start", FAR)
def test_far_times_of_a_float32_state(start, steps):
    t = times(FAR[start])[:: -1 if start == "before" else 1]
    (words,) = warned(t=t, **options_for(steps, t))
    assert re.search(CURE, words)
    assert "if it depends" not in words
    assert not warned(t=t, y0=torch.zeros(2, dtype=DOUBLE), **options_for(steps, t))
    shifted = [x - t[0] for x in t]
    assert not warned(t=shifted, **options_for(steps, shifted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.complex64])
def test_in_every_precision_below_float64(dtype):
    assert len(warned(y0=torch.zeros(2, dtype=dtype))) == 1
    assert len(warned(y0=torch.zeros(2, dtype=dtype), dense=True)) == 1
    for wide in (DOUBLE, torch.complex128):
        assert not warned(y0=torch.zeros(2, dtype=wide))


@pytest.mark.parametrize("setting", SETTINGS)
def test_once_under_every_gradient(setting):
    options = {"gradient": SETTINGS[setting], "method": takes(setting)[0], "n_steps": 20}
    assert len(warned(backward=True, **options)) == 1
    assert not warned(backward=True, t=times(0.0), **options)


@pytest.mark.parametrize("method", METHODS)
def test_in_every_method(method):
    steps = {"rtol": 1e-2, "atol": 1e-2} if method in ADAPTIVE else {"n_steps": 10}
    assert len(warned(method=method, **steps)) == 1
    assert not warned(method=method, t=times(0.0), **steps)


def test_the_adjoint_s_own_steps():
    """A backward integration with steps so small that the same clock is too coarse for it."""
    t = [16384.0, 16386.0]
    assert not warned(t=t, backward=True, gradient="adjoint", n_steps=4)
    for n, words in ((4, 0), (20, 1)):
        control = SETTINGS["adjoint"].__class__(control=FixedSteps(n_steps=n))
        assert len(warned(t=t, backward=True, gradient=control, n_steps=4)) == words


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_in_transforms():
    starts = torch.zeros(3, 2)
    for function in (
        lambda: vmap(lambda y: solve(forced, y, times(1.7e9)).ys)(starts),
        lambda: vmap(lambda y: solve(forced, y, times(1.7e9), n_steps=10).ys)(starts),
        lambda: jvp(lambda y: solve(forced, y, times(1.7e9)).ys, (starts[0],), (starts[0],)),
    ):
        with pytest.warns(UserWarning, match="if it depends on t, f cannot tell the stages"):
            function()
    vmap(lambda y: solve(forced, y, times(0.0)).ys)(starts)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_first_step_is_one_that_the_time_resolves(method):
    """From a state of zero it is guessed as 1e-6, of which t = 1.7e9 knows no part."""
    for start in (1.7e9, -1.7e9):
        sol = solve(
            lambda t, y: 1 - y, torch.zeros(1, dtype=DOUBLE), [start, start + 10.0], method=method, rtol=1e-3
        )
        assert sol.ys[-1].item() == pytest.approx(1.0, rel=5e-2)
    starts = torch.zeros(2, 1, dtype=DOUBLE)
    if METHODS[method].stages and not hasattr(METHODS[method], "resume"):
        lanes = vmap(
            lambda y: solve(lambda t, y: 1 - y, y, [1.7e9, 1.7e9 + 10.0], method=method, rtol=1e-3).ys
        )(starts)
        torch.testing.assert_close(lanes[:, -1], torch.ones_like(starts), rtol=5e-2, atol=0)


def test_before_an_error():
    with pytest.warns(UserWarning, match="cannot tell the stages"):
        sol = solve(forced, torch.zeros(1), times(1e6), rtol=1e-6, max_steps=30, on_failure="status")
    assert sol.status != "success"


class Scripted(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, t, y):
        return self.f(t, y)


@torch.no_grad()
def own_gradient(t, y):
    with torch.enable_grad():
        z = y.detach().requires_grad_()
        return torch.autograd.grad((0.1 * z * z).sum(), z)[0]


READERS = {
    "arithmetic": forced,
    "number": lambda t, y: -y * math.cos(float(t)),
    "item": lambda t, y: -y * math.cos(t.item()),
    "array": lambda t, y: -y * float(t.numpy()),
    "comparison": lambda t, y: torch.where(t > 1.7e9 + 3, -y, y),
    "table": lambda t, y: -y * torch.arange(9.0)[torch.bucketize(t, torch.arange(9.0)) - 1],
    "appended": lambda t, y: torch.cat([y, t.expand(1)])[:2] * 0.1,
    "attribute": lambda t, y: -y * t.data.cos(),
}
AUTONOMOUS = {
    "decay": lambda t, y: -0.1 * y,
    "network": nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)),
    "its dtype": lambda t, y: -y.to(t.dtype),
    "its own gradient": own_gradient,
}


@pytest.mark.parametrize("reader", READERS)
def test_an_f_that_reads_the_time_in_any_way(reader):
    with torch.no_grad():
        assert len(warned(f=READERS[reader], n_steps=10)) == 1


@pytest.mark.parametrize("f", AUTONOMOUS)
def test_an_autonomous_f_has_nothing_to_hear(f):
    field = AUTONOMOUS[f]
    assert not warned(f=Scripted(lambda t, y: field(y)) if isinstance(field, nn.Module) else field)


def test_asking_f_leaves_no_trace():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, t, y):
            self.n += 1
            return torch.cos(t) - y * torch.rand(())

    left = []
    for quiet in (False, True):
        torch.manual_seed(0)
        f = Moving()
        with pytest.MonkeyPatch.context() as patch:
            if quiet:
                patch.setattr("torchaca.loops.clock.reads_time", lambda f, p: False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sol = solve(f, torch.ones(1), times(1.7e9), n_steps=10)
        left.append((sol.stats.nfe, f.n.item(), torch.rand(1).item()))
    assert left[0] == left[1]


ORDINARY = {
    "thousands of steps": ([0.0, 1.0], {"n_steps": 5000, "method": "euler"}),
    "a long time": ([0.0, 100.0], {"rtol": 1e-5, "atol": 1e-5}),
    "a long time backwards": ([100.0, 0.0], {"rtol": 1e-5, "atol": 1e-5}),
    "a year of hours": ([0.0, 8760.0], {"n_steps": 8760, "method": "euler"}),
    "far, and long": ([1e6, 2e6], {"n_steps": 100}),
}


@pytest.mark.parametrize("case", ORDINARY)
def test_ordinary_float32_solves_have_nothing_to_hear(case):
    t, options = ORDINARY[case]
    with torch.no_grad():
        assert not warned(t=t, **options)


@pytest.mark.parametrize("wrap", [lambda f: f, vmap], ids=["alone", "in lanes"])
def test_a_solve_that_leaves_to_infinity_has_nothing_to_hear(wrap):
    """Most of its steps are as small as rounding, just before the place."""
    starts = torch.tensor([3.0, 3.0])

    def end(y0):
        return solve(lambda t, y: y * y + 0 * t, y0, [0.0, 0.2, 1.0], on_failure="nan").ys[-1]

    assert wrap(end)(starts).isnan().all()


def test_a_few_small_steps_at_a_jump_are_none_of_its_business():
    def f(t, y):
        return torch.where(t < 0.7, 1.0, -30.0).expand(y.shape)

    with torch.no_grad():
        sol = solve(f, torch.zeros(1), [0.0, 1.0], rtol=1e-5, atol=1e-7)
    assert sol.stats.rejected > 3


def test_the_measure():
    assert coarse([0.0, 1.0], torch.float32) is None
    assert coarse([3.0], torch.float32) is None
    found = coarse([2.0**24, 2.0**24 + 2], torch.float32)
    assert (found.t, found.apart, found.size) == (2.0**24 + 2, 2.0, 2.0)
    assert coarse([2.0**24, 2.0**24 + 2], DOUBLE) is None
    assert coarse([2.0**53, 2.0**53 + 2], DOUBLE) is None
    assert coarse([2.0**53 + 2 * i for i in range(300)], DOUBLE) is not None


def test_output_times_are_told_apart():
    with torch.no_grad():
        far, near = (
            solve(lambda t, y: -y, torch.ones(1), times(start), dense=True) for start in (1.7e9, 0.0)
        )
    assert far.ts.dtype == DOUBLE
    assert far.ts.tolist() == times(1.7e9)
    assert near.ts.dtype == torch.float32
    torch.testing.assert_close(far(far.ts), far.ys, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="outside of the solve"):
        far(1.7e9 + 20)
