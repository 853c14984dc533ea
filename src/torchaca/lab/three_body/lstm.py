"""Training the LSTMs, and the search for their size, learning rate and time step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from .models import NextPosition
from .problem import Data, distances, test_errors
from .settings import Settings


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

    The error is the mean over `lstm_seeds` trainings: single ones differ more than neighbouring choices do.

    Returns
    -------
    dict
        The choice with these epochs, the `errors` on the tail, one for each seed, and their mean, `error`.
    """
    known = len(data.train) - round(settings.lstm_tail * len(data.train))
    fits = [
        SequenceFit(data.train[:known], data, augment, choice, seed) for seed in range(settings.lstm_seeds)
    ]
    tail = data.train[fits[0].known.shape[0] * fits[0].stride :]
    found = []
    for done in range(1, choice.epochs + 1):
        for fit in fits:
            fit.epoch(done - 1)
        if done % settings.lstm_check == 0 or done == choice.epochs:
            errors = [fit.ahead(tail) for fit in fits]
            found.append({"epochs": done, "error": fmean(errors), "errors": errors})
    return {**asdict(choice), **min(found, key=lambda line: line["error"])}


def best_choice(lines: Sequence[Mapping[str, Any]]) -> Choice:
    """The choice of the smallest error among what the search has found."""
    best = min(lines, key=lambda line: line["error"])
    return Choice(best["step"], best["hidden"], best["lr"], best["epochs"])
