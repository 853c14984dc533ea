"""One workload, all contestants: set up one after the other, then timed in turns."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .contestants import Contestant
from .floor import Floor
from .process import Process
from .protocol import Refusal
from .workloads import Arrays, Counts, Result, Workload

K = TypeVar("K")
NOTHING = Counts()
TURN = 0.1
"""Seconds."""


@dataclass(frozen=True)
class Row:
    """What one contestant showed on one workload; `reason` instead, where it has no numbers."""

    contestant: Contestant
    reason: str | None = None
    error: float | None = None
    gradient_error: float | None = None
    counts: Counts = NOTHING
    forward: float = float("nan")
    total: float = float("nan")
    quartiles: tuple[float, float] = (float("nan"), float("nan"))
    peak: int | None = None
    syncs: int | None = None
    first: float | None = None
    warm: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Plan:
    """How long to measure: at least `least` rounds, at most `rounds`, none begun after `seconds`."""

    rounds: int
    seconds: float
    least: int
    device: str


def measure(
    w: Workload,
    workers: Mapping[Contestant, Process],
    warm_workers: Mapping[Contestant, Process],
    reference: Result,
    floor: Floor,
    plan: Plan,
) -> list[Row]:
    """The rows of one table."""
    ready: dict[Contestant, float] = {}
    found: dict[Contestant, Result] = {}
    refused: dict[Contestant, str] = {}
    for contestant, worker in workers.items():
        if not contestant.takes(w):
            continue
        first = worker.ask("setup", w, dict(contestant.variant), plan.device)
        result = first if isinstance(first, Refusal) else worker.ask("result")
        if isinstance(result, Refusal):
            refused[contestant] = result.reason
        else:
            ready[contestant], found[contestant] = first, result
        say(f"  {contestant.name}: " + refused.get(contestant, "ready"))
    warm = {c: p.ask("setup", w, dict(c.variant), plan.device) for c, p in warm_workers.items() if c in ready}
    peaks = {c: workers[c].ask("peak") for c in ready}
    syncs = {c: workers[c].ask("syncs") for c in ready}
    times = rounds(w, {c: workers[c] for c in ready}, plan)
    rows = []
    for contestant in workers:
        if contestant in refused:
            rows.append(Row(contestant, refused[contestant]))
        elif contestant in ready:
            rows.append(
                _row(
                    contestant,
                    found[contestant],
                    times[contestant],
                    reference,
                    floor,
                    peak=_number(peaks[contestant]),
                    syncs=_number(syncs[contestant]),
                    first=ready[contestant],
                    warm=_number(warm.get(contestant)),
                )
            )
    return rows


def rounds(w: Workload, workers: Mapping[K, Process], plan: Plan) -> dict[K, list[Any]]:
    """`(forward, total)` seconds of training steps, in turns; see `worker.turn`."""
    times: dict[K, list[Any]] = {key: [] for key in workers}
    end = time.monotonic() + plan.seconds
    done = 0
    while done < plan.rounds and (done < plan.least or time.monotonic() < end):
        for key, worker in workers.items():
            times[key].append(worker.ask("turn", TURN))
        done += 1
    say(f"{w.name}: {done} rounds")
    return times


def _row(
    contestant: Contestant,
    result: Result,
    times: Sequence[Any],
    reference: Result,
    floor: Floor,
    **measured: Any,
) -> Row:
    bad = [t for t in times if isinstance(t, Refusal)]
    if bad:
        return Row(contestant, bad[0].reason)
    forward, total = zip(*times, strict=True)
    low, _, high = statistics.quantiles(total, n=4) if len(total) > 1 else (total[0],) * 3
    return Row(
        contestant,
        None,
        _distance(result.y1, reference.y1),
        gradient_distance(result.gradients, reference.gradients),
        result.counts,
        statistics.median(forward),
        statistics.median(total),
        (low, high),
        floor=floor.seconds(result.counts),
        **measured,
    )


def gradient_distance(found: Arrays, true: Arrays) -> float | None:
    """The largest relative error of a gradient; None where one is missing."""
    if set(found) != set(true):
        return None
    return max(_distance(found[name], true[name]) for name in true)


def _distance(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm((found - true).ravel()) / np.linalg.norm(true.ravel()))


def _number(reply: Any) -> Any:
    return None if isinstance(reply, Refusal) else reply


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)
