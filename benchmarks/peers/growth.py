"""How torchaca's cost grows with the number of steps and with the batch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .contestants import Contestant
from .measure import TURN
from .process import Process
from .protocol import Refusal
from .workloads import Workload, with_batch, workloads

SPANS = (5.0, 10.0, 20.0, 40.0, 80.0)
BATCHES = (256, 512, 1024, 2048, 4096)
REPEATS = 5


@dataclass(frozen=True)
class Point:
    """A training step at one size; `size` is accepted steps, or samples."""

    size: float
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The points of one contestant along one axis."""

    contestant: str
    axis: str
    points: tuple[Point, ...]

    @property
    def exponent(self) -> float:
        """p of seconds ~ size^p, by least squares in logarithms; 1 is linear, less where a fixed cost remains."""
        sizes, seconds = zip(*((p.size, p.seconds) for p in self.points), strict=True)
        return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])

    @property
    def line(self) -> tuple[float, float]:
        """Seconds for each further unit of size, and the share of the variance that a straight line explains."""
        sizes, seconds = (np.array(x) for x in zip(*((p.size, p.seconds) for p in self.points), strict=True))
        slope, offset = np.polyfit(sizes, seconds, 1)
        residual = seconds - (slope * sizes + offset)
        return float(slope), 1 - float(residual.var() / seconds.var())


def curves(contestants: Sequence[Contestant], patience: float, device: str) -> list[Curve]:
    """Steps by three bodies that go on for longer, samples by the small MLP."""
    bodies, small = workloads()["three-body"], workloads()["small"]
    by_steps = [replace(bodies, t1=t1 / 100, tolerance=1e-7) for t1 in SPANS]
    by_batch = [with_batch(small, batch) for batch in BATCHES]
    found = []
    for contestant in contestants:
        worker = Process(contestant.library, patience)
        for axis, family in (("accepted steps", by_steps), ("samples", by_batch)):
            points = [_point(worker, contestant, w, axis, device) for w in family]
            kept = tuple(p for p in points if p is not None)
            if len(kept) > 1:
                found.append(Curve(contestant.name, axis, kept))
        worker.end()
    return found


def _point(worker: Process, contestant: Contestant, w: Workload, axis: str, device: str) -> Point | None:
    if isinstance(worker.ask("setup", w, dict(contestant.variant), device), Refusal):
        return None
    counts = worker.ask("result").counts
    times = [worker.ask("turn", TURN)[1] for _ in range(REPEATS)]
    size = counts.accepted if axis == "accepted steps" else len(w.y0)
    return Point(size, counts.forward + (counts.backward or 0), statistics.median(times))
