"""The figures of the slides: errors over epochs, time, seeds and solvers; evaluations over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..plots import figure, save

COLOURS = {
    "resnet18": "C7",
    "node18-aca": "C0",
    "node18-direct": "C2",
    "node18-naive": "C1",
    "node18-adjoint": "C3",
    "anode18": "C5",
}
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
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
    made.legend(
        *by_epoch.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9
    )
    save(made, path)


def plot_spread(kinds: Sequence[Row], path: Path) -> None:
    """A dot for every seed of every kind of row, and a line at their mean."""
    made = figure(7, 3.6)
    axes = made.subplots()
    shown = [kind for kind in kinds if kind["errors"]]
    for place, kind in enumerate(shown):
        colour = _colour(kind["label"])
        axes.plot(
            [place] * len(kind["errors"]),
            [100 * error for error in kind["errors"]],
            "o",
            color=colour,
            alpha=0.6,
        )
        axes.hlines(100 * kind["error_mean"], place - 0.25, place + 0.25, color=colour, linewidth=2)
    axes.set_xticks(range(len(shown)), [kind["label"] for kind in shown])
    axes.set(ylabel="test error in percent", xlim=(-0.6, len(shown) - 0.4))
    axes.grid(alpha=0.3, axis="y")
    save(made, path)


def plot_solvers(kinds: Sequence[Row], path: Path) -> None:
    """By how much other solvers change the test error, beside how much seeds do: a dot for each kind of row."""
    made = figure(11, 4.2)
    axes = made.subplots()
    titles = list(dict.fromkeys(title for row in kinds for title in row["solvers"]))
    spread = 100 * max(row.get("error_std") or 0.0 for row in kinds)
    if spread:
        axes.axhspan(-spread, spread, color="0.94", label="one standard deviation of seeds, the largest")
    axes.axhline(0, color="black", linewidth=0.8)
    for i, row in enumerate(kinds):
        shift = 0.14 * (i - (len(kinds) - 1) / 2)
        changes = [row["solvers"][title]["change_mean"] for title in titles]
        good = [(place + shift, 100 * change) for place, change in enumerate(changes) if change is not None]
        axes.plot(
            *zip(*good, strict=True), "o", color=_colour(row["label"]), label=row["label"], markersize=4
        )
    axes.set_xticks(range(len(titles)), titles, rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="change of the test error, points")
    axes.grid(alpha=0.3, axis="y")
    made.legend(loc="outside upper center", ncols=len(kinds) + 1, frameon=False, fontsize=9)
    save(made, path)


def plot_evaluations(found: Sequence[Row], path: Path) -> None:
    """A panel for every ODE block."""
    curves = {label: runs for label, runs in _curves(found).items() if "nfe_block1" in runs[0][0]}
    blocks = sum(name.startswith("nfe_block") for name in next(iter(curves.values()))[0][0])
    made = figure(3 * blocks, 3.8)
    named = ([], [])
    for i, axes in enumerate(made.subplots(1, blocks, sharey=True, squeeze=False)[0], 1):
        for label, runs in curves.items():
            means = _means([[line[f"nfe_block{i}"] for line in curve] for curve in runs])
            axes.plot(range(1, len(means) + 1), means, color=_colour(label), label=label)
        axes.set(xlabel="epoch", title=f"block {i}")
        axes.grid(alpha=0.3)
        if i == 1:
            axes.set_ylabel("evaluations of f, forward")
            named = axes.get_legend_handles_labels()
    made.legend(*named, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
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
