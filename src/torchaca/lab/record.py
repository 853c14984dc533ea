"""What the folder of a run, or a copy of its results, says about the run: read from files, nothing is run again."""

from __future__ import annotations

import base64
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import read_config
from .experiment import UsageError, command_line
from .files import expect, read_json
from .metrics import read_metrics
from .run import changed_versions
from .table import Table

SUMMARY = {"finished": str, "seconds": (int, float)}
"""What summary.json has to hold, and of which types; `LATER` is what earlier versions did not write."""
LATER = {"sessions": int, "tables": list, "plots": dict}
TABLE = {"title": str, "columns": list, "rows": list, "notes": list}
TYPES = {".png": "image/png", ".gif": "image/gif", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
"""Suffix of a plot's file -> its media type."""


@dataclass(frozen=True)
class Plot:
    """A picture with its file in it."""

    name: str
    caption: str
    uri: str


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes
    ----------
    folder : Path
    config : mapping
        Of `config.json`.
    summary : mapping
        Of `summary.json`; empty for a run that has not come to its end.
    tables : sequence of Table
    plots : sequence of Plot
    progress : str
        What is known of a run that has not come to its end; empty for others.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    tables: Sequence[Table]
    plots: Sequence[Plot]
    progress: str

    @property
    def name(self) -> str:
        """The experiment's name, with the size that it was run at."""
        size = self.config["options"].get("size")
        return self.config["experiment"] + (f", {size} size" if size else "")

    @property
    def session(self) -> Mapping[str, Any]:
        """The last session: when it was started, machine and versions."""
        return self.config["sessions"][-1]

    @property
    def again(self) -> str:
        """The command that makes such a run."""
        return command_line(self.config["experiment"], self.config["options"])

    @property
    def resume(self) -> str:
        """The command that goes on with this run; empty for a copy of its results."""
        if not (self.folder / "checkpoints").is_dir():
            return ""
        return f"torchaca run {self.config['experiment']} --resume {shlex.quote(str(self.folder))}"

    @property
    def remarks(self) -> Sequence[str]:
        """What a reader of the tables has to know about how they came about."""
        return [f"{change}: the last digits may differ" for change in changed_versions(self.config)]


def read(folder: Path) -> Record:
    """The run in this folder.

    Raises
    ------
    UsageError
        When it is not the folder of a run, or one that lacks a part.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no run: there is no {folder / 'config.json'}")
    _own(folder, "config.json")
    config = read_config(folder)
    path = _own(folder, "summary.json")
    if not os.path.lexists(path):
        return Record(folder, config, {}, [], [], _progress(folder, "has not come to its end"))
    summary, tables = _summary(folder, config)
    resumed = len(config["sessions"]) > summary["sessions"]
    progress = (
        _progress(folder, "was resumed after this and has not come to its end again") if resumed else ""
    )
    plots = [_plot(_own(folder, name), caption) for name, caption in summary["plots"].items()]
    return Record(folder, config, summary, tables, plots, progress)


def _own(folder: Path, name: str) -> Path:
    """A file of the run's folder.

    Raises
    ------
    UsageError
        When the name leads out of the folder, as a path or as a link.
    """
    path = folder / name
    inside = Path(name).name == name and name.isprintable()
    if not inside or os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
        raise UsageError(f"{folder} names {name!r}, which lies outside of it: a page shows a run's own files")
    return path


def _summary(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Table]]:
    """The content of `summary.json`, and the tables in it."""
    path, again = folder / "summary.json", command_line(config["experiment"], config["options"])
    try:
        summary = read_json(path, SUMMARY)
    except UsageError as error:
        raise UsageError(f"{error}; {_anew(folder, config)}") from error
    if "tables" not in summary:
        raise UsageError(
            f"{folder} was written by an older version, without its tables: run it again ({again})"
        )
    try:
        expect(summary, LATER)
        if not math.isfinite(summary["seconds"]):
            raise ValueError("its seconds are not finite")
        return summary, [_table(content) for content in summary["tables"]]
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is not what `torchaca run` writes: {error}; {_anew(folder, config)}"
        ) from error


def _anew(folder: Path, config: Mapping[str, Any]) -> str:
    """What writes a broken summary again."""
    again = Record(folder, config, {}, [], [], "").resume or command_line(
        config["experiment"], config["options"]
    )
    return f"to write it anew: {again}"


def _table(content: Any) -> Table:
    """A table in `summary.json`.

    Raises
    ------
    ValueError
        When it is none.
    """
    expect(content, TABLE)
    table = Table(**{name: content[name] for name in TABLE})
    if not all(isinstance(row, list) and len(row) == len(table.columns) for row in table.rows):
        raise ValueError(f"its table {table.title!r} has rows of other lengths than its columns")
    cells = [*table.columns, *table.notes, *(cell for row in table.rows for cell in row)]
    if not all(isinstance(cell, str) for cell in cells):
        raise ValueError(f"its table {table.title!r} holds other things than text")
    return table


def _progress(folder: Path, state: str) -> str:
    lines = read_metrics(_own(folder, "metrics.jsonl"))
    spent = f", {duration(lines[-1]['elapsed'])}" if lines else ""
    return f"This run {state}: so far {len(lines)} lines of metrics{spent}."


def _plot(path: Path, caption: str) -> Plot:
    if path.suffix not in TYPES:
        raise UsageError(f"{path}: a plot is one of {', '.join(TYPES)}")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot read the plot {path}: it is no file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the plot {path}: {error.strerror}") from error
    return Plot(path.name, caption, f"data:{TYPES[path.suffix]};base64,{base64.b64encode(content).decode()}")


def duration(seconds: float) -> str:
    """Seconds as people say them: `58 s`, `2 min 5 s`, `3 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
