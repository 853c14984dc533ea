"""What comes out of the toy experiment: two tables and two plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from rich.console import Console

from ..report import Report
from ..run import Run
from ..table import NONE, Table, number
from .errors import Case, Settings, measure
from .plots import AGAINST, PLOTS, plot, select

LEGEND = "An error of zero is drawn at the precision's epsilon, a solve that failed as a cross at the top."
COLUMNS = (5.0, 10.0, 15.0, 20.0)

Lines = Sequence[Mapping[str, Any]]


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Measure every case that is not measured yet."""
    cases = [Case(k, dtype, T) for k, dtype, T in product(settings.k, settings.dtype, settings.times)]
    known = {line["row"] for line in run.metrics}
    with console.status("solving") as status:
        for case in cases:
            missing = [name for name in wanted(settings, case.T) if case.name(name) not in known]
            if missing:
                status.update(f"solving {case.name(', '.join(missing))}")
                measure(run, settings, case, missing)
    for kind, name in PLOTS.items():
        plot(run.metrics, settings, kind, run.folder / name)
    return Report(
        tables=[_table(run.metrics, settings, kind) for kind in AGAINST],
        plots={name: f"Relative error against {AGAINST[kind]}. {LEGEND}" for kind, name in PLOTS.items()},
        numbers={"rows": run.metrics},
    )


def wanted(settings: Settings, T: float) -> list[str]:
    """The gradient methods that are measured at T."""
    return [name for name in settings.gradient if name != "mali" or T in settings.mali_times]


def _table(lines: Lines, settings: Settings, kind: str) -> Table:
    columns = [T for T in COLUMNS if T in settings.times]
    rows = []
    for k, dtype, gradient in product(settings.k, settings.dtype, settings.gradient):
        found = {line["T"]: line for line in select(lines, k, dtype, gradient)}
        rows.append([gradient, f"{k:+g}", dtype, *(_cell(found.get(T), kind) for T in columns)])
    return Table(
        title=f"Relative error of dL/dz0, dL/dk against {AGAINST[kind]}",
        columns=["gradient", "k", "dtype", *(f"T = {T:g}" for T in columns)],
        rows=rows,
        notes=[*_notes(kind, settings), *_mali(settings)],
    )


def _cell(line: Mapping[str, Any] | None, kind: str) -> str:
    if line is None:
        return NONE
    if "failed" in line:
        return f"failed: {line['failed']}"
    if line[f"{kind} dz0"] is None:
        return NONE
    return f"{number(line[f'{kind} dz0'])}, {number(line[f'{kind} dk'])}"


def _notes(kind: str, settings: Settings) -> list[str]:
    if kind == "exact":
        return [
            "The slides show this as a curve without numbers: there is no paper column.",
            *_small(settings),
        ]
    return [
        "naive also differentiates the step sizes, so it has a discrete solution of its own: its difference "
        "from `direct` is what the step-size search contributes."
    ]


def _small(settings: Settings) -> list[str]:
    """From which T on the exact solution is smaller than the solver is asked to resolve."""
    return [
        f"k = {k:+g}: from T = {math.log(settings.atol / abs(settings.z0)) / k:.1f} on |z(T)| is below atol = "
        f"{settings.atol:g}, and the solver, under every method, is not asked to resolve it."
        for k in settings.k
        if k < 0
    ]


def _mali(settings: Settings) -> list[str]:
    if "mali" not in settings.gradient:
        return []
    return [
        f"mali needs a reversible solver, {settings.mali_method}: its reference is `direct` with that one. Where "
        "the solution contracts (k < 0), the slope that alf carries swings and uses up all steps."
    ]
