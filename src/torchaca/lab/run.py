"""The folder of one run: what was asked, what was measured, and what is needed to go on after a kill.

`config.json` holds every setting, `metrics.jsonl` one line per epoch or row, `checkpoints/` the state of each
trained row. The metrics are the record and the checkpoint says how much of it counts: a line that is newer
than its row's checkpoint is dropped when the run is resumed, and computed again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from . import lock
from .config import read_config, resolved
from .experiment import FREE, Experiment, UsageError, plain
from .files import UNFIT, first_line, load_state, probe, save_state, sync, write
from .machine import machine, now, versions
from .metrics import encode, read_metrics, rewrite

RESULTS = ("summary.json", "summary.md")
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
        self._lines = folder / "metrics.jsonl"
        self.metrics = read_metrics(self._lines, repair=writes)
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
        with self._lines.open("ab") as file:
            new = not file.tell()
            file.write(encode(complete))
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.folder)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the metrics that are not `wanted`."""
        kept = [line for line in self.metrics if wanted(line)]
        if self.writes and len(kept) < len(self.metrics):
            rewrite(self._lines, kept)
        self.metrics = kept

    def cut(self, row: str, epochs: int, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the metrics of a row that its checkpoint, which has done `epochs`, does not know of.

        Raises
        ------
        UsageError
            When they do not hold each epoch that it knows of once; nothing is dropped then.
        """
        lines = self.of(row)
        there = Counter(line["epoch"] for line in lines if isinstance(line.get("epoch"), int))
        if there.total() < len(lines):
            raise UsageError(f"a line of {row!r} in {self._lines} is of no epoch: delete this line")
        known = sum(times == 1 and 0 <= epoch < epochs for epoch, times in there.items())
        if known < epochs:
            raise UsageError(
                f"{self._lines} has {known} of the {epochs} epochs of {row!r} once, and its checkpoint is of all: "
                f"delete {self.checkpoint(row)} to train this row anew"
            )
        self.keep(lambda line: line["row"] != row or keep(line))

    def reread(self) -> None:
        """Take over what other processes have logged."""
        self.metrics = read_metrics(self._lines, repair=self.writes)

    def of(self, row: str) -> list[dict[str, Any]]:
        """The metrics of one row."""
        return [line for line in self.metrics if line["row"] == row]

    def save(self, row: str, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a row: the old one or the new one is there at every moment."""
        save_state(self.checkpoint(row), state)

    def load(self, row: str) -> dict[str, Any] | None:
        """The checkpoint of a row, or None before its first one.

        Raises
        ------
        UsageError
            When it is damaged or no checkpoint.
        """
        path = self.checkpoint(row)
        if not os.path.lexists(path):
            return None
        with self.reading(row):
            state = load_state(path)
            if not isinstance(state, dict):
                raise TypeError(f"it is a {type(state).__name__}")
            return state

    @contextmanager
    def reading(self, row: str) -> Iterator[None]:
        """Say in one sentence what to do when the checkpoint of a row cannot be used.

        Raises
        ------
        UsageError
        """
        path = self.checkpoint(row)
        remedy = f"put back a copy of it, or delete {path} to train this row anew"
        try:
            yield
        except UsageError as error:
            raise UsageError(f"{error}; {remedy}") from error
        except UNFIT as error:
            raise UsageError(f"{path} is no checkpoint of {row!r} ({first_line(error)}): {remedy}") from error

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
    config = read_config(folder)
    if config["experiment"] != experiment.name:
        raise UsageError(f"{folder} holds a run of {config['experiment']}, not of {experiment.name}")
    settings = resolved(experiment, config, options, folder)
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
    config = read_config(folder)
    settings = resolved(experiment, config, options, folder)
    experiment.check(settings)
    return Run(folder, config, writes=False), settings


def changed_versions(config: Mapping[str, Any]) -> list[str]:
    """Which packages are not what the run was started with, one sentence each."""
    first, last = config["sessions"][0]["versions"], config["sessions"][-1]["versions"]
    return [
        f"started with {name} {first[name]}, now {last.get(name)}"
        for name in first
        if first[name] != last.get(name)
    ]


def _open(folder: Path, config: dict[str, Any]) -> Run:
    for name in RESULTS:
        if (folder / name).is_dir():
            raise UsageError(f"{folder / name} is a folder: move it away, the run writes a file of this name")
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
