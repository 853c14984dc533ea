"""The plots of the hopper experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from ..plots import colour, figure, marker, save
from .data import Data

DIMENSIONS = {0: "height", 1: "position", 2: "pitch", 8: "velocity"}
"""Some of the 14 dimensions."""


def plot_errors(rows: Sequence[Mapping[str, Any]], paper: Mapping[str, Sequence[str]], path: Path) -> None:
    """Test error against the fraction, a line for every model; the paper's numbers as crosses."""
    made = figure(8, 4.5)
    axes = made.subplots()
    fractions = sorted({row["fraction"] for row in rows})
    for index, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
        own = [
            [
                row["mse"] * 100
                for row in rows
                if (row["model"], row["fraction"]) == (name, fraction) and "mse" in row
            ]
            for fraction in fractions
        ]
        shade = f"C{index + 7}" if name.startswith("rnn") else colour(name)
        means = [fmean(values) if values else float("nan") for values in own]
        axes.plot(fractions, means, color=shade, marker=marker(name), label=name)
        if name in paper:
            axes.plot(
                fractions,
                [float(value) for value in paper[name]],
                "x:",
                color=shade,
                linewidth=0.6,
                alpha=0.6,
            )
    axes.set(
        xlabel="part of the points that is seen", ylabel="test MSE x 1e-2", yscale="log", xticks=fractions
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(made, path)


def plot_reconstructions(data: Data, mask: Tensor, draws: Tensor, path: Path) -> None:
    """Truth, seen points, and the mean and band of the draws `(draws, n, T, 14)`, for some dimensions."""
    made = figure(12, 2.4 * len(mask))
    grid = made.subplots(len(mask), len(DIMENSIONS), squeeze=False, sharex=True)
    middle, band = draws.mean(0), 2 * draws.std(0)
    for i, axes_of_row in enumerate(grid):
        for (dimension, label), axes in zip(DIMENSIONS.items(), axes_of_row, strict=True):
            truth, seen = data.test[i, :, dimension], mask[i]
            low, high = (middle + sign * band for sign in (-1, 1))
            axes.fill_between(data.times, low[i, :, dimension], high[i, :, dimension], color="C0", alpha=0.25)
            axes.plot(data.times, middle[i, :, dimension], color="C0")
            axes.plot(data.times, truth, color="black", linewidth=0.8)
            axes.plot(data.times[seen], truth[seen], "k.", markersize=4)
            if i == 0:
                axes.set_title(label)
    save(made, path)
