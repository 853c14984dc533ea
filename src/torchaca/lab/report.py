"""What a run hands back: tables, plots and numbers, written where people and programs find them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .experiment import Experiment, UsageError, command_line, plain
from .files import make, probe, write
from .machine import now
from .run import Run
from .table import Table


@dataclass(frozen=True)
class Report:
    """The outcome of an experiment.

    Attributes
    ----------
    tables : sequence of Table
    plots : mapping
        File name in the run folder -> caption.
    numbers : mapping
        Everything in the tables, unrounded, for `summary.json`.
    first : str
        The first line of the page: what size was run, and what it shows.
    files : sequence of str
        Further files in the run folder that are worth committing.
    """

    tables: Sequence[Table]
    plots: Mapping[str, str]
    numbers: Mapping[str, Any]
    first: str = ""
    files: Sequence[str] = ()


def write_report(run: Run, experiment: Experiment, settings: Any, report: Report) -> None:
    """Write `summary.json` and `summary.md` into the run folder."""
    session = run.config["sessions"][-1]
    summary = {
        "experiment": experiment.name,
        "finished": now(),
        "seconds": round(run.elapsed(), 1),
        "sessions": len(run.config["sessions"]),
        "settings": plain(settings),
        "versions": session["versions"],
        "machine": session["machine"],
        "tables": [asdict(table) for table in report.tables],
        "plots": dict(report.plots),
        **report.numbers,
    }
    write(run.folder / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
    again = command_line(experiment.name, run.config["options"])
    write(run.folder / "summary.md", _page(experiment, summary, report, again).encode())


def _page(experiment: Experiment, summary: Mapping[str, Any], report: Report, again: str) -> str:
    made = {
        "command": f"`{again}`",
        "date": summary["finished"],
        "machine": _items(summary["machine"]),
        "versions": _items(summary["versions"]),
        "settings": _items(summary["settings"]),
        "seconds": f"{summary['seconds']:.0f}, all sessions",
    }
    parts = [
        f"# {experiment.name}\n",
        *([f"{report.first}\n"] if report.first else []),
        f"{experiment.about}\n",
        *(table.markdown() for table in report.tables),
        *(f"![{caption}]({name})\n\n{caption}\n" for name, caption in report.plots.items()),
        "## How it was made\n\n" + "\n".join(f"* {key}: {value}" for key, value in made.items()) + "\n",
    ]
    return "\n".join(parts)


def _items(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in mapping.items())


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def check_docs(docs: Path, experiment: Experiment) -> None:
    """Refuse, before anything is trained, a documentation folder that cannot be written.

    Raises
    ------
    UsageError
    """
    try:
        probe(docs / experiment.name)
    except OSError as error:
        raise UsageError(f"cannot write the results to {docs}: {error.strerror or error}") from error


def publish(run: Run, experiment: Experiment, report: Report, docs: Path) -> Path:
    """Copy what is worth committing (table, plots, summary, configuration) to `docs/NAME`."""
    target = docs / experiment.name
    make(target)
    for name in ("summary.md", "summary.json", "config.json", *report.plots, *report.files):
        write(target / name, (run.folder / name).read_bytes())
    return target
