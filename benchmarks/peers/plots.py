"""The plots beside the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import NullFormatter

from torchaca.lab.plots import figure, save

from .growth import Curve
from .targets import Tables

COLOURS = {"torchaca": "C0", "torchdiffeq": "C1", "torchode": "C2", "torchdyn": "C3", "diffrax": "C4"}


def training_steps(tables: Tables, path: Path) -> None:
    """Milliseconds of forward and backward pass: one panel a workload, one bar a contestant."""
    made = figure(11, 0.5 + 3.4 * len(tables))
    panels = made.subplots(len(tables), 1, squeeze=False)[:, 0]
    for panel, (workload, rows) in zip(panels, tables.items(), strict=True):
        shown = [r for r in rows if r.reason is None][::-1]
        names = [r.contestant.name for r in shown]
        bars = panel.barh(
            names, [1e3 * r.total for r in shown], color=[COLOURS[r.contestant.library] for r in shown]
        )
        panel.bar_label(bars, [f"{1e3 * r.total:.3g}" for r in shown], padding=3, fontsize=8)
        panel.set_xscale("log")
        panel.margins(x=0.12)
        panel.tick_params(axis="y", labelsize=8)
        panel.set_title(workload)
        panel.set_xlabel("forward + backward, ms")
    save(made, path)


def growth(curves: Sequence[Curve], path: Path) -> None:
    """Milliseconds and evaluations against steps and against samples, in double logarithms, beside straight lines."""
    made = figure(11, 8)
    axes = ("accepted steps", "samples")
    panels = made.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        for curve in (c for c in curves if c.axis == axis):
            sizes = [p.size for p in curve.points]
            times = [1e3 * p.seconds for p in curve.points]
            (drawn,) = panels[0][column].loglog(sizes, times, "o-", label=curve.contestant)
            proportional = [times[-1] * size / sizes[-1] for size in sizes]
            panels[0][column].loglog(sizes, proportional, ":", color=drawn.get_color())
            panels[1][column].loglog(
                sizes, [p.evaluations for p in curve.points], "o-", label=curve.contestant
            )
        panels[0][column].set_ylabel("forward + backward, ms (dotted: proportional)")
        panels[1][column].set_ylabel("evaluations of f, forward + backward")
        for row in panels:
            row[column].set_xlabel(axis)
            row[column].grid(True, which="both", alpha=0.3)
            row[column].xaxis.set_minor_formatter(NullFormatter())
    named = panels[0][0].get_legend_handles_labels()
    made.legend(*named, loc="outside lower center", ncols=3, fontsize=8)
    save(made, path)
