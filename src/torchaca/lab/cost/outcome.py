"""What comes out of the cost experiment: the slides' table with measured exponents, and ACA's row in figures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

from rich.console import Console

import torchaca as aca
from torchaca.methods.staged import staged

from ..cases import measure
from ..report import Report
from ..run import Run
from ..table import NONE, Table, number
from ..variants import Variant, variants
from .counts import count, points_of
from .deviations import deviations
from .laws import AXES, LAWS, QUANTITIES, SLIDES, Line, along, exponents, slope
from .plots import plot_counts
from .problem import Settings

REVERSE = {"naive": "yes", "adjoint": "no", "aca": "yes"}
MEANINGS = (
    "m: trials per accepted step; N_t: accepted steps; N_f: layers of f; N_r: accepted steps of a backward "
    "integration; NFE: evaluations of f, all its layers; kept: states that autograd held between the passes, memory: "
    "the most that it held at once; depth: layers on the longest path of the graph."
)


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Measure every case that is not measured yet."""
    compared = variants(settings.gradient, settings.method, aca.ALF())
    cases = {
        point.row(variant.name): partial(count, settings, variant, point)
        for point, variant in product(points_of(settings), compared)
    }
    measure(run, console, "counting", cases)
    lines = [line for line in run.metrics if "failed" not in line]
    plot_counts(lines, compared, run.folder / "cost.png")
    return Report(
        tables=[
            *(exponent_table(lines, compared, quantity) for quantity in QUANTITIES),
            figures_table(lines, compared),
            reverse_table(lines, compared),
            *(measured_table(lines, compared, axis) for axis in AXES),
        ],
        plots={"cost.png": "Computation, memory and depth over steps, layers and trials per step."},
        numbers={"exponents": fitted(lines, compared), "rows": run.metrics},
    )


def fitted(lines: Sequence[Line], compared: Sequence[Variant]) -> list[dict[str, Any]]:
    """Every exponent, unrounded."""
    found = []
    for quantity, variant, axis in product(QUANTITIES, compared, AXES):
        measured, law = exponents(lines, variant.name, quantity, axis)
        found.append(
            {"quantity": quantity, "variant": variant.name, "axis": axis, "measured": measured, "O()": law}
        )
    return found


def exponent_table(lines: Sequence[Line], compared: Sequence[Variant], quantity: str) -> Table:
    """Measured exponents of one quantity beside those of its O()."""
    names = [variant.name for variant in compared]
    return Table(
        title=QUANTITIES[quantity],
        columns=["gradient", "paper", "likewise", *(f"in {axis}" for axis in AXES)],
        rows=[
            [
                variant.title,
                *_law(variant.name, quantity),
                *(_pair(*exponents(lines, variant.name, quantity, axis)) for axis in AXES),
            ]
            for variant in compared
        ],
        notes=[
            "paper: the O() of the slides; likewise: by the same reasoning, for rows that they do not have. "
            "Fitted exponents: measured / of the O() at the measured N_t, N_f, N_r, m.",
            *_steps(lines, names),
            *deviations(lines, names, quantity),
        ],
    )


def _law(variant: str, quantity: str) -> tuple[str, str]:
    text = LAWS[variant][quantity].text
    return (text, NONE) if variant in SLIDES else (NONE, text)


def _steps(lines: Sequence[Line], names: Sequence[str]) -> list[str]:
    """What else changes along an axis: steps with N_f, backward steps with N_t."""
    layers, spans = along(lines, names[0], "N_f"), along(lines, "adjoint", "N_t")
    found = []
    if len(layers) > 1:
        found.append(f"N_t of {names[0]} goes from {layers[0]['N_t']} to {layers[-1]['N_t']} along N_f")
    if len(spans) > 1:
        first, last = (line["N_r"] / line["N_t"] for line in (spans[0], spans[-1]))
        found.append(f"N_r / N_t of adjoint goes from {first:.1f} to {last:.1f} along N_t")
    return [f"{'; '.join(found)}: an O() is not a power of one of them alone."] if found else []


def _pair(measured: float | None, law: float | None) -> str:
    if measured is None or law is None:
        return NONE
    return f"{measured:.2f} / {law:.2f}".replace("-0.00", "0.00")


def figures_table(lines: Sequence[Line], compared: Sequence[Variant]) -> Table:
    """The constants: evaluations per trial and per step, states per step."""
    rows = []
    for variant in compared:
        steps, wasted = (along(lines, variant.name, axis) for axis in ("N_t", "m"))
        accepted, trials = (
            [line["N_t"] for line in steps],
            [line["accepted"] + line["rejected"] for line in wasted],
        )
        rows.append(
            [
                variant.title,
                _slope(trials, [line["nfe"] for line in wasted]),
                _slope(accepted, [line["nfe_backward"] for line in steps]),
                _slope(trials, [line["nfe_backward"] for line in wasted]),
                _slope(accepted, [line["memory"] for line in steps]),
                _slope(trials, [line["memory"] for line in wasted]),
            ]
        )
    expected, notes = _expected(compared)
    return Table(
        title="What one more trial and one more accepted step cost (linear fits)",
        columns=["gradient", "NFE/trial", "back: NFE/step", "NFE/rejected", "states/step", "states/rejected"],
        rows=[*rows, *expected],
        notes=notes,
    )


def _expected(compared: Sequence[Variant]) -> tuple[list[list[str]], list[str]]:
    """ACA's row as the slides have it, for the stages of its solver."""
    for variant in compared:
        method = staged(variant.method)
        if variant.name == "aca" and method is not None:
            new = method.stages - method.fsal
            row = ["aca, by the paper", *(f"{value:.2f}" for value in (new, new, 0, 1, 0))]
            shared = ", one of them the first of the next step" if method.fsal else ""
            note = (
                f"By the paper: one evaluation per stage of a trial ({method.name} has {method.stages}{shared}), one "
                "replay per accepted step and none of a rejected trial, one state per accepted step."
            )
            return [row], [note]
    return [], []


def measured_table(lines: Sequence[Line], compared: Sequence[Variant], axis: str) -> Table:
    """Everything that was counted along one axis."""
    counted = ("N_t", "N_f", "N_r", "nfe", "nfe_backward", "kept", "memory", "depth")
    return Table(
        title=f"Counted along {axis}",
        columns=[
            "gradient",
            "m",
            "N_t",
            "N_f",
            "N_r",
            "NFE forward",
            "NFE backward",
            "kept",
            "memory",
            "depth",
        ],
        rows=[
            [variant.title, f"{line['m']:.2f}", *(f"{line[name]:.0f}" for name in counted)]
            for variant in compared
            for line in along(lines, variant.name, axis)
        ],
        notes=[MEANINGS],
    )


def _slope(xs: Sequence[float], ys: Sequence[float]) -> str:
    found = slope(xs, ys)
    return NONE if found is None else f"{found:.2f}".replace("-0.00", "0.00")


def reverse_table(lines: Sequence[Line], compared: Sequence[Variant]) -> Table:
    """How far the start, as the backward pass computes it, is from z(0): by span."""
    spans = sorted({line["span"] for line in lines if line["axis"] == "N_t"})
    rows = []
    for variant in compared:
        found = {line["span"]: line["reverse_error"] for line in along(lines, variant.name, "N_t")}
        cells = ("kept" if variant.name in ("naive", "direct") else number(found.get(span)) for span in spans)
        rows.append([variant.title, REVERSE.get(variant.name, NONE), *cells])
    return Table(
        title="Reverse accuracy: relative error of the start that the backward pass sees",
        columns=["gradient", "paper", *(f"T = {span:g}" for span in spans)],
        rows=rows,
        notes=[
            "kept: the graph holds the forward trajectory itself. mali: the largest error of the states it "
            "reconstructed."
        ],
    )
