"""What every benchmark says beside its numbers: machine, versions, date, command; and tables in Markdown."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch


def described(command: str) -> str:
    """One paragraph: written by which command, where, with what, when."""
    names = ("torch", "torchdiffeq", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"Written by `{command}` on {today}: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread, "
        f"Python {platform.python_version()}, {versions}."
    )


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows with the same keys as a Markdown table; floats with three digits."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = (f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
