"""Training every row, and what comes out: the table next to the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import TensorDataset

from ..cases import measure
from ..distances import REFERENCE, WHEN, compared
from ..engine import Batches, Loader, evaluate, fit
from ..report import Report
from ..run import Run
from ..table import NONE, Table, count, deviation, mean, number
from ..training import share
from .data import Data, prepare, seen, trajectories
from .headline import first_line
from .networks import CELLS
from .plots import plot_errors, plot_reconstructions
from .train import Fit, Settings, gradient_distances

PAPER = {
    "rnn": ("2.45", "1.71", "0.79"),
    "rnn-gru": ("1.97", "1.42", "0.75"),
    "adjoint": ("0.47", "0.44", "0.40"),
    "naive": ("0.36", "0.30", "0.29"),
    "aca": ("0.31", "0.27", "0.26"),
}
"""Test MSE x 1e-2 at 10, 20 and 50 %; the recurrent networks' and naive's are quoted there from the literature."""
FRACTIONS = (0.1, 0.2, 0.5)
DRAWS = 50  # samples of a reconstruction's band
COUNTS = ("nfe", "nfe_backward", "rejected")

Row = Mapping[str, Any]


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Train what is not trained yet; test, plot and tabulate every row."""
    raw = trajectories(settings.data)
    data = {seed: prepare(raw, settings.sequences, settings.window, seed) for seed in range(settings.seeds)}
    names = (*settings.baselines, *settings.gradient)
    rows, plots = train_rows(run, settings, data, names, console)
    distances = {
        fraction: line for fraction in settings.fractions for line in run.of(f"gradients {fraction:.0%}")
    }
    plot_errors(rows, PAPER if settings.fractions == FRACTIONS else {}, run.folder / "errors.png")
    plots = {
        "errors.png": "Test MSE x 1e-2 against the part of the points that is seen; crosses: the paper.",
        **plots,
    }
    return Report(
        [
            error_table(rows, names, settings, constant_error(data[0])),
            cost_table(rows, names, settings),
            distance_table(distances, settings),
        ],
        plots,
        {"rows": rows, "gradient_distances": {f"{key:g}": value for key, value in distances.items()}},
        first_line(rows, settings),
    )


def train_rows(
    run: Run,
    settings: Settings,
    data: Mapping[int, Data],
    names: Sequence[str],
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One result for every model, fraction and seed; for the first gradient and seed, a plot with its caption."""
    cases = {
        f"{name} {fraction:.0%} seed {seed}": (name, fraction, seed)
        for seed in range(settings.seeds)
        for fraction in settings.fractions
        for name in names
    }
    waiting, rows, plots = list(cases), [], {}
    for row, (name, fraction, seed) in cases.items():
        made = Fit(name, settings, data[seed], fraction, seed)
        seconds = share(run, settings.time_limit, waiting, [])
        train = data[seed].train
        loader = Loader(TensorDataset(train), Batches(len(train), settings.batch, seed))
        fit(
            run,
            console,
            row,
            made,
            loader,
            hardware=settings,
            seed=seed,
            epochs=settings.epochs,
            seconds=seconds,
            least=1,
        )
        rows.append(
            {"model": name, "fraction": fraction, "seed": seed, **result(run.of(row), made, data[seed], seed)}
        )
        waiting.remove(row)
        if name == settings.gradient[0] and seed == 0 and "mse" in rows[-1]:
            if (
                fraction == settings.fractions[(len(settings.fractions) - 1) // 2]
            ):  # the others look much alike
                plots.update(reconstructions(run, made, data[seed], name))
            if rows[-1]["epochs"] == settings.epochs:
                measurements = {
                    f"gradients {fraction:.0%}": lambda made=made: gradient_distances(
                        settings, data[0], made, 0
                    )
                }
                measure(run, console, "distances of gradients", measurements)
    return rows, plots


def result(lines: Sequence[Row], made: Fit, data: Data, seed: int) -> dict[str, Any]:
    """What one row is worth: its test error and the cost of an epoch."""
    trained = [line for line in lines if "failed" not in line]
    batches = len(Batches(len(data.train), made.settings.batch))
    found: dict[str, Any] = {
        "epochs": len(trained),
        "parameters": sum(parameter.numel() for parameter in made.parameters()),
        "seconds": mean([line["seconds"] for line in trained]),
        **{name: mean([line[name] * batches for line in trained]) for name in COUNTS},
        "train_mse": trained[-1]["mse"] if trained else None,
    }
    failures = [line["message"] for line in lines if "failed" in line]
    if failures:
        return {**found, "failed": failures[-1]}
    loader = Loader(
        TensorDataset(data.test, test_mask(data, made.fraction, seed)), Batches(len(data.test), 200)
    )
    return {**found, **evaluate(made, loader, hardware=made.settings, seed=seed)}


def test_mask(data: Data, fraction: float, seed: int) -> torch.Tensor:
    """Which points of the test set are seen: the same for every model."""
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    return seen(len(data.test), data.test.shape[1], fraction, generator)


def reconstructions(run: Run, made: Fit, data: Data, name: str) -> dict[str, str]:
    """A plot of test sequences beside the band that the model gives them."""
    mask = test_mask(data, made.fraction, 0)
    chosen = slice(0, 3)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = mask[chosen, :, None].expand_as(data.test[chosen])
        draws = made.net.to("cpu")(data.test[chosen], data.times, given, samples=DRAWS)
    file = f"reconstructions-{made.fraction * 100:.0f}.png"
    plot_reconstructions(data, mask[chosen], draws, run.folder / file)
    caption = (
        f"Test sequences, {name}, {made.fraction:.0%} of the points seen (dots): truth (black), mean and two standard "
        f"deviations of {DRAWS} draws."
    )
    return {file: caption}


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
    return Table(
        title="Hopper, points seen: test MSE x 1e-2 over all points",
        columns=columns,
        rows=lines,
        notes=[
            f"{parts}; {settings.epochs} epochs in batches of {settings.batch}; seeds: {settings.seeds}, with the "
            "same initial weights, batches, masks and draws for every gradient method.",
            f"a constant for each dimension, its mean over the training set, has {number(constant * 100, 3)}.",
            f"mean over {settings.samples} latent samples, all points and dimensions. Normalised as in the public "
            "code: minus the minimum, divided by the maximum, not by the difference.",
            f"latent ODE: {settings.method} rtol {settings.rtol:g} atol {settings.atol:g}; "
            f"{_parameters(rows, settings)} parameters in each model.",
            "rnn: tanh cell, rnn-gru: gated cell, with mask and time since the last point seen, predicting from "
            "the past alone; the paper quotes its two rows from the literature: a gated cell with the time gap, "
            "and GRU-D.",
            *(_unfinished(rows, settings)),
            *(
                f"{row['model']} {row['fraction']:.0%} seed {row['seed']} failed: {row['failed'].splitlines()[0]}"
                for row in rows
                if "failed" in row
            ),
        ],
    )


def cost_table(rows: Sequence[Row], names: Sequence[str], settings: Settings) -> Table:
    """What an epoch costs, means over seeds."""
    lines = []
    for name in names:
        for fraction in settings.fractions:
            own = _of(rows, name, fraction)
            seconds = [row["seconds"] for row in own if row["seconds"] is not None]
            counts = ([row[key] for row in own if row[key] is not None] for key in COUNTS)
            lines.append(
                [
                    _title(name),
                    f"{fraction:.0%}",
                    number(mean(seconds)),
                    *(count(mean(each)) for each in counts),
                ]
            )
    return Table(
        title="Cost of an epoch (means)",
        columns=["model", "seen", "seconds", "NFE forward", "NFE backward", "rejected"],
        rows=lines,
        notes=["NFE: evaluations of the generator's ODE; wall time includes the encoder."],
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


def _parameters(rows: Sequence[Row], settings: Settings) -> str:
    found = sorted({row["parameters"] for row in rows})
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _unfinished(rows: Sequence[Row], settings: Settings) -> list[str]:
    short = [row["epochs"] for row in rows if row["epochs"] < settings.epochs]
    return (
        [f"stopped early: {len(short)} rows have {min(short)} to {max(short)} epochs only."] if short else []
    )
