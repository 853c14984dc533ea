"""Experiments that train nothing: independent cases, each measured once, one line of metrics each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from rich.console import Console

from torchaca.errors import SolverError

from .progress import bar
from .run import Run

Measurement = Callable[[], Mapping[str, Any]]


def measure(run: Run, console: Console, what: str, cases: Mapping[str, Measurement]) -> None:
    """Log one line for every case, by the name of its row, that the run folder does not have yet."""
    known = {line["row"] for line in run.metrics}
    left = [row for row in cases if row not in known]
    with bar(console, what, len(cases), len(cases) - len(left)) as progress:
        for row in left:
            run.log({"row": row, **attempt(cases[row])})
            progress.advance({"case": row})


def attempt(measurement: Measurement) -> dict[str, Any]:
    """What was measured, and the seconds it took; `failed` is the kind of the error where a solve failed."""
    begin = perf_counter()
    try:
        found = dict(measurement())
    except SolverError as error:
        found = {"failed": error.kind, "backward": error.backward, "message": str(error)}
    return {**found, "seconds": perf_counter() - begin}
