"""A report as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100
COLUMNS = ("gradient", "error: solution", "error: ODE", "forward", "backward", "evaluations", "memory")
WIDTHS = (24, 15, 10, 9, 9, 13, 8)


def duration(seconds: float) -> str:
    """`"12.3 ms"`."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def line(cells: Sequence[str]) -> str:
    """One row of the table."""
    numbers = zip(cells[1:], WIDTHS[1:], strict=True)
    return f"{cells[0]:<{WIDTHS[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in numbers)


def wrapped(text: str, first: str, rest: str) -> list[str]:
    """Text in lines of `WIDTH`, with indents of the first line and of the rest."""
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    return wrapper.wrap(" ".join(text.split())) or [first.rstrip()]
