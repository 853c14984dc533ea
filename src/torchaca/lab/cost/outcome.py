"""What comes out of the cost experiment: the slides' table with measured exponents, and ACA's row in figures."""

from __future__ import annotations

from collections.abc import Sequence
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
from .counts import count, points_of
from .laws import AXES, LAWS, QUANTITIES, SLIDES, Line, along, deviations, exponents, slope
from .plots import plot_counts
from .problem import Settings

REVERSE = {"naive": "yes", "adjoint": "no", "aca": "yes"}


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
        columns=["gradient", "slides", "O()", *(f"in {axis}" for axis in AXES)],
        rows=[
            [
                variant.title,
                "yes" if variant.name in SLIDES else "no row",
                LAWS[variant.name][quantity].text,
                *(_pair(*exponents(lines, variant.name, quantity, axis)) for axis in AXES),
            ]
            for variant in compared
        ],
        notes=[
            "Fitted exponents: measured / of the O() at the measured N_t, N_f, N_r, m. More layers need slightly "
            "fewer steps here, and a drifting backward integration more of them for a longer solve.",
            *deviations(lines, names, quantity),
        ],
    )


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
    return Table(
        title="What one more trial and one more accepted step cost (linear fits)",
        columns=["gradient", "NFE/trial", "back: NFE/step", "NFE/rejected", "states/step", "states/rejected"],
        rows=rows,
        notes=[
            "dopri5 has 7 stages, the last of which is the first of the next step: 6 a trial. ACA's replay needs "
            "the 6 stages of y1, and none of a rejected trial; each accepted step keeps one state.",
        ],
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
        rows.append([variant.title, REVERSE.get(variant.name, "no row"), *cells])
    return Table(
        title="Reverse accuracy: relative error of the start that the backward pass sees",
        columns=["gradient", "slides", *(f"T = {span:g}" for span in spans)],
        rows=rows,
        notes=[
            "kept: the graph holds the forward trajectory itself. mali: the largest error of the states it "
            "reconstructed."
        ],
    )
