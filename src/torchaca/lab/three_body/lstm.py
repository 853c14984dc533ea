"""Training the LSTMs, and the search for their size, learning rate and time step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .models import NextPosition
from .problem import Data, distances, test_errors
from .settings import Settings

SEARCH_SEED = 0


@dataclass(frozen=True)
class Choice:
    """How an LSTM is made and trained."""

    step: float
    hidden: int
    lr: float
    epochs: int

    @property
    def name(self) -> str:
        """The part of it that is searched by a grid."""
        return f"step {self.step:g} units {self.hidden} lr {self.lr:g}"


def choices(settings: Settings) -> list[Choice]:
    """The grid of the search."""
    grid = product(settings.lstm_steps, settings.lstm_hidden, settings.lstm_lr)
    return [Choice(step, hidden, lr, settings.lstm_epochs) for step, hidden, lr in grid]


class SequenceFit:
    """An LSTM, fitted by Adam to predict one step ahead; the weights of the last epoch count.

    The training motion is read as `stride` sequences of equal time steps, each beginning one point later. The loss is
    the mean squared error of the standardised increments.
    """

    def __init__(self, known: Tensor, data: Data, augment: bool, choice: Choice, seed: int) -> None:
        self.data, self.epochs = data, choice.epochs
        self.stride = max(round(choice.step * len(data.train)), 1)
        steps = len(known) // self.stride
        self.known = known[: steps * self.stride].unflatten(0, (steps, self.stride))
        self.model = NextPosition(self.known, augment, choice.hidden, seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=choice.lr)

    def epoch(self, number: int) -> dict[str, Any]:
        """One step of Adam on all sequences."""
        predicted, _ = self.model(self.known[:-1])
        _, deviation = self.model.increments
        loss = ((predicted - self.known[1:]).flatten(-2) / deviation).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def ahead(self, truth: Tensor) -> float:
        """The error on its own: predictions after the known motion, beside the true `(points, 3, 3)` that follow."""
        truth = truth[:: self.stride]
        predicted = self.model.predict(self.known[:, :1], len(truth))[-len(truth) :, 0]
        return float(distances(predicted, truth).mean())

    def test(self) -> dict[str, Any]:
        """The positions at the test times: `test_errors`.

        One sequence from t = 0: on [0, 1] each prediction is one step ahead of the true positions; on (1, 2] each is
        made from the predictions before it. Between the steps it is linear.
        """
        step = self.stride / len(self.data.train)
        steps = math.ceil(float(self.data.test_times[-1]) / step) + 1 - len(self.known)
        predicted = self.model.predict(self.known[:, :1], steps)[:, 0]
        place = self.data.test_times / step
        before = place.long()
        positions = torch.lerp(predicted[before], predicted[before + 1], (place - before)[:, None, None])
        return test_errors(positions, self.data)


def validate(settings: Settings, data: Data, augment: bool, choice: Choice) -> dict[str, Any]:
    """Train on all but the tail of [0, 1], and find the number of epochs that predicts the tail best.

    Returns
    -------
    dict
        The choice with these epochs, and `error`, that on the tail.
    """
    known = len(data.train) - round(settings.lstm_tail * len(data.train))
    fit = SequenceFit(data.train[:known], data, augment, choice, SEARCH_SEED)
    tail = data.train[fit.known.shape[0] * fit.stride :]
    best, epochs = math.inf, choice.epochs
    for done in range(1, choice.epochs + 1):
        fit.epoch(done - 1)
        due = done % settings.lstm_check == 0 or done == choice.epochs
        if due and (error := fit.ahead(tail)) < best:
            best, epochs = error, done
    return {**asdict(replace(choice, epochs=epochs)), "error": best}


def best_choice(lines: Sequence[Mapping[str, Any]]) -> Choice:
    """The choice of the smallest error among what the search has found."""
    best = min(lines, key=lambda line: line["error"])
    return Choice(best["step"], best["hidden"], best["lr"], best["epochs"])
