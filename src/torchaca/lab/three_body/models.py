"""The learned models: an acceleration (NODE) and a predictor of the next positions (LSTM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .problem import DTYPE, K2, PAIRS

AUGMENTED = 45
State = tuple[Tensor, Tensor]


def augmented(positions: Tensor) -> Tensor:
    """The positions r, and d, d/|d|, d/|d|^2, d/|d|^3 of the three pairs' differences d.

    Parameters
    ----------
    positions : Tensor
        `(..., 3, 3)`: body, coordinate.

    Returns
    -------
    Tensor
        `(..., 45)`
    """
    d = DIFFERENCES @ positions
    distance = d.square().sum(-1, keepdim=True).sqrt()
    unit = d / distance
    by_square = unit / distance
    return torch.cat((positions, d, unit, by_square, by_square / distance), -2).flatten(-2)


def _differences() -> Tensor:
    matrix = torch.zeros(3, 3, dtype=DTYPE)
    for pair, (i, j) in enumerate(PAIRS):
        matrix[pair, i], matrix[pair, j] = -1.0, 1.0
    return matrix


DIFFERENCES = _differences()
"""`(3, 3)`: from positions to r_j - r_i of every pair."""


class NeuralMotion(nn.Module):
    """r' = K2 v, v' = FC(aug(r)): one fully connected layer from the 45 inputs to the 9 accelerations.

    The layer starts with normal weights of standard deviation `spread` and no bias: almost no force.
    """

    def __init__(self, seed: int, spread: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(AUGMENTED, 9, dtype=DTYPE)
        nn.init.normal_(self.layer.weight, std=spread, generator=generator)
        nn.init.zeros_(self.layer.bias)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """`(..., 6, 3)`, as `y`: positions, then velocities."""
        positions, velocities = y[..., :3, :], y[..., 3:, :]
        acceleration = self.layer(augmented(positions)).unflatten(-1, (3, 3))
        return torch.cat((K2 * velocities, acceleration), -2)


class NextPosition(nn.Module):
    """An LSTM that reads positions at equal time steps and predicts those of the next step.

    Inputs and predicted increments are standardised by their mean and deviation over `known`.

    Parameters
    ----------
    known : Tensor
        `(steps, sequences, 3, 3)`, the positions that it will be trained on.
    augment : bool
        Whether it reads the 45 augmented inputs or the 9 positions.
    """

    def __init__(self, known: Tensor, augment: bool, hidden: int, seed: int) -> None:
        super().__init__()
        self.augment = augment
        self.inputs = _moments(self._inputs(known))
        self.increments = _moments(known.diff(dim=0).flatten(-2))
        width = self.inputs[0].numel()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.cell = nn.LSTM(width, hidden, dtype=DTYPE)
            self.head = nn.Linear(hidden, 9, dtype=DTYPE)

    def _inputs(self, positions: Tensor) -> Tensor:
        return augmented(positions) if self.augment else positions.flatten(-2)

    def forward(self, positions: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next positions after each of `positions`, `(steps, sequences, 3, 3)`, and the state for more."""
        mean, deviation = self.inputs
        hidden, after = self.cell((self._inputs(positions) - mean) / deviation, state)
        mean, deviation = self.increments
        increment = self.head(hidden) * deviation + mean
        return positions + increment.unflatten(-1, (3, 3)), after

    @torch.no_grad()
    def predict(self, known: Tensor, steps: int) -> Tensor:
        """What it makes of known positions, and `steps` more on its own.

        Returns
        -------
        Tensor
            `(len(known) + steps, sequences, 3, 3)`: the first known positions; then predictions, each one step ahead of
            the known positions as far as these reach, and each from the prediction before it after that.
        """
        ahead, state = self(known)
        found = [ahead[-1:]]
        while len(found) < steps:
            following, state = self(found[-1], state)
            found.append(following)
        return torch.cat((known[:1], ahead[:-1], *found))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over steps and sequences."""
    return values.mean((0, 1)), values.std((0, 1))
