"""What the tests of events in batches share: problems, and each sample of them solved by itself."""

import torch
from batch.cases import DOUBLE, leaves, weights_of

from torchaca import Event, solve

__all__ = ["DOUBLE", "leaves", "weights_of"]

MU = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=DOUBLE)
STARTS = torch.tensor([[1.0, 0.0], [0.8, 0.5], [0.5, 1.0], [0.9, -0.2]], dtype=DOUBLE)

TIMES = torch.tensor(
    [[0.0, 1.0, 1.0, 5.0], [2.0, 0.3, -2.5, -2.5], [0.5, 0.5, 4.0, torch.nan], [3.0, 2.9, -1.0, torch.nan]],
    dtype=DOUBLE,
)
"""Of four samples, in both directions, with duplicates and padding."""


def swings(t, y, mu):
    """An oscillator that depends on time; every derivative is something else."""
    x, v = y[..., 0], y[..., 1]
    return torch.stack([v, -(1 + mu) * x + 0.2 * torch.cos(t.reshape(mu.shape) + v)], -1)


def at(t, y):
    """The time as a number of each sample, where y has one more dimension."""
    return t.reshape(y.shape[:-1])


def events(level=0.0, terminal=False):
    """A jump, one that is noted, and the one that may end the solve; they depend on all that they can depend on."""
    kick = Event(
        lambda t, y, mu: y[..., 0] - 0.3 - level - 0.01 * mu + 0.02 * at(t, y),
        direction=-1,
        apply=lambda t, y, mu: (
            y * (1 - 0.1 * mu[..., None]) - 0.03 * (1.5 + torch.sin(at(t, y)[..., None] + level))
        ),
    )
    turn = Event(lambda t, y, mu: y[..., 1])
    end = Event(lambda t, y, mu: y[..., 0] + 0.6 + level, terminal=True, direction=-1)
    return [kick, turn, end] if terminal else [kick, turn]


def loss_of(ys, mask, found, weights):
    """Of all outputs, and all times and states of events of one sample."""
    loss = (weights[: len(ys)] * ys**2)[mask].sum()
    for i, (t, y) in enumerate(found):
        loss = loss + (1 + i) * (torch.sin(t).sum() + (y**2).sum() * 0.3)
    return loss


def in_batch(f, y0, t, mu, how, level, **options):
    """The solution, and the gradients of a loss of all of it with respect to y0, t, mu and the level."""
    y0, t, mu, level = leaves(y0, t, mu, level)
    sol = solve(f, y0, t, batch=1, rows=(mu,), events=how(level), **options)
    weights, loss = weights_of(sol.ys.shape), 0.0
    for i in range(len(y0)):
        found = [(e.t[: e.count[i], i], e.y[: e.count[i], i]) for e in sol.events]
        loss = loss + loss_of(sol.ys[:, i], sol.mask[:, i], found, weights[:, i])
    return sol, torch.autograd.grad(loss, [y0, t, mu, level], allow_unused=True)


def alone(f, y0, t, mu, how, level, **options):
    """The same of solves of each sample."""
    y0, t, mu, level = leaves(y0, t, mu, level)
    weights, loss, owns = weights_of((t.shape[-1], *y0.shape)), 0.0, []
    for i in range(len(y0)):
        times = t if t.ndim == 1 else t[i][~t[i].isnan()]
        own = solve(f, y0[i], times, args=(mu[i],), events=how(level), **options)
        mask = torch.ones(len(own.ts), dtype=torch.bool)
        if own.status == "event":
            mask[-1] = own.ts[-1] == times[len(mask) - 1]
        found = [(e.t, e.y) for e in own.events]
        loss = loss + loss_of(own.ys, mask, found, weights[:, i])
        owns.append(own)
    return owns, torch.autograd.grad(loss, [y0, t, mu, level], allow_unused=True)


def compared(f, y0, t, rows, events, near=1e-11, **options):
    """The solution of a batch, which has to be the solves of its samples."""
    sol = solve(f, y0, t, batch=1, rows=rows, events=events, **options)
    owns = []
    for i in range(len(y0)):
        times = t[i] if isinstance(t, torch.Tensor) and t.ndim == 2 else t
        if isinstance(times, torch.Tensor):
            times = times[~times.isnan()]
        owns.append(solve(f, y0[i], times, args=tuple(x[i] for x in rows), events=events, **options))
    same_solutions(sol, owns, near)
    return sol


def same_solutions(sol, owns, near=1e-12):
    """Whether a batch is the solves of its samples."""
    for i, own in enumerate(owns):
        mask = sol.mask[:, i]
        n = int(mask.sum())
        torch.testing.assert_close(sol.ys[:n, i], own.ys[:n], rtol=near, atol=near)
        torch.testing.assert_close(sol.ys[-1, i], own.ys[-1], rtol=near, atol=near)
        assert sol.status[i] == own.status
        for event, alone in zip(sol.events, own.events, strict=True):
            k = int(event.count[i])
            assert k == len(alone.t)
            torch.testing.assert_close(event.t[:k, i], alone.t, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(event.y[:k, i], alone.y, rtol=near, atol=near)
            assert event.t[k:, i].isnan().all()
            assert event.y[k:, i].isfinite().all()
        steps = sol.stats.samples.accepted[i], sol.stats.samples.rejected[i]
        assert steps == (own.stats.accepted, own.stats.rejected)
