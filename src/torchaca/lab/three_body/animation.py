"""The motion as an animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from .plots import BODIES
from .problem import Data

FRAMES = 60
TRAIL = 0.3
"""How much of the past is drawn behind a body, in units of time."""


def animate(data: Data, rows: Sequence[Mapping[str, Any]], path: Path, frames: int = FRAMES) -> None:
    """Write a GIF: truth and prediction of each row from t = 0 to 2, beside each other.

    Bodies are coloured dots with their trails; predicted ones are black rings with dashed trails.
    """
    made = Figure(figsize=(2.8 * len(rows), 3.2))  # without a layout that is searched anew for every frame
    FigureCanvasAgg(made)
    made.subplots_adjust(0.0, 0.0, 1.0, 0.86, 0.0)
    panels = [made.add_subplot(1, len(rows), i + 1, projection="3d") for i in range(len(rows))]
    writer = PillowWriter(fps=10)
    with writer.saving(made, str(path), dpi=75):
        for time in torch.linspace(0.0, float(data.test_times[-1]), frames + 1)[1:].tolist():
            for panel, row in zip(panels, rows, strict=True):
                _draw(panel, data, row, time)
            seen = "training range" if time <= 1 else "prediction"
            made.suptitle(f"t = {time:.2f}, {seen}", fontsize=10)
            writer.grab_frame()


def _draw(panel: Axes3D, data: Data, row: Mapping[str, Any], time: float) -> None:
    now = int((data.test_times <= time).sum())
    past = int((data.test_times <= time - TRAIL).sum())
    panel.clear()
    for body, shade in enumerate(BODIES):
        truth, found = data.test[past:now, body].T, row["positions"][past:now, body].T
        panel.plot(*truth.tolist(), color=shade, linewidth=1.5)
        panel.plot(*found.tolist(), color="black", linewidth=0.9, linestyle="--")
        panel.plot(*truth[:, -1:].tolist(), color=shade, marker="o", markersize=6)
        panel.plot(*found[:, -1:].tolist(), color="black", marker="o", markersize=6, fillstyle="none")
    _frame(panel, data)
    panel.set_title(row["method"], fontsize=9)


def _frame(panel: Axes3D, data: Data) -> None:
    """The same box in every frame: that of the true motion."""
    low, high = data.test.amin((0, 1)).tolist(), data.test.amax((0, 1)).tolist()
    panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    panel.set(xticklabels=(), yticklabels=(), zticklabels=())
    panel.set_box_aspect(None, zoom=1.2)  # pyright: ignore[reportArgumentType]  (the stub knows whole zooms only)
