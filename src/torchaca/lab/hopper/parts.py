"""Where a trained network's error is: in which sequences, dimensions and times, and how much of it is overfitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..table import Table, number
from .data import Data, seen
from .train import Fit

CHUNK = 200
WORST = 0.1
LINES = {
    "test": "the test sequences",
    "training": "as many training sequences, with new masks",
    "mean of draws": "the mean of the draws in the place of each",
    "positions": "positions",
    "velocities": "velocities",
    "seen": "points that are seen",
    "first tenth": "the first tenth of the window",
    "last tenth": "the last tenth of the window",
    "smoothest third": "the third of the sequences with the smallest jumps",
    "roughest third": "the third with the largest jumps",
    "without the worst": f"without the worst {WORST:.0%} of the sequences",
    "median": "the median sequence",
}
"""Part -> what it is, in the table."""


def error_parts(made: Fit, data: Data, mask: Tensor) -> dict[str, float]:
    """The mean squared error of the test set, and of parts of it.

    A sequence's jump is the largest change of a velocity from one point to the next.
    """
    x, train = data.test, data.train[: len(data.test)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        error, centre = _errors(made, x, mask)
        known = seen(len(train), train.shape[1], made.fraction)
        training, _ = _errors(made, train, known)
    half, tenth = x.shape[-1] // 2, max(x.shape[1] // 10, 1)
    each = error.mean((1, 2)).sort()
    jumps = x[..., half:].diff(dim=1).abs().amax((1, 2)).argsort()
    third = max(len(x) // 3, 1)
    found = {
        "test": error.mean(),
        "training": training.mean(),
        "mean of draws": centre.mean(),
        "positions": error[..., :half].mean(),
        "velocities": error[..., half:].mean(),
        "seen": error[mask].mean(),
        "first tenth": error[:, :tenth].mean(),
        "last tenth": error[:, -tenth:].mean(),
        "smoothest third": error[jumps[:third]].mean(),
        "roughest third": error[jumps[-third:]].mean(),
        "without the worst": each.values[: len(x) - int(WORST * len(x))].mean(),
        "median": each.values[len(x) // 2],
    }
    return {name: float(value) for name, value in found.items()}


def parts_table(rows: Sequence[Mapping[str, Any]], name: str, paper: Sequence[str] = ()) -> Table:
    """The parts of one network's error at each fraction; beside the paper's, where it has the same fractions."""
    own = [row for row in rows if row["model"] == name and row["seed"] == 0 and "parts" in row]
    return Table(
        title=f"Where the error of {name} is: MSE x 1e-2",
        columns=["of", *(f"{row['fraction']:.0%}" for row in own)],
        rows=[[said, *(number(100 * row["parts"][part], 3) for row in own)] for part, said in LINES.items()],
        notes=[
            "a jump is the largest change of a sequence's velocities from one point to the next: its impacts.",
            *(_between(row, theirs) for row, theirs in zip(own, paper, strict=False)),
        ],
    )


def _between(row: Mapping[str, Any], paper: str) -> str:
    """What stands between the error of a row and the paper's."""
    test, training = 100 * row["parts"]["test"], 100 * row["parts"]["training"]
    said = f"{row['fraction']:.0%}: {test:.2f}, the paper has {paper}"
    if test <= float(paper):
        return f"{said}: reached."
    if f"{test:.2f}" == paper:
        return f"{said}: equal in the paper's digits ({test:.3f})."
    if training < float(paper):
        return (
            f"{said}; the training sequences have {training:.2f}, which is below that: what stands between is "
            "overfitting (a window of each of the training sequences, the same in all epochs), not the fit."
        )
    return f"{said}; the training sequences have {training:.2f}, above that as well: it is not trained out."


def _errors(made: Fit, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors `(n, T, D)`: means over the draws, and of the draws' mean."""
    means, centres = [], []
    for values, known in zip(x.split(CHUNK), mask.split(CHUNK), strict=True):
        draws = made.draws(values, known, made.settings.samples)
        means.append((draws - values).square().mean(0))
        centres.append((draws.mean(0) - values).square())
    return torch.cat(means), torch.cat(centres)
