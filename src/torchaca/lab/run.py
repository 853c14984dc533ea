"""The folder of one run: what was asked, what was measured, and what is needed to go on after a kill.

`config.json` holds every setting, `metrics.jsonl` one line per epoch or row, `checkpoints/` the state of each
trained row. The metrics are the record and the checkpoint says how much of it counts: a line that is newer
than its row's checkpoint is dropped when the run is resumed, and computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from . import lock
from .experiment import FREE, Experiment, UsageError, plain
from .files import load_state, probe, read_json, save_state, sync, whole_lines, write
from .machine import machine, now, versions

CONFIG = ("experiment", "options", "settings", "sessions")  # what config.json has to hold
PATIENCE = 120.0  # seconds until the first process has opened a run


class Run:
    """An open run folder; made by `start` or `resume`.

    Attributes
    ----------
    folder : Path
    config : dict
        The content of `config.json`.
    metrics : list of dict
        The lines of `metrics.jsonl`, oldest first.
    writes : bool
        Whether this process writes to the folder: of those that torchrun has started, the first one does.
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, writes: bool = True) -> None:
        self.folder = folder
        self.config = config
        self.writes = writes
        self.metrics = _read_metrics(folder / "metrics.jsonl", repair=writes)
        self._before = float(self.metrics[-1]["elapsed"]) if self.metrics else 0.0
        self._opened = perf_counter()

    def elapsed(self) -> float:
        """Seconds spent on this run so far, over all its sessions."""
        return self._before + perf_counter() - self._opened

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        complete = {**line, "elapsed": round(self.elapsed(), 3)}
        self.metrics.append(complete)
        if not self.writes:
            return
        with (self.folder / "metrics.jsonl").open("ab") as file:
            new = not file.tell()
            file.write(_encode(complete))
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.folder)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the metrics that are not `wanted`."""
        kept = [line for line in self.metrics if wanted(line)]
        if self.writes and len(kept) < len(self.metrics):
            write(self.folder / "metrics.jsonl", b"".join(map(_encode, kept)))
        self.metrics = kept

    def cut(self, row: str, epochs: int, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the metrics of a row that its checkpoint, which has done `epochs`, does not know of.

        Raises
        ------
        RuntimeError
            When there are fewer than it knows of.
        """
        self.keep(lambda line: line["row"] != row or keep(line))
        there = sum(line["epoch"] < epochs for line in self.of(row))
        if there != epochs:
            raise RuntimeError(f"{self.folder}/metrics.jsonl has {there} of the {epochs} epochs of {row!r}")

    def reread(self) -> None:
        """Take over what other processes have logged."""
        self.metrics = _read_metrics(self.folder / "metrics.jsonl", repair=self.writes)

    def of(self, row: str) -> list[dict[str, Any]]:
        """The metrics of one row."""
        return [line for line in self.metrics if line["row"] == row]

    def save(self, row: str, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a row: the old one or the new one is there at every moment."""
        save_state(self.checkpoint(row), state)

    def load(self, row: str) -> dict[str, Any] | None:
        """The checkpoint of a row, or None before its first one."""
        path = self.checkpoint(row)
        return load_state(path) if path.exists() else None

    def checkpoint(self, row: str) -> Path:
        """Where the checkpoint of a row is."""
        return self.folder / "checkpoints" / f"{row.replace(' ', '-')}.pt"


def start(experiment: Experiment, options: Mapping[str, Any], folder: Path | None) -> tuple[Run, Any]:
    """Open a new run in `folder`, or in `runs/NAME-TIME`.

    Returns
    -------
    run : Run
    settings : dataclass instance
        What the options mean for this experiment.

    Raises
    ------
    UsageError
        When the folder is in use or cannot be written.
    """
    settings = experiment.resolve(options)
    experiment.check(settings)
    return create(experiment, options, settings, folder or new_folder(experiment)), settings


def new_folder(experiment: Experiment) -> Path:
    """`runs/NAME-TIME`, or with a number behind it where there is one of this second."""
    name = f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(folder for folder in map(Path("runs").joinpath, names) if not folder.exists())


def create(experiment: Experiment, options: Mapping[str, Any], settings: Any, folder: Path) -> Run:
    """Open a new run of checked settings.

    Raises
    ------
    UsageError
        When the folder is in use or cannot be written.
    """
    if (folder / "config.json").exists():
        raise UsageError(
            f"{folder} holds a run already: --resume {folder} continues it, another --out starts anew"
        )
    if folder.is_dir() and not all(map(_of_a_start, folder.iterdir())):
        raise UsageError(f"{folder} is not empty: --out needs a new folder")
    config = {
        "experiment": experiment.name,
        "about": experiment.about,
        "options": {"size": experiment.size, **options},
        "settings": plain(settings),
        "sessions": [],
    }
    return _open(folder, config)


def _of_a_start(path: Path) -> bool:
    """Whether this may be what a start leaves that was killed before the run was open, or one that begins."""
    if path.name == "checkpoints":
        return path.is_dir() and not any(path.iterdir())
    return path.name == lock.NAME or path.suffix == ".tmp"


def resume(experiment: Experiment, options: Mapping[str, Any], folder: Path) -> tuple[Run, Any]:
    """Open a run that was interrupted; what is not among `options` is as the run was started.

    Returns
    -------
    run : Run
    settings : dataclass instance
        What the options mean for this experiment.

    Raises
    ------
    UsageError
        When the folder holds no run, or a run of another configuration: names the setting that differs.
    """
    check_folder(folder)
    config = read_json(folder / "config.json", CONFIG)
    if config["experiment"] != experiment.name:
        raise UsageError(f"{folder} holds a run of {config['experiment']}, not of {experiment.name}")
    settings = experiment.resolve({**config["options"], **options})
    before, after = config["settings"], plain(settings)
    for name in sorted((before.keys() | after.keys()) - FREE):
        if before.get(name) != after.get(name):
            raise UsageError(
                f"{folder} was run with {name} = {before.get(name)}, not {after.get(name)}: "
                "resume it with its own settings, or start a new run"
            )
    experiment.check(settings)
    return _open(folder, config), settings


def check_folder(folder: Path) -> None:
    """Refuse a folder that no run can go on in; nothing is written there.

    Raises
    ------
    UsageError
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no run: there is no {folder / 'config.json'}")
    if not (folder / "checkpoints").is_dir():
        raise UsageError(f"{folder} holds a copy of a run's results: only the run's own folder can go on")


def follow(experiment: Experiment, options: Mapping[str, Any], folder: Path) -> tuple[Run, Any]:
    """Take part in the run that the first of torchrun's processes opens in `folder`.

    Raises
    ------
    UsageError
        When it has not done so after `PATIENCE` seconds.
    """
    path, late = folder / "config.json", perf_counter() + PATIENCE
    while not path.is_file():
        if perf_counter() > late:
            raise UsageError(
                f"{folder}: no run here after {PATIENCE:g} s; every process has to see the same folder"
            )
        sleep(0.1)
    config = json.loads(path.read_text())
    settings = experiment.resolve({**config["options"], **options})
    experiment.check(settings)
    return Run(folder, config, writes=False), settings


def changed_versions(config: Mapping[str, Any]) -> list[str]:
    """Which packages are not what the run was started with, one sentence each."""
    first, last = config["sessions"][0]["versions"], config["sessions"][-1]["versions"]
    return [
        f"started with {name} {first[name]}, now {last[name]}" for name in first if first[name] != last[name]
    ]


def _open(folder: Path, config: dict[str, Any]) -> Run:
    config["sessions"].append({"started": now(), "versions": versions(), "machine": machine()})
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe(folder)
        write(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
    except OSError as error:
        if len(config["sessions"]) == 1:  # so that the same command works once there is room
            for made in (folder / "checkpoints", folder):
                with suppress(OSError):
                    made.rmdir()
        raise UsageError(f"cannot write the run to {folder}: {error.strerror or error}") from error
    return Run(folder, config)


def _encode(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _read_metrics(path: Path, *, repair: bool) -> list[dict[str, Any]]:
    """The lines of a metrics file; a torn one is left out, and with `repair` cut off in the file."""
    lines, torn = whole_lines(path)
    if torn and repair:
        write(path, lines)
    return [json.loads(line) for line in lines.splitlines()]
