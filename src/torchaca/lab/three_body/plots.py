"""The plots of the three-body experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import SubFigure

from ..plots import colour, figure, save
from .problem import Data

COORDINATES = "xyz"
BODIES = ("C0", "C1", "C2")


def plot_losses(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training loss against the epoch, on a log scale."""
    made = figure(8, 4.5)
    axes = made.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        shade = colour(own[0]["gradient"])
        curves = [row["losses"] for row in own]
        for curve in curves:
            axes.plot(curve, color=shade, linewidth=0.6, alpha=0.5)
        common = [median(values) for values in zip(*curves, strict=False)]
        axes.plot(
            common,
            color=shade,
            linewidth=2,
            label=method,
            marker="." if len(common) < 5 else None,
        )
    axes.set(yscale="log", xlabel="epoch", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    save(made, path)


def plot_motion(data: Data, row: Mapping[str, Any], path: Path) -> None:
    """Truth and prediction in space, per coordinate, and the distance between them."""
    made = figure(14, 7)
    left, right = made.subfigures(1, 2, squeeze=False, width_ratios=(2, 3))[0]
    made.suptitle(
        f"{row['method']}, seed {row['seed']}: test MSE {row['mse_sum']:.2e} (sum over 9 coordinates)"
    )
    _space(left, data, row)
    _coordinates(right, data, row)
    save(made, path)


def _space(part: SubFigure, data: Data, row: Mapping[str, Any]) -> None:
    """The three orbits above, the error of each body against time below."""
    orbits = part.add_subplot(3, 1, (1, 2), projection="3d")
    errors = part.add_subplot(3, 1, 3)
    for body, shade in enumerate(BODIES):
        truth, found = data.test[:, body], row["positions"][:, body]
        orbits.plot(*truth.T.tolist(), color=shade, linewidth=1.5, label=f"body {body + 1}")
        orbits.plot(*found.T.tolist(), color="black", linewidth=0.8, linestyle="--")
        errors.plot(data.test_times.tolist(), (found - truth).norm(dim=1).tolist(), color=shade, linewidth=1)
    orbits.legend(fontsize=8)
    errors.set(yscale="log", xlabel="t", ylabel="distance from truth")
    errors.axvline(1.0, color="grey", linewidth=0.8)
    errors.grid(alpha=0.3)


def _coordinates(part: SubFigure, data: Data, row: Mapping[str, Any]) -> None:
    """Every coordinate against time; the grey line is the end of the training range."""
    panels = part.subplots(3, 3, sharex=True)
    times = data.test_times.tolist()
    for body, shade in enumerate(BODIES):
        for axis, name in enumerate(COORDINATES):
            panel = panels[body, axis]
            panel.plot(times, data.test[:, body, axis].tolist(), color=shade, linewidth=1.5)
            panel.plot(
                times, row["positions"][:, body, axis].tolist(), color="black", linewidth=0.8, linestyle="--"
            )
            panel.axvline(1.0, color="grey", linewidth=0.8)
            panel.set_title(f"body {body + 1}, {name}", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("t")
