"""What the tests of batches share: problems whose samples differ, and each of them solved by itself."""

import math

import torch
from gradients.settings import EVERY

import torchaca as aca
from torchaca import solve
from torchaca.gradients import Facts

DOUBLE = torch.float64
MU = torch.tensor([0.5, 1.0, 2.0, 5.0], dtype=DOUBLE)
Y0 = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.5, 0.0], [2.0, -1.0]], dtype=DOUBLE)
OWN_TIMES = [[0.0, 0.7, 0.7, 2.0], [1.0, 0.5], [0.5], [3.0, 3.0, 4.5]]
PADDED = torch.nn.utils.rnn.pad_sequence(
    [torch.tensor(times, dtype=DOUBLE) for times in OWN_TIMES], batch_first=True, padding_value=math.nan
)
FIXED = {"n_steps": {"n_steps": 5}, "dt": {"dt": 0.3}, "from output to output": {"control": aca.FixedSteps()}}
SETTINGS = {name: made for name, made in EVERY.items() if Facts.of(made).exact} | {
    "substeps": aca.ACA(substeps=3)
}
"""Gradients that differentiate the accepted steps, which are all that samples with steps of their own can have."""


def van_der_pol(t, y, mu):
    x, v = y[..., 0], y[..., 1]
    return torch.stack([v, mu * (1 - x * x) * v - x], -1)


def forced(t, y, mu):
    """Its first derivatives by time, state and argument are all something else."""
    column = mu.reshape(*mu.shape, 1)
    return torch.sin(column * t + y) - 0.3 * y.flip(-1)


def leaves(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def weights_of(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=DOUBLE) + 0.5


def gradients_in_batch(f, y0, t, mu, **options):
    """Of a loss of all outputs, with respect to y0, t and mu."""
    y0, t, mu = leaves(y0, t, mu)
    sol = solve(f, y0, t, batch=1, rows=(mu,), **options)
    loss = (weights_of(sol.ys.shape) * sol.ys**2)[sol.mask].sum()
    return sol, torch.autograd.grad(loss, [y0, t, mu])


def gradients_alone(f, y0, t, mu, **options):
    """The same from a loop of solves, each of one sample."""
    y0, t, mu = leaves(y0, t, mu)
    n = t.shape[-1]
    weights, loss, solutions = weights_of((n, *y0.shape)), 0.0, []
    for i in range(len(y0)):
        times = t if t.ndim == 1 else t[i][~t[i].isnan()]
        if len(times) == 1:
            loss = loss + (weights[0, i] * y0[i] ** 2).sum()
            solutions.append(None)
            continue
        own = solve(f, y0[i], times, args=(mu[i],), **options)
        loss = loss + (weights[: len(times), i] * own.ys**2).sum()
        solutions.append(own)
    return solutions, torch.autograd.grad(loss, [y0, t, mu])
