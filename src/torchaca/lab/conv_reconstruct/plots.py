"""The pictures of the reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plots import figure, save
from ..table import number
from ..variants import relative_distance
from .flow import Settings, Trip

SHOWN = 6
SHADES = ("C0", "C1", "C2")


def plot_images(trip: Trip, T: float, path: Path) -> None:
    """The first images: one column each, one row for each stage of the trip.

    Reconstructions are shown on the scale of the input, each channel of z(T) on its own.
    """
    columns = min(SHOWN, len(trip.start))
    stages = {
        "input": trip.start,
        f"z({T:g})": _stretched(trip.end),
        "reverse solve": trip.reverse,
        "ACA's record": trip.recorded,
    }
    made = figure(1.5 * columns + 1.8, 6.4)
    panels = made.subplots(len(stages), columns, squeeze=False)
    for (name, images), row in zip(stages.items(), panels, strict=True):
        for image, panel in zip(images[:columns], row, strict=True):
            panel.imshow(_pixels(image), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        error = (
            ""
            if name.startswith(("input", "z("))
            else f"\nerror {number(relative_distance(images, trip.start))}"
        )
        row[0].set_ylabel(f"{name}{error}", fontsize=10)
    save(made, path)


def _stretched(images: Tensor) -> Tensor:
    """Each channel on the range of all but its 4 % most extreme values."""
    ends = torch.tensor([0.02, 0.98], dtype=images.dtype)
    low, high = images.flatten(2).quantile(ends, dim=2)[..., None, None]
    return (images - low) / (high - low).clamp(min=torch.finfo(images.dtype).tiny)


def _pixels(image: Tensor) -> np.ndarray:
    return torch.nan_to_num(image).clamp(0, 1).permute(1, 2, 0).numpy()


def plot_errors(lines: Mapping[str, Mapping[str, Any]], settings: Settings, path: Path) -> None:
    """Relative error of the reverse solve over T; ACA's record is exact and has no place on a log scale."""
    made = figure(7, 4.5)
    axes = made.subplots()
    for shade, activation in zip(SHADES, settings.activations, strict=False):
        found = [line for line in lines.values() if line.get("activation") == activation]
        axes.plot([line["T"] for line in found], [line["reverse"] for line in found], ".", color=shade)
        times = sorted({line["T"] for line in found})
        medians = [median([line["reverse"] for line in found if line["T"] == T]) for T in times]
        axes.plot(times, medians, color=shade, label=activation)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(yscale="log", xlabel="T", ylabel="relative error of the reverse solve's start")
    largest = max((line["recorded"] for line in lines.values() if "recorded" in line), default=0.0)
    axes.set_title(f"Largest error of ACA's record: {number(largest)}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    save(made, path)
