"""What comes out of the reconstruction: a table of errors and two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from rich.console import Console

from torchaca.errors import SolverError

from ..cases import measure
from ..cifar import find
from ..report import Report
from ..run import Run
from ..table import NONE, Table, median, number
from .flow import Settings, errors, load, there_and_back
from .plots import plot_errors, plot_images

Lines = Mapping[str, Mapping[str, Any]]


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Measure every case that is not measured yet."""
    z0 = load(settings)
    cases = {
        row_of(activation, T, seed): partial(errors, settings, z0, activation, seed, T)
        for activation, T, seed in product(settings.activations, settings.times, range(settings.seeds))
    }
    measure(run, console, "there and back", cases)
    lines = {line["row"]: line for line in run.metrics}
    plots = {"errors.png": "Relative error of the start over T: every seed, and the medians as lines."}
    plot_errors(lines, settings, run.folder / "errors.png")
    for T in settings.times:
        try:
            trip = there_and_back(settings, z0, settings.shown, 0, T)
        except SolverError:
            continue
        name = f"images-T{T:g}.png"
        plots[name] = (
            f"{settings.shown}, T = {T:g}: input, z(T), reverse-time reconstruction, and the start that ACA recorded "
            f"(first kernel; errors over all {settings.images} images)."
        )
        plot_images(trip, T, run.folder / name)
    return Report(
        [error_table(lines, settings)],
        plots,
        {"images": f"{settings.images} of {find(settings.data).name}", "rows": run.metrics},
    )


def row_of(activation: str, T: float, seed: int) -> str:
    """The name of a case's row in the metrics."""
    return f"{activation} T={T:g} seed {seed}"


def error_table(lines: Lines, settings: Settings) -> Table:
    """Medians over the seeds, by activation and T."""
    rows = []
    for activation, T in product(settings.activations, settings.times):
        found = [lines[row_of(activation, T, seed)] for seed in range(settings.seeds)]
        done = [line for line in found if "failed" not in line]
        rows.append(
            [
                activation,
                f"{T:g}",
                *(_median(done, key) for key in ("reverse", "recorded", "largest")),
                f"{_median(done, 'nfe', 3)}, {_median(done, 'nfe_reverse', 3)}",
                str(len(found) - len(done)),
            ]
        )
    return Table(
        title="Relative L2 error of the reconstructed input (medians over kernels)",
        columns=["activation", "T", "reverse solve", "ACA's record", "largest |z(T)|", "NFE", "failed"],
        rows=rows,
        notes=[
            f"The first {settings.images} test images of {find(settings.data).name}.",
            "ACA's record: the state that its backward pass evaluates f at for t = 0. NFE: forward, reverse.",
            "The slides show input and reconstruction as pictures, without a number, a kernel or T.",
            f"failed: kernels whose reverse solve needed more than {settings.max_steps} steps, or blew up.",
        ],
    )


def _median(lines: Sequence[Mapping[str, Any]], key: str, digits: int = 2) -> str:
    return number(median([line[key] for line in lines]), digits) if lines else NONE
