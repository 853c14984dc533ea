"""`with_integral`: integrals along a solution as a part of the state."""

import math

import pytest
import torch
from gradient_cases import DOUBLE, assert_same, gradients_of
from gradients.settings import EVERY, options_for
from torch import nn

import torchaca as aca
from torchaca import solve, with_integral

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def test_the_integral_of_a_known_function():
    g = with_integral(lambda t, y: -y, lambda t, y: y.square().sum() + t)
    sol = solve(g, g.start(torch.tensor([1.0, 2.0], dtype=DOUBLE)), [0.0, 0.5, 1.0], **TIGHT)
    y, integral = sol.ys
    assert (y.shape, integral.shape) == ((3, 2), (3,))
    want = [5 * (1 - math.exp(-2 * t)) / 2 + t**2 / 2 for t in (0.0, 0.5, 1.0)]
    assert integral.tolist() == pytest.approx(want, rel=1e-9)


def test_a_loss_of_the_slope_and_one_a_sample():
    g = with_integral(lambda t, y: -y, lambda t, y, dy: dy.square().sum(1))
    y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=DOUBLE)
    _, integral = solve(g, g.start(y0), [0.0, 1.0], **TIGHT).ys
    assert integral.shape == (2, 3)
    torch.testing.assert_close(integral[-1], y0[:, 0] ** 2 * (1 - math.exp(-2)) / 2, rtol=1e-9, atol=0)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2).double()

    def forward(self, t, y, k):
        return k * torch.tanh(self.linear(y))


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))

    def forward(self, t, y):
        return self.weight * y.square().sum()


@pytest.mark.parametrize("gradient", EVERY)
def test_gradients_of_everything_in_it(gradient):
    torch.manual_seed(0)
    f, loss = Field(), Loss()
    g = with_integral(f, loss)
    inputs = {
        "y0": torch.tensor([1.0, -0.5], dtype=DOUBLE, requires_grad=True),
        "k": torch.tensor(0.8, dtype=DOUBLE, requires_grad=True),
        **dict(g.named_parameters()),
    }
    assert len(inputs) == 5

    def value(gradient, rtol=1e-9, atol=1e-11, **options):
        start = g.start(inputs["y0"], args=(inputs["k"],))
        sol = solve(
            g, start, [0.0, 1.0], args=(inputs["k"],), gradient=gradient, rtol=rtol, atol=atol, **options
        )
        return sol.ys[1][-1]

    options = options_for(EVERY[gradient])
    settings = options.pop("gradient")
    loose = {"rtol": 1e-5, "atol": 1e-6} if options else {}
    got = gradients_of(value(settings, **options, **loose), inputs)
    want = gradients_of(value("direct"), inputs)
    assert_same(got, want, 1e-3 if options else 1e-6)


def test_nested_states_times_and_blocks():
    g = with_integral(lambda t, y: {"a": -y["a"], "b": y["a"].sum() * t}, lambda t, y: 1 / t + 0 * y["b"])
    y0 = {"a": torch.ones(2, dtype=DOUBLE), "b": torch.zeros((), dtype=DOUBLE)}
    block = aca.NeuralODE(g, t=(1.0, math.e), **TIGHT)
    y, integral = block(g.start(y0, t0=1.0))
    assert integral.item() == pytest.approx(1.0, rel=1e-9)
    assert y["a"].shape == (2,)


def test_rejected_trials_leave_nothing_in_it():
    """The sum of a penalty inside f counts stages, rejected ones as well; the integral is one."""
    seen = []

    def f(t, y):
        seen.append(y.square().sum())
        return -20 * (y - torch.cos(t))

    g = with_integral(f, lambda t, y: y.square().sum())
    y0 = torch.zeros(1, dtype=DOUBLE)
    sol = solve(g, g.start(y0), [0.0, 2.0], dt0=1.0)
    assert sol.stats.rejected > 0
    fine = solve(g, g.start(y0), [0.0, 2.0], rtol=1e-6, atol=1e-6)
    assert sol.ys[1][-1].item() == pytest.approx(fine.ys[1][-1].item(), rel=1e-2)


def test_refusals():
    with pytest.raises(TypeError, match="loss must be a function or a module, got 3"):
        with_integral(lambda t, y: -y, 3)
    with pytest.raises(TypeError, match=r"loss\(t, y\) returns a real tensor"):
        with_integral(lambda t, y: -y, lambda t, y: 1.0).start(torch.ones(2))
