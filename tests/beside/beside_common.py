"""Right-hand sides that several libraries solve."""

import torch

EXACT_AT_REST = 0.1346463718603752
"""dx(20)/da at a = 0 of x'' = -x - 0.1 x' + a cos(3 t), x(0) = x'(0) = 0: diffrax's at a = 1e-3, not at rest."""


def oscillator(t, y, a):
    """An oscillator that rests as long as nothing drives it."""
    x, v = y[..., 0], y[..., 1]
    return torch.stack([v, -x - 0.1 * v + a * torch.cos(3 * t)], -1)


class Sine(torch.nn.Module):
    """A field of which some steps are rejected; counts its calls, and those that a backward pass goes through."""

    def __init__(self):
        super().__init__()
        self.called = self.pulled = 0

    def forward(self, t, y):
        self.called += 1
        out = 5 * torch.sin(20 * (y + torch.cos(10 * t).reshape(-1, 1)))
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, _):
        self.pulled += 1


class FieldOfNet(torch.nn.Module):
    """A smooth field of one number for each sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    def forward(self, t, y):
        return self.net(y)
