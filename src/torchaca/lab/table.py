"""Tables of results, for the terminal and as Markdown, and how numbers are written in them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

NONE = "-"
PLAIN_WIDTH = 110  # columns of a log file, which has no width of its own


@dataclass(frozen=True)
class Table:
    """Text in rows and columns, with notes below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        """The table as a section of a Markdown page."""
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        table = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        notes = "\n".join(f"* {note}" for note in self.notes)
        return f"## {self.title}\n\n{table}\n" + (f"\n{notes}\n" if notes else "")

    def show(self, console: Console) -> None:
        """Print the table and its notes."""
        table = RichTable(title=Text(self.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for i, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        for note in self.notes:
            console.print(Text(f"* {note}", "dim"))
        console.print()


def terminal() -> Console:
    """The terminal, or a log file that is wide enough for the tables."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console


def number(value: float | None, digits: int = 2) -> str:
    """A number to `digits` significant digits; `-` where there is none."""
    if value is None:
        return NONE
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def count(value: float | None) -> str:
    """A mean count, as a whole number; `-` where there is none."""
    return NONE if value is None else f"{value:.0f}"


def median(values: Sequence[float]) -> float | None:
    """The median, None of nothing."""
    return statistics.median(values) if values else None


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds (n - 1 in the denominator), None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float]) -> str:
    """`mean±std`, or the only value there is."""
    std = deviation(values)
    return number(mean(values)) if std is None else f"{number(mean(values))}±{number(std)}"
