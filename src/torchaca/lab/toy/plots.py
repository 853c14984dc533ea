"""The plots of the toy experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from ..plots import colour, figure, look, save
from .errors import Settings

PLOTS = {"exact": "error-exact.png", "discrete": "error-discrete.png"}
AGAINST = {
    "exact": "the gradient of the exact solution, 2 z0 exp(2kT) and 2 T z0² exp(2kT)",
    "discrete": "the gradient of the computed solution (`direct` in the same precision)",
}

Lines = Sequence[Mapping[str, Any]]


def select(lines: Lines, k: float, dtype: str, gradient: str) -> list[Mapping[str, Any]]:
    """The lines of one curve, by T."""
    chosen = [line for line in lines if (line["k"], line["dtype"], line["gradient"]) == (k, dtype, gradient)]
    return sorted(chosen, key=lambda line: line["T"])


def plot(lines: Lines, settings: Settings, kind: str, path: Path) -> None:
    """Errors against T on a log scale: dL/dz0 above, dL/dk below, one column per k and precision."""
    cases = list(product(settings.k, settings.dtype))
    made = figure(3.2 * len(cases) + 0.8, 6)
    panels = made.subplots(2, len(cases), sharex=True, sharey=True, squeeze=False)
    for (k, dtype), column in zip(cases, panels.T, strict=True):
        column[0].set_title(f"k = {k:+g}, {dtype}")
        for parameter, axes in zip(("dz0", "dk"), column, strict=True):
            for gradient in settings.gradient:
                _curve(axes, select(lines, k, dtype, gradient), f"{kind} {parameter}", gradient, dtype)
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
        column[1].set_xlabel("T")
    panels[0, 0].set_ylabel("relative error of dL/dz0")
    panels[1, 0].set_ylabel("relative error of dL/dk")
    made.suptitle(f"Error against {AGAINST[kind].replace('`', '')}", fontsize=10)
    made.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    save(made, path)


def _curve(axes: Axes, lines: Lines, key: str, gradient: str, dtype: str) -> None:
    """One method's errors; zero is drawn at the precision's epsilon, a failed solve as a cross at the top."""
    floor = torch.finfo(getattr(torch, dtype)).eps
    there = [line for line in lines if line[key] is not None]
    failed = [line["T"] for line in lines if "failed" in line]
    axes.plot(
        [line["T"] for line in there],
        [max(line[key], floor) for line in there],
        label=gradient,
        **look(gradient),
    )
    if failed:
        top = axes.get_xaxis_transform()
        axes.plot(failed, [0.97] * len(failed), "X", color=colour(gradient), markersize=8, transform=top)
