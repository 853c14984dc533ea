"""The plots of the hopper experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from ..plots import colour, figure, save
from .data import Data

DIMENSIONS = {0: "height", 1: "position", 2: "pitch", 8: "velocity"}
"""Some of the 14 dimensions."""


ALIKE = 0.02
"""Gradients whose errors differ by less are one line: drawn on top of each other, only the last would be seen."""


def plot_errors(rows: Sequence[Mapping[str, Any]], paper: Mapping[str, Sequence[str]], path: Path) -> None:
    """Test error against the fraction, from zero on, a line for every model; the paper's numbers as crosses."""
    made = figure(8, 4.2)
    axes = made.subplots()
    fractions = sorted({row["fraction"] for row in rows})
    means = {
        name: [_mean(rows, name, fraction) for fraction in fractions]
        for name in dict.fromkeys(row["model"] for row in rows)
    }
    gradients = [name for name in means if not name.startswith("rnn")]
    leader = gradients[0] if gradients else None
    alike = [n for n in gradients[1:] if leader and _close(means[leader], means[n])]
    for index, (name, values) in enumerate(means.items()):
        if name in alike:
            continue
        label = f"latent ODE: {', '.join([name, *alike])}" if name == leader else name
        shade = f"C{index + 7}" if name.startswith("rnn") else colour(name)
        axes.plot(fractions, values, "o-", color=shade, label=label)
        if name in paper:
            theirs = [float(value) for value in paper[name]]
            axes.plot(fractions, theirs, "x:", color=shade, linewidth=0.8, label=f"{name}, paper")
    axes.set(
        xlabel="part of the points that is seen", ylabel="test MSE x 1e-2", ylim=(0, None), xticks=fractions
    )
    axes.grid(alpha=0.3)
    made.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(made, path)


def plot_curves(rows: Sequence[Mapping[str, Any]], paper: Mapping[str, Sequence[str]], path: Path) -> None:
    """Error after each epoch, a line for every model and fraction; the paper's numbers for aca dotted."""
    made = figure(8, 4.4)
    axes = made.subplots()
    fractions = sorted({row["fraction"] for row in rows})
    names = list(dict.fromkeys(row["model"] for row in rows))
    styles = ("-", "--", "-.", (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 3)))
    for row in rows:
        values = [100 * value for value in row["curve"] if value is not None]
        if row["seed"] == 0 and values:
            index = fractions.index(row["fraction"])
            style = styles[names.index(row["model"]) % len(styles)]
            label = f"{row['model']} {row['fraction']:.0%}"
            axes.plot(
                range(1, len(values) + 1),
                values,
                linestyle=style,
                color=f"C{index}",
                linewidth=1.2,
                label=label,
            )
    for index, value in enumerate(paper.get("aca", ())):
        axes.axhline(float(value), color=f"C{index}", linestyle=":", linewidth=1)
    axes.set(xlabel="epoch", ylabel="test MSE x 1e-2", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    made.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(made, path)


def _mean(rows: Sequence[Mapping[str, Any]], name: str, fraction: float) -> float:
    own = [r["mse"] * 100 for r in rows if (r["model"], r["fraction"]) == (name, fraction) and "mse" in r]
    return fmean(own) if own else float("nan")


def _close(ones: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(a - b) <= ALIKE * abs(a) for a, b in zip(ones, others, strict=True))


def plot_reconstructions(data: Data, mask: Tensor, draws: Tensor, noise: Tensor, path: Path) -> None:
    """Truth, seen points, and the mean and band of the draws `(draws, n, T, 14)`, for some dimensions.

    The band is two standard deviations wide, of the draws and the noise `(T, 14)` together.
    """
    made = figure(12, 2.4 * len(mask))
    grid = made.subplots(len(mask), len(DIMENSIONS), squeeze=False, sharex=True)
    middle, band = draws.mean(0), 2 * (draws.var(0) + noise.square()).sqrt()
    for i, axes_of_row in enumerate(grid):
        for (dimension, label), axes in zip(DIMENSIONS.items(), axes_of_row, strict=True):
            truth, seen = data.test[i, :, dimension], mask[i]
            low, high = (middle + sign * band for sign in (-1, 1))
            edges = low[i, :, dimension], high[i, :, dimension]
            axes.fill_between(
                data.times, *edges, color="C0", alpha=0.25, label="two standard deviations, noise included"
            )
            axes.plot(data.times, middle[i, :, dimension], color="C0", label="mean of the draws")
            axes.plot(data.times, truth, color="black", linewidth=0.8, label="true")
            axes.plot(data.times[seen], truth[seen], "k.", markersize=4, label="seen")
            if i == 0:
                axes.set_title(f"{label}, scaled")
        axes_of_row[0].set_ylabel(f"sequence {i + 1}")
    for axes in grid[-1]:
        axes.set_xlabel("time")
    made.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(made, path)
