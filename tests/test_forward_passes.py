"""One forward pass for all gradients: values, counts, buffers and random state do not depend on `gradient=`."""

import pytest
import torch
from gradient_cases import ADAPTIVE, CONTINUOUS, REVERSING, SETTINGS, THROUGH_SEARCH
from problems import DOUBLE
from torch import nn

from torchaca import GRADIENTS, METHODS, solve

TIMES = {
    "on steps": [0.0, 0.5, 1.0],
    "between": [0.0, 0.3, 0.5, 0.85, 1.0],
    "repeated": [0.0, 0.0, 0.5, 0.5, 1.0, 1.0],
    "backwards": [1.0, 0.5, 0.0],
}


class Stateful(nn.Module):
    """Reads and moves a buffer, and draws random numbers if it is told to."""

    def __init__(self, noise=False):
        super().__init__()
        self.register_buffer("decay", torch.tensor(0.6, dtype=DOUBLE))
        self.w = nn.Parameter(torch.tensor(0.9, dtype=DOUBLE))
        self.noise, self.calls = noise, 0

    def forward(self, t, y):
        self.calls += 1
        self.decay.mul_(0.9).add_(0.05)
        noise = 0.1 * torch.rand(y.shape, dtype=y.dtype) if self.noise else 0.0
        return -self.decay * self.w * y + noise + 0.1 * t


class Statistics(nn.Module):
    """Moves what it does not read, as batch normalisation in training mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, dtype=DOUBLE)
        self.w = nn.Parameter(torch.tensor(0.9, dtype=DOUBLE))
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return -self.w * self.norm(y + t)


FIELDS = {"buffer": Stateful, "noise": lambda: Stateful(noise=True), "statistics": Statistics}


def ran(field, times, timed, seed=3, **options):
    """All that a forward pass leaves: outputs, steps, costs, calls, buffers, and the next random number."""
    torch.manual_seed(seed)
    f, t = FIELDS[field](), torch.tensor(TIMES[times], dtype=DOUBLE, requires_grad=timed)
    y0 = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, t, **options)
    counts = (sol.stats.nfe, f.calls, sol.stats.accepted, sol.stats.rejected)
    left = torch.cat([torch.rand(1, dtype=DOUBLE), *(b.double().reshape(-1) for b in f.buffers())])
    return sol.ys.detach(), counts, left, sol


def assert_same_pass(got, want, **close):
    assert got[1] == want[1]
    torch.testing.assert_close(got[0], want[0], **{"rtol": 0, "atol": 0, **close})
    torch.testing.assert_close(got[2], want[2], **{"rtol": 0, "atol": 0, **close})


def possible(setting, field):
    """Whether a gradient takes such an f at all."""
    return not (setting in REVERSING or (field == "noise" and setting.split("-")[0] in CONTINUOUS))


@pytest.mark.parametrize("timed", [False, True], ids=["times", "moving times"])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("setting", [s for s in SETTINGS if s != "direct"])
def test_fixed_steps(setting, field, timed):
    if not possible(setting, field):
        pytest.skip("refused: reversing, or integrating backwards, would draw anew")
    for times in TIMES:
        for options in ({"dt": 0.25, "method": "rk4"}, {"n_steps": 3, "method": "dopri5", "dense": True}):
            right = ran(field, times, timed, **options)
            assert_same_pass(ran(field, times, timed, gradient=SETTINGS[setting], **options), right)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    gradients = [name for name in GRADIENTS if name not in REVERSING | {"direct"}]
    for steps in [{"dt": 0.25}, *([{"rtol": 1e-2, "atol": 1e-3}] if method in ADAPTIVE else [])]:
        for times in ("between", "repeated"):
            right = ran("buffer", times, True, method=method, gradient="direct", **steps)
            for name in gradients:
                # Through the search, sizes are tensors: the same up to the rounding of a power.
                close = {"rtol": 1e-9, "atol": 1e-9} if name in THROUGH_SEARCH and "rtol" in steps else {}
                found = ran("buffer", times, True, method=method, gradient=name, **steps)
                assert_same_pass(found, right, **close)


@pytest.mark.parametrize("gradient", [name for name in GRADIENTS if name not in REVERSING])
def test_outputs_do_not_move_what_a_stateful_f_reads(gradient):
    for method in METHODS:
        few = ran("buffer", "on steps", True, method=method, dt=0.25, gradient=gradient)
        many = ran("buffer", "between", True, method=method, dt=0.25, gradient=gradient, dense=True)
        torch.testing.assert_close(many[0][-1], few[0][-1], rtol=0, atol=0)
        torch.testing.assert_close(many[2], few[2], rtol=0, atol=0)


REPLAYED = [
    s for s in SETTINGS if s.split("-")[0] == "aca" and s != "aca-stagewise"
]  # its stages: test_aca.py


@pytest.mark.parametrize("setting", REPLAYED)
def test_gradients_of_times_of_a_stateful_f(setting):
    options = {"dt": 0.25, "method": "rk4"}
    for make in FIELDS.values():
        found = []
        for gradient in ("direct", SETTINGS[setting]):
            torch.manual_seed(3)
            f, t = make(), torch.tensor(TIMES["repeated"], dtype=DOUBLE, requires_grad=True)
            y0 = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=DOUBLE, requires_grad=True)
            ys = solve(f, y0, t, gradient=gradient, **options).ys
            found.append(
                torch.autograd.grad((ys * torch.linspace(1, 2, ys.numel()).view_as(ys)).sum(), [y0, t, f.w])
            )
        torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
