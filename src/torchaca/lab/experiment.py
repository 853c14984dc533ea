"""What an experiment is: a value that the command can check, run, resume and report."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torchaca as aca
from torchaca.errors import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from .report import Report
    from .run import Run

DTYPES = ("float32", "float64")
FREE = frozenset({"time_limit", "devices", "strategy"})
"""Settings that may change between the sessions of one run: how long it takes, and how many devices share the work."""


class UsageError(Exception):
    """The command cannot be carried out as given; the message says what to change."""


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes
    ----------
    name, about : str
        Its name on the command line, and one sentence about it.
    defaults : dataclass instance
        Every setting with its value. A field named like an option of the command makes the experiment
        take it.
    sizes : mapping
        Size name -> settings that differ from `defaults`.
    main : callable
        `main(run, settings, console)` trains what is not trained yet and returns the report.
    size : str
        The size that is run when none is asked for.
    check : callable, optional
        `check(settings)` raises `UsageError` where something that the settings name is missing, before
        anything is written.
    shared : bool
        Whether torchrun may start it: `main` then leaves all but the training to the process whose `run.writes`.
    """

    name: str
    about: str
    defaults: Any
    sizes: Mapping[str, Mapping[str, Any]]
    main: Callable[[Run, Any, Console], Report]
    size: str = "cpu"
    check: Callable[[Any], None] = lambda settings: None
    shared: bool = False

    def resolve(self, options: Mapping[str, Any]) -> Any:
        """The settings for the options of the command: defaults, then the size's, then the options' own.

        Raises
        ------
        UsageError
            Naming an option this experiment does not take, or a value that does not exist.
        """
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        size: str = given.pop("size", self.size)
        check_name("size", size, self.sizes)
        takes = {field.name for field in dataclasses.fields(self.defaults)}
        for name in given:
            if name not in takes:
                raise UsageError(f"{self.name} has no {flag(name)}: it would have no effect")
        settings = dataclasses.replace(self.defaults, **self.sizes[size])
        settings = dataclasses.replace(settings, **given)
        _check(settings)
        return settings


def plain(settings: Any) -> dict[str, Any]:
    """Settings as they read back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def flag(option: str) -> str:
    """The option as it is given on the command line."""
    return f"--{option.replace('_', '-')}"


def command_line(experiment: str, options: Mapping[str, Any]) -> str:
    """The command that runs an experiment with these options."""
    words = ["torchaca", "run", experiment]
    for name, value in options.items():
        words += [flag(name), *map(str, value if isinstance(value, list | tuple) else (value,))]
    return shlex.join(words)


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that does not exist, with the names that do.

    Raises
    ------
    UsageError
        With a suggestion where one is near.
    """
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names).partition(" Known:")[0]
        raise UsageError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(names)}.")


def _check(settings: Any) -> None:
    """The checks that hold for every experiment that has the setting."""
    values = vars(settings)
    for name in _distinct("gradient", values):
        check_name("gradient", name, aca.GRADIENTS)
    for name in _distinct("dtype", values):
        check_name("dtype", name, DTYPES)
    if "method" in values:
        _check_method(values["method"])
    if values.get("seeds", 1) < 1:
        raise UsageError(f"--seeds {values['seeds']}: at least one seed is needed")
    limit = values.get("time_limit")
    if limit is not None and not limit > 0:
        raise UsageError(f"--time-limit {limit:g}: a number of seconds above 0 is needed")


def _check_method(name: str) -> None:
    """All experiments compare methods at given tolerances, so the method has to be adaptive."""
    check_name("method", name, aca.METHODS)
    if not aca.METHODS[name].adaptive:
        adaptive = ", ".join(other for other, method in aca.METHODS.items() if method.adaptive)
        raise UsageError(f"--method {name} has no step-size control. Those that have: {adaptive}.")


def _distinct(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    names = tuple(values.get(name, ()))
    for one in names:
        if names.count(one) > 1:
            raise UsageError(f"--{name} names {one!r} twice")
    return names
