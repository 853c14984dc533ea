"""The figures of the slides: errors over epochs, time, seeds and solvers; evaluations over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

import torchaca as aca

from ..plots import figure, save
from .evaluation import TITLES

COLOURS = {
    "resnet18": "C7",
    "node18-aca": "C0",
    "node18-direct": "C2",
    "node18-naive": "C1",
    "node18-adjoint": "C3",
    "anode18": "C5",
}
MARKERS = "osd^vx"

Row = Mapping[str, Any]


def plot_curves(found: Sequence[Row], path: Path) -> None:
    """Test error over epochs, and over the seconds spent on training."""
    made = figure(11, 4.5)
    by_epoch, by_time = made.subplots(1, 2, sharey=True)
    for label, curves in _curves(found).items():
        errors = [[100 * line["test_error"] for line in curve] for curve in curves]
        epochs = [list(range(1, len(curve) + 1)) for curve in curves]
        seconds = [list(accumulate(line["seconds"] for line in curve)) for curve in curves]
        _lines(by_epoch, epochs, errors, label)
        _lines(by_time, seconds, errors, label)
    by_epoch.set(xlabel="epoch", ylabel="test error in percent")
    by_time.set(xlabel="seconds of training", xscale="log")
    for axes in (by_epoch, by_time):
        axes.grid(alpha=0.3)
    by_epoch.legend(fontsize=9)
    save(made, path)


def plot_spread(found: Sequence[Row], path: Path) -> None:
    """A box for every kind of row, a point for every seed."""
    made = figure(7, 4.5)
    axes = made.subplots()
    last = {
        label: [100 * curve[-1]["test_error"] for curve in curves] for label, curves in _curves(found).items()
    }
    axes.boxplot(list(last.values()), tick_labels=list(last), showfliers=False)
    for place, (label, errors) in enumerate(last.items(), 1):
        axes.plot([place] * len(errors), errors, "o", color=_colour(label), alpha=0.7)
    axes.set_ylabel("test error in percent")
    axes.grid(alpha=0.3, axis="y")
    save(made, path)


def plot_solvers(kinds: Sequence[Row], path: Path) -> None:
    """Test error over the step size and over the tolerance; dashed: the training solver."""
    made = figure(11, 4.5)
    fixed, adaptive = made.subplots(1, 2, sharey=True)
    for row in kinds:
        for axes in (fixed, adaptive):
            axes.axhline(100 * row["error_mean"], color=_colour(row["label"]), linestyle="--", linewidth=0.8)
        for marker, method in zip(MARKERS, TITLES, strict=True):
            tested = [
                s for s in row["solvers"].values() if s["method"] == method and s["error_mean"] is not None
            ]
            if tested:
                axes = adaptive if aca.METHODS[method].adaptive else fixed
                axes.plot(
                    [s["value"] for s in tested],
                    [100 * s["error_mean"] for s in tested],
                    marker=marker,
                    color=_colour(row["label"]),
                    label=f"{row['label']}, {TITLES[method]}",
                )
    fixed.set(xlabel="step size h", ylabel="test error in percent", xscale="log")
    adaptive.set(xlabel="tolerance", xscale="log")
    for axes in (fixed, adaptive):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save(made, path)


def plot_evaluations(found: Sequence[Row], path: Path) -> None:
    """A panel for every ODE block."""
    curves = {label: runs for label, runs in _curves(found).items() if "nfe_block1" in runs[0][0]}
    blocks = sum(name.startswith("nfe_block") for name in next(iter(curves.values()))[0][0])
    made = figure(3 * blocks, 3.5)
    for i, axes in enumerate(made.subplots(1, blocks, sharey=True, squeeze=False)[0], 1):
        for label, runs in curves.items():
            means = _means([[line[f"nfe_block{i}"] for line in curve] for curve in runs])
            axes.plot(range(1, len(means) + 1), means, color=_colour(label), label=label)
        axes.set(xlabel="epoch", title=f"block {i}")
        axes.grid(alpha=0.3)
        if i == 1:
            axes.set_ylabel("evaluations of f, forward")
            axes.legend(fontsize=8)
    save(made, path)


def _curves(found: Sequence[Row]) -> dict[str, list[Sequence[Row]]]:
    """The epochs of every seed that was trained, by label."""
    curves: dict[str, list[Sequence[Row]]] = {}
    for row in found:
        if row["curve"]:
            curves.setdefault(row["label"], []).append(row["curve"])
    return curves


def _lines(axes: Axes, xs: Sequence[Sequence[float]], ys: Sequence[Sequence[float]], label: str) -> None:
    for x, y in zip(xs, ys, strict=True):
        axes.plot(x, y, color=_colour(label), linewidth=0.6, alpha=0.5)
    marker = "." if len(_means(ys)) < 5 else None
    axes.plot(_means(xs), _means(ys), color=_colour(label), linewidth=2, label=label, marker=marker)


def _means(curves: Sequence[Sequence[float]]) -> list[float]:
    """As far as all of them go."""
    return [fmean(values) for values in zip(*curves, strict=False)]


def _colour(label: str) -> str:
    return COLOURS.get(label, "C4")
