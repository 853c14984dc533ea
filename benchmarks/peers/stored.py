"""What stands in docs/results/peers.md, read again: for its picture, and for README's three numbers.

`python -m benchmarks.peers.stored` draws the one and writes the others, without measuring anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .process import ROOT

PAGE = ROOT / "docs" / "results" / "peers.md"
README = ROOT / "README.md"
TOTAL = "forward + backward, ms"
PEER, OURS, COMPILED = "torchdiffeq odeint", "torchaca", "torchaca, compile=True"
START, END = "<!-- measured: python -m benchmarks.peers.stored -->\n", "<!-- end -->\n"

Cells = Mapping[str, Mapping[str, str]]
"""The cells of a table, by contestant and column."""


def tables(page: str) -> dict[str, Cells]:
    """The tables of times of the page, by the titles of their workloads."""
    found = {}
    for title, body in re.findall(r"^## (.+)\n\n((?:\|.*\n)+)", page, re.MULTILINE):
        columns, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines())
        if TOTAL in columns:
            found[title] = {line[0]: dict(zip(columns, line, strict=True)) for line in lines}
    return found


def milliseconds(page: str) -> dict[str, dict[str, float]]:
    """The training steps of the page, by workload and contestant; those that have one."""
    return {
        title: {name: float(cells[TOTAL]) for name, cells in table.items() if cells[TOTAL] != "-"}
        for title, table in tables(page).items()
    }


def three_numbers(page: str) -> str:
    """README's lines: two workloads on which the solver counts, and one on which f does."""
    by_name = {title.split(":")[0].lower(): table for title, table in tables(page).items()}
    lines = []
    for name in ("small MLP", "three bodies"):
        peer, ours, compiled = (float(by_name[name.lower()][c][TOTAL]) for c in (PEER, OURS, COMPILED))
        lines.append(
            f"- **{peer / compiled:.0f} times** as fast with `compile=True` on {name}: {compiled:.3g} ms, torchdiffeq "
            f"{peer:,.0f} ms; {peer / ours:.1f} times as fast without."
        )
    conv = by_name["conv block"]
    peer, ours = float(conv[PEER][TOTAL]), float(conv[OURS][TOTAL])
    held, theirs = float(conv[OURS]["peak, MB"]), float(conv[PEER]["peak, MB"])
    counts = [conv[c]["evaluations"].split(" + ")[0] for c in (OURS, PEER)]
    worse = float(conv[PEER]["error"]) / float(conv[OURS]["error"])
    lines.append(
        f"- **{peer / ours:.2f} times** as fast on a convolution block, which has hardly anything but f to evaluate: "
        f"{counts[0]} times, torchdiffeq {counts[1]}, whose Heun takes a stage of the step before for f and has "
        f"{worse:.1f} times the error ({ours:.0f} ms, torchdiffeq {peer:.0f} ms; {held:.0f} MB, not {theirs:.0f})."
    )
    return "\n".join(lines) + "\n"


def with_numbers(readme: str, page: str) -> str:
    """README with the page's numbers between its two marks."""
    before, rest = readme.split(START)
    return before + START + "\n" + three_numbers(page) + "\n" + END + rest.split(END, 1)[1]


def redraw(folder: Path) -> None:
    """The picture of the page in this folder."""
    from . import plots

    plots.training_steps(milliseconds((folder / PAGE.name).read_text()), folder / "peers.png")


if __name__ == "__main__":
    redraw(PAGE.parent)
    README.write_text(with_numbers(README.read_text(), PAGE.read_text()))
