"""What the folder of a run, or a copy of its results, says about the run: read from files, nothing is run again."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .experiment import UsageError, command_line
from .run import changed_versions, whole_lines
from .table import Table

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
    config = _json(folder / "config.json", ("experiment", "options", "settings", "sessions"))
    if not (folder / "summary.json").is_file():
        return Record(folder, config, {}, [], [], _progress(folder, "has not come to its end"))
    summary = _json(folder / "summary.json", ("finished", "seconds"))
    again = command_line(config["experiment"], config["options"])
    if "tables" not in summary:
        raise UsageError(
            f"{folder} was written by an older version, without its tables: run it again ({again})"
        )
    resumed = len(config["sessions"]) > summary["sessions"]
    progress = (
        _progress(folder, "was resumed after this and has not come to its end again") if resumed else ""
    )
    tables = [Table(**table) for table in summary["tables"]]
    plots = [_plot(folder / name, caption) for name, caption in summary["plots"].items()]
    return Record(folder, config, summary, tables, plots, progress)


def _json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} does not read as JSON: {error}") from error
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise UsageError(f"{path} is not what `torchaca run` writes: it has no {', '.join(missing)}")
    return content


def _progress(folder: Path, state: str) -> str:
    lines = whole_lines(folder / "metrics.jsonl")[0].splitlines()
    spent = f", {duration(json.loads(lines[-1])['elapsed'])}" if lines else ""
    return f"This run {state}: so far {len(lines)} lines of metrics{spent}."


def _plot(path: Path, caption: str) -> Plot:
    if path.suffix not in TYPES:
        raise UsageError(f"{path}: a plot is one of {', '.join(TYPES)}")
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
