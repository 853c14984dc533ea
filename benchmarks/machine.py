"""What benchmarks share: their command line, what they say beside their numbers, and pages in Markdown."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch


def command_line(doc: str | None, **sizes: int) -> argparse.ArgumentParser:
    """A benchmark's options: whole numbers and their defaults, and `--write`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--write", type=Path, help="Markdown file for the page")
    return parser


def publish(text: str, path: Path | None) -> None:
    """Print a page, and write it where somebody asked for that."""
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip("\n") + "\n")


def described(command: str, versions: Mapping[str, str] | None = None) -> str:
    """One paragraph: written by which command, where, with what (by default torch, torchdiffeq and numpy), when."""
    if versions is None:
        versions = {name: version(name) for name in ("torch", "torchdiffeq", "numpy")}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"Written by `{command}` on {today}: {hardware()}, {torch.get_num_threads()} thread, "
        f"Python {platform.python_version()}, {named}."
    )


def hardware() -> str:
    """The processor and its cores, and the GPU if there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {os.cpu_count()} cores{gpu}"


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
