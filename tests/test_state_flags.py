"""f that sets `requires_grad` on what it is given, to differentiate inside: Hamiltonian and energy fields."""

import functools

import pytest
import torch
from gradient_cases import DOUBLE
from torch import nn

import torchaca as aca
from torchaca import GRADIENTS, solve

T = [0.0, 0.1, 0.2]
SETTINGS = {name: make() for name, make in GRADIENTS.items()} | {
    "stagewise": aca.ACA(stagewise=True),
    "kept": aca.ACA(checkpoints="none"),
}


class Energy(nn.Module):
    """dy/dt = -dE/dy for E(t, y) = a (1 + t) |y|^4 / 4, whose gradient is known."""

    def __init__(self, how, nested=False):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))
        self.how, self.nested = how, nested

    def slope(self, t, y):
        def energy(t, y):
            return self.rate * (1 + t) * y.square().sum(-1).square().sum() / 4

        if self.how == "formula":
            return -self.rate * (1 + t) * y.square().sum(-1, keepdim=True) * y
        if self.how == "outside":
            y.requires_grad = True
        with torch.set_grad_enabled(True):
            if self.how == "inside":
                y.requires_grad = True
            elif self.how == "time too":
                t.requires_grad = True
                y.requires_grad = True
            (grad,) = torch.autograd.grad(energy(t, y), y, create_graph=True)
        return -grad

    def forward(self, t, y):
        return {"x": (self.slope(t, y["x"][0]),), "z": -y["z"]} if self.nested else self.slope(t, y)


@functools.cache
def solved(how, nested, setting, grad):
    f = Energy(how, nested)
    y0 = torch.tensor([[1.0, -0.5], [0.2, 0.8]], dtype=DOUBLE, requires_grad=grad)
    state = {"x": (y0,), "z": torch.ones(3, dtype=DOUBLE)} if nested else y0
    method = "alf" if setting == "mali" else "dopri5"
    with torch.set_grad_enabled(grad):
        ys = solve(f, state, T, gradient=SETTINGS[setting], method=method, rtol=1e-2).ys
    ys = ys["x"][0] if nested else ys
    if not grad:
        assert not ys.requires_grad
        return (ys,)
    return (ys, *torch.autograd.grad(ys[1:].pow(3).sum(), (y0, f.rate)))


@pytest.mark.parametrize("how", ["outside", "inside", "time too"])
@pytest.mark.parametrize("nested", [False, True], ids=["tensor", "nested"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_f_may_set_the_flag_of_its_state(how, nested, setting):
    for grad in (False, True):
        for mine, other in zip(solved(how, nested, setting, grad), solved("formula", nested, setting, grad)):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("setting", SETTINGS)
def test_times_that_require_gradients(setting):
    """t is no leaf then, and f may set its flag as well."""
    grads = []
    for how in ("time too", "formula"):
        t = torch.tensor(T, dtype=DOUBLE, requires_grad=True)
        method = "alf" if setting == "mali" else "dopri5"
        y0 = torch.ones(1, 2, dtype=DOUBLE)
        sol = solve(Energy(how), y0, t, gradient=SETTINGS[setting], method=method, rtol=1e-2)
        grads.append(torch.autograd.grad(sol.ys[-1].sum(), t)[0])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)
