"""What the plots of all experiments share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .files import write

COLOURS = {
    "aca": "C0",
    "direct": "C2",
    "naive": "C1",
    "adjoint": "C3",
    "adjoint interpolated": "C6",
    "mali": "C4",
}
MARKERS = {"aca": "o", "direct": "+", "naive": "x", "adjoint": "s", "adjoint interpolated": "d", "mali": "^"}


def figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    content = io.BytesIO()
    made.savefig(content, format="png", dpi=110)
    write(path, content.getbuffer())


def colour(gradient: str) -> str:
    """The colour of a gradient method in every plot."""
    return COLOURS.get(gradient, "C7")


def marker(gradient: str) -> str:
    """The marker of a gradient method in every plot."""
    return MARKERS.get(gradient, ".")


def look(gradient: str) -> dict[str, Any]:
    """Colour, line and marker of a gradient method in every plot; aca's is hollow: direct's is often inside of it."""
    return {
        "color": colour(gradient),
        "marker": marker(gradient),
        "markersize": 7 if gradient == "aca" else 6,
        "markerfacecolor": "none" if gradient == "aca" else colour(gradient),
        "linewidth": 1,
    }
