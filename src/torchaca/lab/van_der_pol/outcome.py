"""What comes out of the van der Pol experiment: two tables and two plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from rich.console import Console

import torchaca as aca

from ..cases import measure
from ..report import Report
from ..run import Run
from ..table import NONE, Table, number
from ..variants import Variant, variants
from .plots import plot_gradients, plot_trajectories
from .problem import (
    CONTROLS,
    REFERENCE,
    Settings,
    gradient_error,
    recover,
    reference,
    row_of,
)

Lines = Mapping[str, Mapping[str, Any]]
Cost = Mapping[str, Any]


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Measure every case that is not measured yet."""
    compared = variants(settings.gradient, settings.method, aca.ALF(eta=settings.eta))
    pairs = list(product(CONTROLS, settings.times))
    starts = {f"reverse {c} T={T:g}": partial(recover, settings, c, T) for c, T in pairs}
    measure(run, console, "there and back", starts)
    measure(run, console, "reference", {REFERENCE: partial(reference, settings)})
    truth = run.of(REFERENCE)[0]["gradient"]
    cases = {
        row_of(variant.name, tolerance): partial(gradient_error, settings, variant, tolerance, truth)
        for variant, tolerance in product(compared, settings.tolerances)
    }
    measure(run, console, "gradients", cases)
    lines = {line["row"]: line for line in run.metrics}
    plot_trajectories(settings, run.folder / "trajectories.png")
    plot_gradients(lines, compared, settings, run.folder / "gradients.png")
    return Report(
        tables=[
            start_table([lines[row] for row in starts]),
            gradient_table(lines, compared, settings),
            seen_table(lines, compared, settings),
        ],
        plots={
            "trajectories.png": f"Forward from y(0) to T = {settings.T:g} (solid) and back from y(T) (dashed) "
            "at the defaults and with the step-size rules of ode45; the reverse solve does not return to y(0).",
            "gradients.png": "Relative error of the gradient of |y(T)|² with respect to y(0) and mu.",
        },
        numbers={"rows": run.metrics},
    )


def start_table(lines: Sequence[Cost]) -> Table:
    """The start that the reverse solve recovers."""
    return Table(
        title="Forward to T and back to 0: the start that is recovered",
        columns=["step-size rules", "T", "recovered y(0)", "error", "steps", "steps back"],
        rows=[
            [line["control"], f"{line['T']:g}", *_recovered(line), *_steps(line, "steps", "steps_back")]
            for line in lines
        ],
        notes=[
            "The true start is (2, 0). The slides show the mismatch as a picture, without a number.",
            "The motion contracts towards a cycle; backwards, errors grow as fast as it contracts. How large "
            "they have become by 0 is chance: the two rules differ in nothing else than their steps.",
        ],
    )


def _recovered(line: Cost) -> list[str]:
    if "failed" in line:
        return [f"failed: {line['failed']}", NONE]
    y1, y2 = line["recovered"]
    return [f"({y1:.3f}, {y2:.3f})", number(line["error"])]


def _steps(line: Cost, *names: str) -> list[str]:
    return [str(line.get(name, NONE)) for name in names]


def gradient_table(lines: Lines, compared: Sequence[Variant], settings: Settings) -> Table:
    """The error of the gradient, by method and tolerance."""
    return _by_tolerance(
        f"Relative error of the gradient of |y({settings.T:g})|² with respect to y(0) and mu",
        lines,
        compared,
        settings,
        "error",
        [
            f"Against {settings.reference_method} at {settings.reference_tolerance:g}. aca and direct "
            "differentiate the computed solution, whose own error they share; naive also the step sizes.",
            "adjoint integrates y(t) back, which blows up or drifts; adjoint interpolated reads it from the "
            "forward steps.",
            f"mali uses alf damped by eta = {settings.eta:g}, of order 1, and gives up after 10,000 steps.",
        ],
    )


def seen_table(lines: Lines, compared: Sequence[Variant], settings: Settings) -> Table:
    """The start as each backward pass takes it to be."""
    return _by_tolerance(
        "Distance from y(0) of the state that the backward pass evaluates f at for t = 0",
        lines,
        compared,
        settings,
        "start_error",
        [
            f"{NONE}: nothing is evaluated again, the graph is kept. mali starts anew from states it kept, y(0) "
            "among them.",
        ],
    )


def _by_tolerance(
    title: str,
    lines: Lines,
    compared: Sequence[Variant],
    settings: Settings,
    key: str,
    notes: Sequence[str],
) -> Table:
    return Table(
        title=title,
        columns=["gradient", *(f"{rtol:g}, {atol:g}" for rtol, atol in settings.tolerances)],
        rows=[
            [variant.title, *(_cell(lines[row_of(variant.name, pair)], key) for pair in settings.tolerances)]
            for variant in compared
        ],
        notes=["Columns: rtol, atol.", *notes],
    )


def _cell(line: Cost, key: str) -> str:
    return f"failed: {line['failed']}" if "failed" in line else number(line[key])
