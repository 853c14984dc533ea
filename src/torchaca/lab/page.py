"""`torchaca report`: one HTML page about several runs, with everything in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import torchaca as aca

from .experiment import UsageError
from .files import write
from .lock import writing
from .machine import now
from .record import Record, duration, read

TEMPLATES = Path(__file__).with_name("templates")
PAPER = "paper"
"""What the names of columns begin with that hold what the paper says."""


def report(folders: Sequence[Path], out: Path) -> int:
    """Write the page about the runs in these folders to `out`.

    Returns
    -------
    int
        The exit code of the command.

    Raises
    ------
    UsageError
        When a folder holds no run, or when the page cannot be written.
    """
    for folder in folders:
        if [other.resolve() for other in folders].count(folder.resolve()) > 1:
            raise UsageError(f"{folder} is named twice")
    content = render([read(folder) for folder in folders]).encode(errors="replace")
    try:
        with writing(out.parent):
            write(out, content)
    except OSError as error:
        raise UsageError(f"cannot write the report to {out}: {error.strerror or error}") from error
    print(f"{out}: {len(folders)} run{'s' * (len(folders) > 1)}, {len(content) / 1e6:.1f} MB")
    return 0


def render(records: Sequence[Record]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(prose=prose, text=text, duration=duration)
    template = environment.get_template("report.html")
    return template.render(records=records, made=now(), version=aca.__version__, paper=PAPER)


def prose(words: str) -> Markup:
    """Text of a table or a caption: what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(words))))


def text(value: Any) -> str:
    """A setting as it reads in a table."""
    if isinstance(value, list):
        return ", ".join(f"({text(item)})" if isinstance(item, list) else text(item) for item in value)
    return "none" if value is None else str(value)
