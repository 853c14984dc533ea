"""Finding the masses, the rows "ODE": one row of the table is one `MassFit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import torchaca as aca

from ...report.memory import SavedTensors
from ..variants import gradient_of
from .problem import DTYPE, MASSES, Data, ThreeBody, distances, initial_state, test_errors
from .settings import COUNTS, Settings


def initial_masses(seed: int, spread: float) -> Tensor:
    """`(3,)` uniform in 1 ± spread; the same for every gradient method."""
    generator = torch.Generator().manual_seed(seed)
    return 1 + spread * (2 * torch.rand(3, generator=generator, dtype=DTYPE) - 1)


class MassFit:
    """Three masses, fitted to the training positions by Adam; the best epoch's are kept.

    The loss of an epoch is `mean_t w^t |r(t) - r_true(t)|^2` over the whole trajectory, w = `time_weight`.
    """

    def __init__(self, settings: Settings, data: Data, gradient: str, seed: int) -> None:
        self.settings, self.data, self.gradient = settings, data, gradient
        self.epochs = settings.epochs
        self.system = ThreeBody(initial_masses(seed, settings.mass_spread))
        self.optimizer = torch.optim.Adam(self.system.parameters(), lr=settings.lr, betas=settings.betas)
        self.weights = settings.time_weight**data.train_times
        self.best_loss = math.inf
        self.best_masses = self.system.masses.detach().clone()

    def solve(self, times: Tensor) -> tuple[Tensor, aca.Stats]:
        """The positions `(len(times), 3, 3)` at `times` after 0, for the present masses, and the cost."""
        s = self.settings
        from_start = torch.cat((torch.zeros(1, dtype=DTYPE), times))
        sol = aca.solve(
            self.system,
            initial_state(),
            from_start,
            method=s.method,
            rtol=s.rtol,
            atol=s.atol,
            gradient=gradient_of(self.gradient),
        )
        return sol.ys[1:, :3], sol.stats

    def epoch(self, number: int) -> dict[str, Any]:
        """One step of Adam on the whole training trajectory; the first epoch also measures memory."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.settings.lr_decay**number
        if number > 0:
            return self._descend()
        with SavedTensors() as saved:
            metrics = self._descend()
        return {**metrics, "saved_kib": saved.peak / 1024}

    def whole(self) -> tuple[Tensor, aca.Stats]:
        """The weighted error over the whole training motion, and the cost of the solve."""
        positions, stats = self.solve(self.data.train_times)
        return (self.weights * distances(positions, self.data.train)).mean(), stats

    def _descend(self) -> dict[str, Any]:
        loss, stats = self.whole()
        self.optimizer.zero_grad()
        loss.backward()
        masses = self.system.masses.detach().clone()
        if loss.item() < self.best_loss:
            self.best_loss, self.best_masses = loss.item(), masses
        self.optimizer.step()
        costs = {name: getattr(stats, name) for name in COUNTS}
        return {"loss": loss.item(), "masses": masses.tolist(), "solves": 1, **costs}

    def state(self) -> dict[str, Any]:
        return {
            "system": self.system.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_loss": self.best_loss,
            "best_masses": self.best_masses,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.system.load_state_dict(state["system"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_loss, self.best_masses = state["best_loss"], state["best_masses"]

    @torch.no_grad()
    def test(self) -> dict[str, Any]:
        """The best masses on the test times: `test_errors`, `masses`, and `mass_error`, the largest of the three."""
        self.system.masses.copy_(self.best_masses)
        positions, _ = self.solve(self.data.test_times)
        error = float((self.best_masses - torch.tensor(MASSES, dtype=DTYPE)).abs().max())
        return {"masses": self.best_masses.tolist(), "mass_error": error, **test_errors(positions, self.data)}
