"""Training the NODE: one row of the table is one `MotionFit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import torchaca as aca
from torchaca.errors import SolverError

from ...report.memory import SavedTensors
from ..variants import gradient_of
from .models import NeuralMotion
from .problem import DTYPE, Data, distances, initial_state, test_errors
from .segments import Segments, segments
from .settings import COUNTS, Settings

LOST = 1e3
"""The error of weights whose motion cannot be solved: a line search turns back from there."""


class MotionFit:
    """A NODE, fitted to the training positions by L-BFGS on segments that grow to the whole motion.

    The loss is the squared distance, summed over bodies and coordinates, mean over a segment's points and all segments.
    After every epoch the whole training motion is solved from its given start; the weights of the smallest error are
    kept.
    """

    def __init__(self, settings: Settings, data: Data, gradient: str, seed: int) -> None:
        self.settings, self.data, self.gradient = settings, data, gradient
        self.epochs = sum(epochs for _, epochs in settings.node_stages)
        self.system = NeuralMotion(seed, settings.node_spread)
        self.optimizer = self._optimizer()
        self.best_loss = math.inf
        self.best = self._weights()

    def _optimizer(self) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(
            self.system.parameters(),
            max_iter=self.settings.node_solves,
            max_eval=self.settings.node_solves,
            history_size=100,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.system.state_dict().items()}

    def _stage(self, number: int) -> tuple[Segments, bool]:
        """The segments of an epoch, and whether it is the first one with them."""
        for length, epochs in self.settings.node_stages:
            if number < epochs:
                return segments(self.data, length, self.settings.node_targets), number == 0
            number -= epochs
        raise IndexError("no epoch after the last one")

    def solve(self, start: Tensor, times: Tensor) -> tuple[Tensor, aca.Stats]:
        """The positions `(len(times), ..., 3, 3)` from the states `start` at times[0], and the cost."""
        tolerance = self.settings.node_tolerance
        sol = aca.solve(
            self.system,
            start,
            times,
            method=self.settings.method,
            rtol=tolerance,
            atol=tolerance,
            gradient=gradient_of(self.gradient),
        )
        return sol.ys[..., :3, :], sol.stats

    def loss(self, part: Segments) -> tuple[Tensor, aca.Stats]:
        """The error of a solve of the segments, and its cost."""
        positions, stats = self.solve(part.start, part.times)
        return distances(positions[1:], part.positions[1:]).mean(), stats

    def whole(self) -> tuple[Tensor, aca.Stats]:
        """The error on the whole training motion at once, as in the last stage, and its cost."""
        return self.loss(segments(self.data, 1.0, self.settings.node_targets))

    def epoch(self, number: int) -> dict[str, Any]:
        """One call of L-BFGS; the first epoch also measures memory."""
        part, first = self._stage(number)
        if first:
            self.optimizer = self._optimizer()
        if number > 0:
            return self._descend(part)
        with SavedTensors(list(self.system.parameters())) as saved:
            metrics = self._descend(part)
        return {**metrics, "saved_kib": saved.peak / 1024}

    def _descend(self, part: Segments) -> dict[str, Any]:
        costs: list[aca.Stats] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            try:
                loss, stats = self.loss(part)
                loss.backward()
            except SolverError:
                if not costs:
                    raise
                return torch.tensor(LOST, dtype=DTYPE)
            costs.append(stats)
            return loss.detach()

        segment_loss = self.optimizer.step(closure)
        whole = self._training_error()
        if whole < self.best_loss:
            self.best_loss, self.best = whole, self._weights()
        totals = {name: sum(getattr(stats, name) for stats in costs) for name in COUNTS}
        return {"loss": whole, "segment_loss": float(segment_loss), "solves": len(costs), **totals}

    @torch.no_grad()
    def _training_error(self) -> float:
        """The mean squared distance over the whole training motion."""
        try:
            positions, _ = self.solve(initial_state(), self.data.train_times)
        except SolverError:
            return LOST
        return float(distances(positions, self.data.train).mean())

    def state(self) -> dict[str, Any]:
        return {
            "system": self.system.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_loss": self.best_loss,
            "best": self.best,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.system.load_state_dict(state["system"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_loss, self.best = state["best_loss"], state["best"]

    @torch.no_grad()
    def test(self) -> dict[str, Any]:
        """The best weights on the test times: `test_errors`."""
        self.system.load_state_dict(self.best)
        times = torch.cat((torch.zeros(1, dtype=DTYPE), self.data.test_times))
        positions, _ = self.solve(initial_state(), times)
        return test_errors(positions[1:], self.data)
