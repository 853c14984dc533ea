"""One call of `torchaca run`, once its arguments are read."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .experiment import Experiment, UsageError
from .lock import NAME, at_work
from .processes import first, launched
from .report import check_docs, publish, write_report
from .run import Run, changed_versions, check_folder, create, follow, new_folder, resume
from .table import terminal

INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def carry_out(
    experiment: Experiment,
    options: Mapping[str, Any],
    *,
    out: Path | None,
    resumed: Path | None,
    docs: Path | None,
) -> int:
    """Open the run, carry it out, print and write its report.

    Returns
    -------
    int
        The exit code of the command.

    Raises
    ------
    UsageError
        Before anything is trained.
    """
    torch.set_num_threads(experiment.resolve(options).threads)
    if launched() and not experiment.shared:
        raise UsageError(f"{experiment.name} trains in one process: start it without torchrun")
    if launched() and resumed is None and out is None:
        raise UsageError("under torchrun, --out has to name the folder that all processes share")
    if docs and first():
        check_docs(docs, experiment)
    with _opened(experiment, options, out, resumed) as (run, settings):
        return _to_its_end(experiment, run, settings, docs)


@contextmanager
def _opened(
    experiment: Experiment, options: Mapping[str, Any], out: Path | None, resumed: Path | None
) -> Iterator[tuple[Run, Any]]:
    """The run in its folder, where no other run is at work meanwhile.

    Of torchrun's processes, the first one sees to that.
    """
    if not first():
        yield follow(experiment, options, resumed or out or Path())
    elif resumed is None:
        settings = experiment.resolve(options)
        experiment.check(settings)  # before anything is written
        folder = out or new_folder(experiment)
        with at_work(folder):
            yield create(experiment, options, settings, folder), settings
    elif out is not None:
        raise UsageError("--out has no effect beside --resume: the run stays in its folder")
    else:
        if not (resumed / NAME).exists():  # else another process may be about to write what is looked for
            check_folder(resumed)
        with at_work(resumed):
            run, settings = resume(experiment, options, resumed)
            for change in changed_versions(run.config):
                print(
                    f"torchaca: note: {change}: the last digits may differ from an uninterrupted run",
                    file=sys.stderr,
                )
            yield run, settings


def _to_its_end(experiment: Experiment, run: Run, settings: Any, docs: Path | None) -> int:
    again = f"torchaca run {experiment.name} --resume {shlex.quote(str(run.folder))}"
    try:
        _report(experiment, run, settings, docs)
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on: {again}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in DISK:
            _tell(error, run.folder, again)
            raise
        print(f"torchaca: error: {error}\nonce there is room, to go on: {again}", file=sys.stderr)
        return 1
    return 0


def _tell(error: OSError, folder: Path, again: str) -> None:
    """Say in one sentence what is wrong with a file in the run's folder.

    Raises
    ------
    UsageError
        Where the error is about such a file.
    """
    path = Path(os.path.realpath(str(error.filename2 or error.filename)))
    if Path(os.path.realpath(folder)) in path.parents:
        raise UsageError(f"{path}: {error.strerror}; once that is put right, to go on: {again}") from error


def _report(experiment: Experiment, run: Run, settings: Any, docs: Path | None) -> None:
    if not run.writes:
        experiment.main(run, settings, Console(quiet=True))
        return
    console = terminal()
    console.print(f"{experiment.name}: {run.folder}", highlight=False, soft_wrap=True)
    report = experiment.main(run, settings, console)
    write_report(run, experiment, settings, report)
    for table in report.tables:
        table.show(console)
    console.print(f"plots, table and numbers: {run.folder}", highlight=False, soft_wrap=True)
    if docs:
        console.print(f"copied to {publish(run, experiment, report, docs)}", highlight=False, soft_wrap=True)
