"""The models that are compared: the latent ODE, and recurrent networks of the same size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchaca.core import Stats
from torchaca.nn import LatentLoss, LatentODE

CELLS = {"rnn": nn.RNN, "rnn-gru": nn.GRU}
"""Name of a baseline -> its cell: tanh, or gated."""


class Recurrent(nn.Module):
    """Predicts each point from the seen ones before it, the time since the last of them, and the mask.

    Parameters
    ----------
    name : str
        One of `CELLS`.
    features : int
        Dimensions of a point.
    size : int
        The number of parameters that the network has at most.
    std : float
        Standard deviation of the observations, as for the latent ODE.
    """

    def __init__(self, name: str, features: int, size: int, std: float) -> None:
        super().__init__()
        width = 1
        while _parameters(name, features, width + 1) <= size:
            width += 1
        self.std = std
        self.stats = Stats()
        self.cell = CELLS[name](2 * features + 1, width, batch_first=True)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = nn.Linear(width, features)

    def forward(
        self, values: Tensor, times: Tensor, mask: Tensor, at: Tensor | None = None, samples: int = 1
    ) -> Tensor:
        """`(samples, B, T, D)`: the prediction, as often as samples are asked for."""
        seen = mask.any(-1)
        gap = _since_last(times, seen)
        inputs = torch.cat((values * mask, mask.to(values.dtype), gap[..., None]), -1)
        state = self.first.expand(-1, len(values), -1).contiguous()
        hidden, _ = self.cell(inputs[:, :-1], state)
        predicted = self.decoder(torch.cat((state.transpose(0, 1), hidden), 1))
        return predicted[None].expand(samples, -1, -1, -1)

    def loss(
        self,
        values: Tensor,
        times: Tensor,
        mask: Tensor,
        *,
        targets: Tensor,
        samples: int = 1,
        kl_weight: float = 0.0,
    ) -> LatentLoss:
        """The squared error in units of the variance; there is nothing to draw, and no divergence."""
        error = (self(values, times, mask)[0] - targets).square().mean()
        log_likelihood = -0.5 * error / self.std**2
        return LatentLoss(-log_likelihood, error.detach(), log_likelihood.detach(), torch.zeros(()))


def latent_parameters(model: LatentODE) -> int:
    """The number of parameters, which the baselines then have as well."""
    return sum(parameter.numel() for parameter in model.parameters())


def _parameters(name: str, features: int, width: int) -> int:
    gates = {"rnn": 1, "rnn-gru": 3}[name]
    cell = gates * width * (2 * features + 1 + width + 2)
    return cell + width + features * (width + 1)


def _since_last(times: Tensor, seen: Tensor) -> Tensor:
    """`(B, T)`: the time since the last seen point before each point, since the start where there is none."""
    last = torch.where(seen, times, times[0]).cummax(1).values
    before = torch.cat((times[:1].expand(len(seen), 1), last[:, :-1]), 1)
    return times - before
