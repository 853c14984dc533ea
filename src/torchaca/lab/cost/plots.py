"""The plot of the cost experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plots import figure, look, save
from ..variants import Variant
from .laws import AXES, QUANTITIES, Line, along

LABELS = ("computation, layers", "memory, states", "depth, layers")
NAMES = {"N_t": "N_t, accepted steps", "N_f": "N_f, layers of f", "m": "m, trials per step"}


def plot_counts(lines: Sequence[Line], compared: Sequence[Variant], path: Path) -> None:
    """Every quantity along every axis, on log scales."""
    made = figure(12, 10)
    panels = made.subplots(len(QUANTITIES), len(AXES), sharey="row", sharex="col")
    for quantity, row in zip(QUANTITIES, panels, strict=True):
        for axis, panel in zip(AXES, row, strict=True):
            for variant in compared:
                points = along(lines, variant.name, axis)
                xs, ys = [line[axis] for line in points], [line[quantity] for line in points]
                panel.plot(xs, ys, label=variant.title, **look(variant.name))
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3)
    for label, panel in zip(LABELS, panels[:, 0], strict=True):
        panel.set_ylabel(label)
    for axis, panel in zip(AXES, panels[-1], strict=True):
        panel.set_xlabel(NAMES[axis])
    made.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save(made, path)
