"""`torchaca check FILE:FUNCTION`: `check_gradient` on a model in a file of the user's."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.status import Status

import torchaca as aca
from torchaca.errors import did_you_mean
from torchaca.report.check import COLUMNS, GradientReport

from .experiment import UsageError, check_name
from .table import Table, terminal

NEEDED = ("f", "y0", "t", "loss")


def check(target: str, gradients: Sequence[str] | None = None) -> int:
    """Check the gradients of the model that `FILE:FUNCTION` builds, and print the table.

    Returns
    -------
    int
        The exit code of the command.

    Raises
    ------
    UsageError
        Where there is no such file or function, or where it does not return a model.
    """
    call = arguments_of(target)
    for name in gradients or ():
        check_name("gradient", name, aca.GRADIENTS)
    if gradients:
        call["gradients"] = gradients
    console = terminal()
    try:
        with Status("solving with every gradient method", console=console):
            report = aca.check_gradient(**call)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the model of {target} cannot be checked: {error}{_place(error, target)}"
        ) from error
    show(report, f"gradients of {target}", console)
    return 0


def show(report: GradientReport, title: str, console: Console) -> None:
    """Print the rows, the reasons of those that failed, and what to make of it."""
    dashes = ("-",) * (len(COLUMNS) - 1)
    rows = [row.cells() if row.failure is None else (row.gradient, *dashes) for row in report.rows]
    failures = [f"{row.gradient}: {row.failure}" for row in report.rows if row.failure is not None]
    *notes, advice = report.notes
    Table(title, COLUMNS, rows, [*failures, *notes]).show(console)
    console.print(advice, style="bold", markup=False, highlight=False)


def arguments_of(target: str) -> dict[str, Any]:
    """What `FILE:FUNCTION` returns, as arguments of `check_gradient`.

    Raises
    ------
    UsageError
    """
    build = _function(target)
    try:
        made = build()
    except Exception as error:
        raise UsageError(f"{target} failed: {_last_line(error)}{_place(error, target)}") from error
    if isinstance(made, tuple) and len(made) == len(NEEDED):
        return dict(zip(NEEDED, made, strict=True))
    if not isinstance(made, Mapping):
        shown = f"{len(made)} values" if isinstance(made, tuple) else f"a {type(made).__name__}"
        raise UsageError(
            f"{target} returned {shown}: return (f, y0, t, loss), or a dict of check_gradient's arguments"
        )
    missing = [name for name in NEEDED if name not in made]
    if missing:
        raise UsageError(f"{target} returned a dict without {', '.join(map(repr, missing))}")
    return dict(made)


def _function(target: str) -> Callable[[], Any]:
    file, colon, name = target.rpartition(":")
    if not (colon and file and name):
        raise UsageError(f"{target!r} is not FILE:FUNCTION, such as model.py:build")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"there is no file {file}")
    module = _loaded(path)
    found = getattr(module, name, None)
    if found is None:
        own = [key for key, thing in vars(module).items() if callable(thing) and not key.startswith("_")]
        raise UsageError(
            f"{file} has no {name}.{did_you_mean(name, own) if own else ' It defines no function.'}"
        )
    if not callable(found):
        raise UsageError(
            f"{name} in {file} is a {type(found).__name__}: it has to be a function without arguments"
        )
    return found


def _loaded(path: Path) -> ModuleType:
    """The file as a module; it may import its neighbours, as `python FILE` may."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_checked", path)  # whatever the file is called
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file: its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded: {_last_line(error)}{_place(error, str(path))}") from error
    return module


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _place(error: Exception, target: str) -> str:
    """` (line 12)`, of the user's file, where the error passed through it."""
    file = Path(target.partition(".py")[0] + ".py").resolve()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
    return f" (line {lines[-1]})" if lines else ""
