"""Derivatives with respect to everything that an event, its jump and f may depend on, by differences."""

import pytest
import torch
from gradients.settings import EVERY, options_for
from torch import nn

from torchaca import Event, solve
from torchaca.native.door import takes

DOUBLE = torch.float64
FINE = {"rtol": 1e-8, "atol": 1e-10}
MODES = [
    (name, mode)
    for name, gradient in EVERY.items()
    for mode in (False, "native")
    if "method" not in options_for(gradient) and (mode is False or takes(gradient))
]


class Depends:
    """Leaves that f, g and apply hold, modules, tensors computed before the solve, an argument, y0 and times."""

    def __init__(self):
        self.raw = torch.tensor([0.5, 1.2], dtype=DOUBLE)
        self.y0, self.t0 = torch.tensor([1.0, 0.1], dtype=DOUBLE), torch.tensor(0.1, dtype=DOUBLE)
        self.arg = torch.tensor(0.7, dtype=DOUBLE)
        self.g, self.kick = nn.Linear(2, 1, dtype=DOUBLE), nn.Linear(2, 2, dtype=DOUBLE)
        with torch.no_grad():
            self.g.weight.copy_(torch.tensor([[1.0, 0.2]]))
            self.g.bias.fill_(-0.3)
            self.kick.weight.copy_(torch.tensor([[1.0, 0.0], [0.1, -0.8]]))
            self.kick.bias.zero_()
        own = [self.raw, self.y0, self.t0, self.arg]
        self.tensors = [*(x.requires_grad_() for x in own), *self.g.parameters(), *self.kick.parameters()]

    def loss(self, terminal, gradient="direct", mode=False):
        """Of outputs before and behind the events, of their times and states, and of the last time."""
        early, stiffness = self.raw.exp()[0] * 0.9, self.raw[1] * 1.1

        def f(t, y, arg):
            return torch.stack([y[1], -stiffness * y[0] - 0.1 * arg * y[1] + 0.1 * torch.sin(t)])

        def apply(t, y, arg):
            return self.kick(y) * (1 + 0.1 * early) + 0.01 * t * arg

        how = None if terminal else apply
        event = Event(lambda t, y, arg: self.g(y)[0] - 0.05 * early * torch.cos(t) * arg, terminal, -1, how)
        ts = torch.stack([self.t0, self.t0 + 0.4, self.t0 * 0 + 2.0, self.t0 * 0 + 4.5])
        sol = solve(f, self.y0, ts, args=(self.arg,), events=event, gradient=gradient, compile=mode, **FINE)
        weights = torch.linspace(0.5, 1.5, sol.ys.numel(), dtype=DOUBLE).reshape(sol.ys.shape)
        happened = sol.events[0]
        assert len(happened.t) > 0
        return (sol.ys * weights).sum() + happened.t.sin().sum() + happened.y[:, 1].sum() + 0.1 * sol.ts[-1]


@pytest.fixture(scope="module", params=[False, True], ids=["jump", "terminal"])
def right(request):
    """What differences say."""
    given, grads, off = Depends(), [], 1e-5
    for x in given.tensors:
        grads.append(torch.zeros_like(x))
        for i in range(x.numel()):
            with torch.no_grad():
                for sign in (1, -1):
                    before = x.detach().clone()
                    x.view(-1)[i] += sign * off
                    grads[-1].view(-1)[i] += sign * given.loss(request.param) / (2 * off)
                    x.copy_(before)
    return request.param, grads


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_every_gradient(right, name, mode):
    terminal, wanted = right
    given = Depends()
    found = torch.autograd.grad(
        given.loss(terminal, EVERY[name], mode), given.tensors, allow_unused=True, materialize_grads=True
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=1e-5)
