"""Progress while rows are trained: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_SECONDS = 10.0  # plain lines come no more often than this


class Bar(Protocol):
    """The progress of one row."""

    def advance(self, metrics: Mapping[str, Any]) -> None:
        """One epoch more is done, with these metrics."""
        ...


@contextmanager
def bar(
    console: Console, name: str, total: int, done: int = 0, seconds: float | None = None
) -> Iterator[Bar]:
    """The progress of one row of `total` epochs, `done` of them in an earlier session.

    `seconds` is the time the row is given, where it is limited.
    """
    pace = Pace(total, done, seconds)
    if console.is_terminal:
        with _live(console) as progress:
            yield LiveBar(progress, name, pace)
    else:
        lines = Lines(console, name, pace)
        yield lines
        lines.close()


def _live(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
    )
    return Progress(*columns, console=console, refresh_per_second=4)


class Pace:
    """How far a row is and how long the rest takes."""

    def __init__(self, total: int, done: int, seconds: float | None) -> None:
        self.total, self.done, self.seconds = total, done, seconds
        self._first = done
        self._started = perf_counter()

    def left(self) -> float:
        """Seconds to the end of the row, at the mean pace of this session."""
        spent = perf_counter() - self._started
        left = spent / max(self.done - self._first, 1) * (self.total - self.done)
        return left if self.seconds is None else min(left, max(self.seconds - spent, 0.0))


class LiveBar:
    """A bar of rich on a terminal."""

    def __init__(self, progress: Progress, name: str, pace: Pace) -> None:
        self._progress, self._pace = progress, pace
        self._task = progress.add_task(name, total=pace.total, completed=pace.done, text="")

    def advance(self, metrics: Mapping[str, Any]) -> None:
        self._pace.done += 1
        self._progress.update(self._task, advance=1, text=describe(metrics, self._pace))


class Lines:
    """Lines of text where output is not a terminal: now and then, and at the end of the row."""

    def __init__(self, console: Console, name: str, pace: Pace) -> None:
        self._console, self._name, self._pace = console, name, pace
        self._last = perf_counter()
        self._pending = ""

    def advance(self, metrics: Mapping[str, Any]) -> None:
        self._pace.done += 1
        self._pending = describe(metrics, self._pace)
        if perf_counter() - self._last > LINE_SECONDS:
            self.close()

    def close(self) -> None:
        """Print what is not printed yet."""
        if self._pending:
            where = f"{self._name}  {self._pace.done}/{self._pace.total}"
            self._console.print(f"{where}  {self._pending}", soft_wrap=True, highlight=False, markup=False)
        self._pending = ""
        self._last = perf_counter()


def describe(metrics: Mapping[str, Any], pace: Pace) -> str:
    """One epoch in a line: loss, evaluations forward and backward, rejected trials, time left.

    A model without a solver has no evaluations. What is no epoch says which `case` it is.
    """
    minutes, seconds = divmod(round(pace.left()), 60)
    if "case" in metrics:
        return f"{metrics['case']}  left {minutes}:{seconds:02d}"
    if "failed" in metrics:
        return f"failed: {metrics['failed']}"
    return f"loss {metrics['loss']:.3g}  {_cost(metrics)}left {minutes}:{seconds:02d}"


def _cost(metrics: Mapping[str, Any]) -> str:
    """The evaluations of a solver and its rejected trials; nothing for a model without one."""
    if "nfe" not in metrics:
        return ""
    nfe = f"NFE {_forward(metrics)} fwd {metrics['nfe_backward']:.0f} bwd"
    return f"{nfe}  rejected {metrics['rejected']:.0f}  "


def _forward(metrics: Mapping[str, Any]) -> str:
    """The evaluations of a forward pass, and in brackets those of each block where there are several."""
    blocks = [f"{value:.0f}" for name, value in metrics.items() if name.startswith("nfe_block")]
    return f"{metrics['nfe']:.0f}" + (f" ({' '.join(blocks)})" if blocks else "")
