"""Native solves beside the eager loop: the same decisions, outputs, gradients and costs."""

import pytest
import torch
from covering import pairs
from torch import nn

from torchaca import ACA, METHODS, solve
from torchaca.control import PI_CONTROL, PID_CONTROL, Adaptive
from torchaca.native.tables import has_table

DOUBLE = torch.float64
NATIVE = [name for name, method in METHODS.items() if has_table(method)]
ADAPTIVE = [name for name in NATIVE if METHODS[name].adaptive]


class Net(nn.Module):
    """Depends on t, a buffer and two layers."""

    def __init__(self, dtype=DOUBLE):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        self.register_buffer("gain", torch.tensor(0.7, dtype=dtype))

    def forward(self, t, y):
        return self.gain * self.net(y) * torch.cos(t) - 0.2 * y


F = {dtype: Net(dtype) for dtype in (torch.float32, DOUBLE)}
TIMES = {
    "ends": [0.0, 1.5],
    "outputs": [0.0, 0.0, 0.3, 0.31, 1.0, 1.5, 1.5],
    "backwards": [1.5, 1.0, 0.2, 0.0],
}


def solved(mode, times, dtype=DOUBLE, f=None, y0=None, wrt=None, **options):
    f = f or F[dtype]
    y0 = torch.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2) if y0 is None else y0
    y = torch.utils._pytree.tree_map(lambda x: x.detach().clone().requires_grad_(), y0)
    sol = solve(f, y, times, compile=mode, **options)
    leaves = [*torch.utils._pytree.tree_leaves(y), *(f.parameters() if wrt is None else wrt)]
    loss = sum(x.square().sum() for x in torch.utils._pytree.tree_leaves(sol.ys))
    return sol, torch.autograd.grad(loss, leaves, allow_unused=True)


def assert_same(times, tolerance=1e-12, **options):
    (want, grads), (sol, own) = (solved(mode, times, **options) for mode in (False, "native"))
    near = 1e-6 if want.ys.dtype == DOUBLE else 1e-3
    torch.testing.assert_close(
        *(torch.tensor(x.steps, dtype=DOUBLE) for x in (sol, want)), rtol=near, atol=near
    )
    torch.testing.assert_close(sol.ys, want.ys, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(own, grads, rtol=10 * tolerance, atol=10 * tolerance)
    assert vars(sol.stats) == vars(want.stats)


@pytest.fixture(autouse=True)
def no_fallback(recwarn):
    yield
    assert [str(w.message) for w in recwarn if "compile=" in str(w.message)] == []


@pytest.mark.parametrize(("method", "times"), pairs(ADAPTIVE, TIMES))
def test_adaptive_steps(method, times):
    tolerance = 10.0 ** -min(METHODS[method].order, 5)  # an error far above rounding
    for gradient in (ACA(checkpoints="all"), "direct"):
        assert_same(TIMES[times], method=method, gradient=gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("method", "times"), pairs(NATIVE, TIMES))
def test_fixed_steps(method, times):
    for gradient in (ACA(checkpoints="all"), "direct"):
        assert_same(TIMES[times], method=method, gradient=gradient, n_steps=7)


@pytest.mark.parametrize("control", [PI_CONTROL, PID_CONTROL], ids=["PI", "PID"])
def test_controllers(control):
    assert_same(TIMES["outputs"], control=Adaptive(rtol=1e-7, atol=1e-7, pid=control))


@pytest.mark.parametrize("options", [{"norm": "max"}, {"rtol": torch.tensor([1e-4, 1e-6])}, {"dt_max": 0.05}])
def test_measures_of_the_error(options):
    assert_same(TIMES["ends"], **options)


def test_single_precision():
    assert_same(TIMES["outputs"], tolerance=1e-5, dtype=torch.float32, rtol=1e-4, atol=1e-4)
