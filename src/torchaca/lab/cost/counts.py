"""Counting: one solve and its gradient along one of the axes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import torchaca as aca

from ...report.memory import SavedTensors
from ..variants import StartSeen, Variant, relative_distance
from .problem import DTYPE, Layers, Settings, Wasteful, chained_depth, graph_depth

KEEPS_GRAPH = ("naive", "direct")


@dataclass(frozen=True)
class Point:
    """Where on which axis is measured."""

    axis: str
    span: float
    layers: int
    trials: int

    def row(self, variant: str) -> str:
        """The name of its row in the metrics."""
        return f"{variant} T={self.span:g} layers={self.layers} trials={self.trials} axis={self.axis}"


def points_of(settings: Settings) -> list[Point]:
    """The points of all three axes."""
    s = settings
    return [
        *(Point("N_t", span, s.depth, 1) for span in s.spans),
        *(Point("N_f", s.span, layers, 1) for layers in s.layers),
        *(Point("m", s.span, s.depth, trials) for trials in s.trials),
    ]


def count(settings: Settings, variant: Variant, point: Point) -> dict[str, Any]:
    """The counts of one solve of |z(T)|^2 and its gradient.

    `cost` and `vjps` are numbers of layers, `depth` is in layers; `memory`, the most that autograd holds, and `kept`,
    what it holds between the passes, are in states; `reverse_error` is relative, and None where nothing is computed
    again.
    """
    layers = Layers(settings, point.layers)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    shape = (settings.samples, settings.size)
    z0 = torch.randn(shape, generator=generator, dtype=DTYPE).requires_grad_()
    f = StartSeen(layers)
    control: Any = Wasteful(settings.rtol, settings.atol, trials=point.trials)
    with SavedTensors(besides=[*layers.parameters(), layers.rotation, z0]) as saved:
        sol = aca.solve(
            f, z0, [0.0, point.span], method=variant.method, control=control, gradient=variant.gradient
        )
        loss = sol.ys[-1].square().sum()
        kept = saved.held
        whole = graph_depth(loss) if variant.name in KEEPS_GRAPH else None
        f.start, layers.watched, layers.vjps = None, whole is None, 0
        torch.autograd.grad(loss, (z0, *layers.parameters()))
    stats = sol.stats
    return {
        "variant": variant.name,
        **asdict(point),
        "N_t": stats.accepted,
        "N_r": stats.accepted_backward,
        "N_f": point.layers,
        "m": (stats.accepted + stats.rejected) / stats.accepted,
        "cost": stats.nfe * point.layers + layers.vjps,
        "vjps": layers.vjps,
        "memory": saved.peak / z0.untyped_storage().nbytes(),
        "kept": kept / z0.untyped_storage().nbytes(),
        "depth": _chained(layers, point, stats) if whole is None else whole,
        "reverse_error": _reverse_error(variant, f.start, z0, stats),
        **asdict(stats),
    }


def _chained(layers: Layers, point: Point, stats: aca.Stats) -> float:
    """The depth of local graphs in a row; the rejected trials of a backward integration are in no chain."""
    depth = chained_depth(layers.local_depths, point.layers)
    tried = stats.accepted_backward + stats.rejected_backward
    return depth * stats.accepted_backward / tried if tried else depth


def _reverse_error(variant: Variant, start: Tensor | None, z0: Tensor, stats: aca.Stats) -> float | None:
    if variant.name in KEEPS_GRAPH:
        return None
    if variant.name == "mali":
        return stats.reconstruction_error
    return None if start is None else relative_distance(start, z0)
