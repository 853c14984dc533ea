"""What the tests of compiled solves share."""

import warnings

import torch
from torch import nn

import torchaca


class Net(nn.Module):
    """A small MLP that depends on t; `gain` is a buffer, `scale` a plain number."""

    def __init__(self, d=2, hidden=8, dtype=torch.float64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, d)).to(dtype)
        self.register_buffer("gain", torch.tensor(0.7, dtype=dtype))
        self.scale = 1.0

    def forward(self, t, y):
        return self.gain * self.scale * self.net(y) * torch.cos(t) - 0.2 * y


class Conv(nn.Module):
    """A convolution with a parametrization, and batch normalisation in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
        self.norm = nn.BatchNorm2d(3).eval()
        self.norm.running_mean.normal_()

    def forward(self, t, y):
        return torch.relu(self.norm(self.conv(y))) - t * y


def loss_of(ys):
    return sum(leaf.square().sum() for leaf in torch.utils._pytree.tree_leaves(ys))


def both(f, y0, t, wrt=(), how="loops", **options):
    """`(solution, gradients)` of y0 and of the tensors in `wrt`, eager and compiled; `how` is `compile=`.

    Both replay all steps unless `options` say something else: by default, what is compiled may decide otherwise.
    """
    found, options = [], {"gradient": torchaca.ACA(checkpoints="all"), **options}
    for compiled in (False, how):
        start = torch.utils._pytree.tree_map(lambda y: y.detach().clone().requires_grad_(), y0)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "compile=")
            solution = torchaca.solve(f, start, t, compile=compiled, **options)
        inputs = (*torch.utils._pytree.tree_leaves(start), *wrt)
        grads = torch.autograd.grad(loss_of(solution.ys), inputs, allow_unused=True, retain_graph=True)
        found.append((solution, [torch.zeros(()) if g is None else g for g in grads]))
    return found


def assert_equal(eager, compiled, tolerance=1e-12):
    """The same steps, costs, outputs and gradients, to rounding."""
    (a, grads_a), (b, grads_b) = eager, compiled
    assert a.stats == b.stats
    torch.testing.assert_close(torch.tensor(b.steps), torch.tensor(a.steps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(b.ys, a.ys, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grads_b, grads_a, rtol=10 * tolerance, atol=10 * tolerance)
