"""The three-body problem: equations of motion, initial state, true trajectory.

r_i' = K2 v_i,   v_i' = K1 sum_{j != i} m_j (r_j - r_i) / |r_j - r_i|^3, in units of the constants below; one
unit of time is what the paper calls a year.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torchaca as aca

G, MASS, LENGTH, SPEED = 6.67408e-11, 1.989e30, 5.326e12, 30_000.0
TIME = 79.91 * 365 * 24 * 3600 * 0.51
K1 = G * TIME * MASS / (LENGTH**2 * SPEED)  # 0.200484
K2 = SPEED * TIME / LENGTH  # 7.239324

DTYPE = torch.float64
MASSES = (1.1, 1.1, 0.9)
POSITIONS = ((0.0, 0.2, 0.0), (0.5, 0.0, 0.5), (0.0, 0.0, 0.5))
VELOCITIES = ((0.0, 0.1, 0.0), (0.0, 0.0, 0.1), (0.1, 0.0, 0.0))
PAIRS = ((0, 1), (0, 2), (1, 2))

TRUTH_METHOD = "dopri8"


def initial_state() -> Tensor:
    """`(6, 3)`: the positions of the three bodies, then their velocities."""
    return torch.tensor(POSITIONS + VELOCITIES, dtype=DTYPE)


class ThreeBody(nn.Module):
    """The equations of motion with three masses as parameters.

    With the differences `d = P y` of the three pairs and `u = d / |d|^3`, y' = B y + A(m) u, where A is
    linear in the masses. The solve of so small a system is bound by the number of operations, which is nine
    here (and constants are no buffers, which are slower to look up).
    """

    def __init__(self, masses: Tensor) -> None:
        super().__init__()
        self.masses = nn.Parameter(masses.clone())
        self.pairs, self.drift, self.pull = _coefficients()
        self.ones = torch.ones(3, 1, dtype=DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        d = self.pairs @ y
        u = d * ((d * d) @ self.ones).pow(-1.5)
        return torch.addmm(self.drift @ y, torch.mv(self.pull, self.masses).view(6, 3), u)


def _coefficients() -> tuple[Tensor, Tensor, Tensor]:
    """P `(3, 6)`, B `(6, 6)`, and A as `(18, 3)`, to be multiplied with the masses."""
    pairs, drift, pull = (torch.zeros(shape, dtype=DTYPE) for shape in ((3, 6), (6, 6), (6, 3, 3)))
    for i in range(3):
        drift[i, 3 + i] = K2
    for p, (i, j) in enumerate(PAIRS):
        pairs[p, i], pairs[p, j] = -1.0, 1.0
        pull[3 + i, p, j] = K1
        pull[3 + j, p, i] = -K1
    return pairs, drift, pull.flatten(0, 1)


@dataclass(frozen=True)
class Data:
    """The true positions: `train` on [0, 1], `test` on [0, 2], half a step off the training times."""

    train_times: Tensor
    train: Tensor
    test_times: Tensor
    test: Tensor


def true_motion(points: int, tolerance: float) -> Data:
    """`points` training points k / points, k = 0, 1, ..., twice as many test points (k + 1/2) / points."""
    ts = torch.arange(4 * points, dtype=DTYPE) / (2 * points)
    with torch.no_grad():
        system = ThreeBody(torch.tensor(MASSES, dtype=DTYPE))
        sol = aca.solve(system, initial_state(), ts, method=TRUTH_METHOD, rtol=tolerance, atol=tolerance)
    positions = sol.ys[:, :3]
    return Data(ts[: 2 * points : 2], positions[: 2 * points : 2], ts[1::2], positions[1::2])


def distances(positions: Tensor, truth: Tensor) -> Tensor:
    """`(...)` from `(..., 3, 3)`: squared distances, summed over bodies and coordinates."""
    return (positions - truth).square().sum((-2, -1))


def test_errors(positions: Tensor, data: Data) -> dict[str, Any]:
    """What predicted positions `(n, 3, 3)` at the test times are worth.

    Returns
    -------
    dict
        `mse_sum` (sum over the 9 coordinates, mean over the points: the authors' script) and `mse_mean` (mean over
        both); `mse_seen` and `mse_ahead`, the first for the points in [0, 1] and in (1, 2] alone; `positions`.
    """
    found = distances(positions, data.test)
    ahead = data.test_times > 1
    mse = float(found.mean())
    return {
        "mse_sum": mse,
        "mse_mean": mse / 9,
        "mse_seen": float(found[~ahead].mean()),
        "mse_ahead": float(found[ahead].mean()),
        "positions": positions,
    }
