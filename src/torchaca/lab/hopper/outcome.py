"""Training every row, and what comes out: the table next to the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from rich.console import Console

from ..distances import REFERENCE, WHEN, compared
from ..files import write
from ..report import Report
from ..run import Run
from ..table import NONE, Table, count, deviation, mean, number
from .curve import curve
from .data import Data, prepare, trajectories
from .headline import first_line, of_its_size
from .networks import CELLS
from .parts import parts_table
from .plots import plot_curves, plot_errors
from .rows import COUNTS, full, train_rows
from .settings import Settings, differences, epochs_at, recipe

PAPER = {
    "rnn": ("2.45", "1.71", "0.79"),
    "rnn-gru": ("1.97", "1.42", "0.75"),
    "adjoint": ("0.47", "0.44", "0.40"),
    "naive": ("0.36", "0.30", "0.29"),
    "aca": ("0.31", "0.27", "0.26"),
}
"""Test MSE x 1e-2 at 10, 20 and 50 %; the recurrent networks' and naive's are quoted there from the literature."""
FRACTIONS = (0.1, 0.2, 0.5)

Row = Mapping[str, Any]


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Train what is not trained yet; test, plot and tabulate every row."""
    raw = trajectories(settings.data)
    data = {seed: prepare(raw, settings.sequences, settings.window, seed) for seed in range(settings.seeds)}
    with matmul(settings.matmul):
        rows, plots = train_rows(run, settings, data, console)
    distances = {
        fraction: line for fraction in settings.fractions for line in run.of(f"gradients {fraction:.0%}")
    }
    names, paper = full(settings), PAPER if settings.fractions == FRACTIONS else {}
    whole = [row for row in rows if not row["short"]]
    write(run.folder / "curve.csv", curve(run.metrics).encode())
    plot_errors(whole, paper, run.folder / "errors.png")
    plot_curves(whole, paper, run.folder / "curve.png")
    plots = {
        "errors.png": "Test MSE x 1e-2 against the part of the points that is seen; crosses: the paper.",
        "curve.png": f"Error of the first {settings.curve} test sequences after each epoch; dotted: the paper's "
        "latent ODE by aca, at the end of its 300.",
        **plots,
    }
    tables = [
        error_table(whole, names, settings, constant_error(data[0])),
        *([short_table(rows, settings)] if any(row["short"] for row in rows) else []),
        *(
            [parts_table(whole, names[0], _of_paper(paper, names[0], settings))]
            if any("parts" in row for row in whole)
            else []
        ),
        cost_table(rows, settings),
        distance_table(distances, settings),
    ]
    numbers = {"rows": rows, "gradient_distances": {f"{key:g}": value for key, value in distances.items()}}
    return Report(tables, plots, numbers, first_line(whole, settings, paper), files=("curve.csv",))


def _of_paper(paper: Mapping[str, Sequence[str]], name: str, settings: Settings) -> Sequence[str]:
    """The paper's errors, for a run of its size."""
    return paper.get(name, ()) if of_its_size(settings) else ()


@contextmanager
def matmul(precision: str) -> Iterator[None]:
    """Matrix products in this precision, for as long as it takes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def constant_error(data: Data) -> float:
    """The test error of predicting each dimension's mean over the training set, without looking at the points."""
    return float((data.test - data.train.mean((0, 1))).square().mean())


def error_table(rows: Sequence[Row], names: Sequence[str], settings: Settings, constant: float) -> Table:
    """Test MSE x 1e-2 beside the paper's."""
    columns = ["model"]
    for fraction in settings.fractions:
        columns += [f"{fraction:.0%}", "paper"]
    lines = []
    for name in names:
        line = [_title(name)]
        for fraction in settings.fractions:
            found = [row["mse"] * 100 for row in _of(rows, name, fraction) if "mse" in row]
            paper = (
                PAPER.get(name, ())[FRACTIONS.index(fraction)]
                if fraction in FRACTIONS and name in PAPER
                else NONE
            )
            line += [_error(found), paper]
        lines.append(line)
    parts = f"{settings.sequences} sequences, the first 80 % to train; windows of {settings.window} steps"
    own = settings.baseline_epochs
    return Table(
        title="Hopper, points seen: test MSE x 1e-2 over all points",
        columns=columns,
        rows=lines,
        notes=[
            f"{parts}; {settings.epochs} epochs{''.join(f', {n} at {f:.0%}' for f, n in settings.fewer)}"
            f"{f'; {own} of the recurrent networks' if own else ''}; seeds: "
            f"{settings.seeds}, with the same initial weights, batches, masks and draws for every gradient method.",
            recipe(settings),
            *(
                [f"beside the public code's recipe: {', '.join(found)}."]
                if (found := differences(settings))
                else []
            ),
            f"a constant for each dimension, its mean over the training set, has {number(constant * 100, 3)}.",
            f"mean over {settings.samples} latent samples, all points and dimensions. Normalised as in the public "
            "code: minus the minimum, divided by the maximum, not by the difference.",
            f"latent ODE: {settings.method} rtol {settings.rtol:g} atol {settings.atol:g}; "
            f"{_parameters(rows)} parameters in each model.",
            "rnn: tanh cell, rnn-gru: gated cell, with mask and time since the last point seen, predicting from "
            "the past alone, so anew from each point seen, where the latent ODE has all that it knows in "
            f"{settings.latent} numbers at the window's start; the paper quotes its two rows from the literature: "
            "a gated cell with the time gap, and GRU-D.",
            *_unfinished(rows),
            *(
                f"{row['model']} {row['fraction']:.0%} seed {row['seed']} failed: {row['failed'].splitlines()[0]}"
                for row in rows
                if "failed" in row
            ),
        ],
    )


def short_table(rows: Sequence[Row], settings: Settings) -> Table:
    """The gradients that were trained for a few epochs, beside the same epochs of the first one."""
    first = full(settings)[0]
    lines = []
    for row in rows:
        if not row["short"]:
            continue
        beside = [each for each in _of(rows, first, row["fraction"]) if each["seed"] == row["seed"]]
        whole = epochs_at(row["fraction"], settings)
        for each in (*beside, row):
            found = each["curve"][: row["epochs"]]
            spent = each["epoch_seconds"][: row["epochs"]]
            minibatch = median(spent) / each["batches"] if spent else None
            lines.append(
                [
                    _title(each["model"]),
                    f"{row['fraction']:.0%}",
                    f"{len(found)} of {whole}",
                    number(found[-1] * 100, 5) if found and found[-1] is not None else NONE,
                    number(minibatch),
                    number(minibatch and minibatch * each["batches"] * whole / 3600),
                ]
            )
    return Table(
        title="The same first epochs by other gradients",
        columns=[
            "model",
            "seen",
            "epochs",
            "MSE x 1e-2 then",
            "s per minibatch",
            "h for all epochs",
        ],
        rows=lines,
        notes=[
            f"trained for these epochs of the schedule only; MSE: of the {settings.curve} test sequences of the curve; "
            "seconds: of the wall time, from the median of these epochs, while other processes share the machine, at "
            "some times more than at others. Hours: if all epochs took as long as these; later ones take longer, as f "
            "is evaluated more often.",
        ],
    )


def cost_table(rows: Sequence[Row], settings: Settings) -> Table:
    """What an epoch costs, means over seeds."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        for fraction in settings.fractions:
            if not (own := _of(rows, name, fraction)):
                continue
            seconds = [row["seconds"] for row in own if row["seconds"] is not None]
            counts = ([row[key] for row in own if row[key] is not None] for key in COUNTS)
            lines.append(
                [
                    _title(name),
                    f"{fraction:.0%}",
                    number(mean([float(row["epochs"]) for row in own])),
                    number(mean(seconds)),
                    *(count(mean(each)) for each in counts),
                ]
            )
    return Table(
        title="Cost of an epoch",
        columns=["model", "seen", "epochs", "seconds", "NFE forward", "NFE backward", "rejected"],
        rows=lines,
        notes=[
            "NFE: evaluations of the generator's ODE. Seconds: of the wall time, the median of a row's epochs, encoder "
            "and the curve's test sequences included."
        ],
    )


def distance_table(distances: Mapping[float, Row], settings: Settings) -> Table:
    """How far apart the methods' gradients are, before and after training."""
    return Table(
        title=f"Distance of each gradient from that of `{REFERENCE}`",
        columns=["gradient", *(f"{fraction:.0%} {at}" for fraction in settings.fractions for at in WHEN)],
        rows=[
            [
                name,
                *(
                    number(distances.get(fraction, {}).get(f"{name} {at}"))
                    for fraction in settings.fractions
                    for at in WHEN
                ),
            ]
            for name in compared(settings.gradient)
        ],
        notes=[
            f"|g - g_{REFERENCE}| / |g_{REFERENCE}| over all parameters, first batch, float32, at the "
            f"initial weights and at those that {settings.gradient[0]} has trained. aca and direct are one "
            "gradient up to rounding.",
        ],
    )


def _of(rows: Sequence[Row], name: str, fraction: float) -> list[Row]:
    return [row for row in rows if row["model"] == name and row["fraction"] == fraction]


def _error(found: Sequence[float]) -> str:
    """`mean±std` to three decimals: the gradient methods are close to each other."""
    centre, std = mean(found), deviation(found)
    if centre is None:
        return NONE
    return f"{centre:.3f}" if std is None else f"{centre:.3f}±{std:.3f}"


def _title(name: str) -> str:
    return name if name in CELLS else f"latent ODE, {name}"


def _parameters(rows: Sequence[Row]) -> str:
    found = sorted({row["parameters"] for row in rows})
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _unfinished(rows: Sequence[Row]) -> list[str]:
    short = [
        f"{_title(row['model'])} {row['fraction']:.0%} has {row['epochs']} of {row['of']} epochs"
        for row in rows
        if row["epochs"] < row["of"]
    ]
    return [f"stopped early: {', '.join(short)}."] if short else []
