"""The plots of the van der Pol experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plots import colour, figure, look, save
from ..variants import Variant
from .problem import Settings, row_of, there_and_back

POINTS = 1000


def plot_trajectories(settings: Settings, path: Path) -> None:
    """Forward and reverse trajectory: in the phase plane, and both components against time."""
    forward, reverse = there_and_back(settings, "ode45", settings.T, POINTS)
    (y1, y2), (r1, r2) = forward.ys.T.tolist(), reverse.ys.T.tolist()
    made = figure(12, 5.2)
    plane, *sides = made.subplot_mosaic([["plane", "y1"], ["plane", "y2"]]).values()
    plane.plot(y1, y2, color="C0", linewidth=1.6, label="forward")
    plane.plot(r1, r2, color="C3", linewidth=1.4, linestyle="--", label="reverse, from y(T)")
    for x, y, kind, name in (
        (y1[0], y2[0], "o", "y(0)"),
        (y1[-1], y2[-1], "s", f"y({settings.T:g})"),
        (r1[-1], r2[-1], "X", "y(0) as recovered"),
    ):
        plane.plot(x, y, kind, markersize=8, color="C3" if kind == "X" else "black", label=name)
    plane.set(xlabel="y1", ylabel="y2", title="Phase plane", aspect="equal")
    plane.legend(fontsize=8, loc="lower right")
    for axes, name, there, back in zip(sides, ("y1", "y2"), (y1, y2), (r1, r2), strict=True):
        axes.plot(forward.ts.tolist(), there, color="C0", linewidth=1.6)
        axes.plot(reverse.ts.tolist(), back, color="C3", linewidth=1.4, linestyle="--")
        axes.set(xlabel="t", ylabel=name)
    for axes in (plane, *sides):
        axes.grid(alpha=0.3)
    made.suptitle(
        f"van der Pol, {settings.method}, rtol {settings.rtol:g}, atol {settings.atol:g}: forward to "
        f"{settings.T:g}, then back",
        fontsize=10,
    )
    save(made, path)


def plot_gradients(
    lines: Mapping[str, Mapping[str, Any]], compared: Sequence[Variant], settings: Settings, path: Path
) -> None:
    """The error of each gradient over the tolerance; a failed solve is a cross at the top."""
    made = figure(8, 5)
    axes = made.subplots()
    places = range(len(settings.tolerances))
    for i, variant in enumerate(compared):
        found = [lines[row_of(variant.name, pair)] for pair in settings.tolerances]
        good = [(place, line["error"]) for place, line in zip(places, found, strict=True) if "error" in line]
        failed = [place for place, line in zip(places, found, strict=True) if "failed" in line]
        axes.plot([x for x, _ in good], [y for _, y in good], label=variant.title, **look(variant.name))
        if failed:
            shifted = [place + 0.05 * (i - len(compared) / 2) for place in failed]
            top = axes.get_xaxis_transform()
            axes.plot(shifted, [0.97] * len(failed), "X", color=colour(variant.name), transform=top)
    axes.set_xticks(list(places), [f"{rtol:g}, {atol:g}" for rtol, atol in settings.tolerances])
    axes.set(yscale="log", xlabel="rtol, atol", ylabel="relative error of the gradient")
    axes.set_title("Crosses at the top: the solve failed", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(made, path)
