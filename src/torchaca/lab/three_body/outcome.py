"""Training every row, and what comes out: the table next to the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from torchaca.errors import SolverError

from ..report import Report
from ..run import Run
from ..table import NONE, Table, count, deviation, mean, median, number, spread
from ..training import share, train
from .fit import MassFit, Settings
from .plots import plot_losses, plot_motion
from .problem import TRUTH_METHOD, Data, true_motion

PAPER = {"aca": "0.0007±0.0005", "naive": "0.0025±0.0013", "adjoint": "0.0025±0.0012"}
COUNTS = ("nfe", "nfe_backward", "rejected", "rejected_backward")

Row = Mapping[str, Any]


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Train what is not trained yet; test, plot and tabulate every row."""
    data = true_motion(settings.train_points, settings.truth_tolerance)
    rows = train_rows(run, settings, data, console)
    plots = {"loss.png": "Training loss per epoch: seeds thin, their median thick."}
    plot_losses(rows, run.folder / "loss.png")
    for gradient in settings.gradient:
        row = next(row for row in rows if row["gradient"] == gradient)
        if "positions" in row:
            name = f"motion-{gradient}.png"
            plots[name] = f"Motion on [0, 2], {gradient}, seed 0: truth (solid) and prediction (dashed)."
            plot_motion(data, row, run.folder / name)
    methods = [summarise(gradient, rows) for gradient in settings.gradient]
    numbers = [
        {key: value for key, value in row.items() if key not in ("positions", "losses")} for row in rows
    ]
    return Report(
        [error_table(methods, settings), cost_table(methods)], plots, {"methods": methods, "rows": numbers}
    )


def train_rows(run: Run, settings: Settings, data: Data, console: Console) -> list[dict[str, Any]]:
    """One result per gradient method and seed; the first method is given time before the others."""
    names = {
        f"{gradient} seed {seed}": (gradient, seed)
        for gradient in settings.gradient
        for seed in range(settings.seeds)
    }
    first = [name for name, (gradient, _) in names.items() if gradient == settings.gradient[0]]
    waiting = list(names)
    rows = []
    for name, (gradient, seed) in names.items():
        fit = MassFit(settings, data, gradient, seed)
        seconds = share(run, settings.time_limit, waiting, first)
        least = 1 if seed == 0 else 0
        train(run, console, name, fit, seed=seed, epochs=settings.epochs, seconds=seconds, least=least)
        rows.append({"gradient": gradient, "seed": seed, **result(run.of(name), fit)})
        waiting.remove(name)
    return rows


def result(lines: Sequence[Row], fit: MassFit) -> dict[str, Any]:
    """What one row is worth: its test errors and its cost per epoch."""
    trained = [line for line in lines if "failed" not in line]
    failures = [line for line in lines if "failed" in line]
    found: dict[str, Any] = {
        "epochs": len(trained),
        "losses": [line["loss"] for line in trained],
        **{name: mean([line[name] for line in trained]) for name in (*COUNTS, "seconds")},
    }
    if failures:
        found["failed"] = failures[-1]["message"]
    if trained:
        found["saved_kib"] = trained[0]["saved_kib"]
        found["best_loss"] = fit.best_loss
        try:
            found.update(fit.test())
        except SolverError as error:
            found["failed"] = f"the test solve: {error}"
    return found


def summarise(gradient: str, rows: Sequence[Row]) -> dict[str, Any]:
    """One gradient method over its seeds."""
    own = [row for row in rows if row["gradient"] == gradient]
    tested = [row for row in own if "mse_sum" in row]
    mse = [row["mse_sum"] for row in tested]
    return {
        "gradient": gradient,
        "seeds": len(own),
        "failed": [row["failed"] for row in own if "failed" in row],
        "mse_sum": mse,
        "mse_sum_median": median(mse),
        "mse_sum_mean": mean(mse),
        "mse_sum_std": deviation(mse),
        "mse_mean_median": median([row["mse_mean"] for row in tested]),
        "mass_error_median": median([row["mass_error"] for row in tested]),
        "epochs": [row["epochs"] for row in own],
        "saved_kib": max((row["saved_kib"] for row in own if "saved_kib" in row), default=None),
        **{name: mean([row[name] for row in own if row[name] is not None]) for name in (*COUNTS, "seconds")},
    }


def error_table(methods: Sequence[Row], settings: Settings) -> Table:
    """The ODE rows of the paper's Table 5."""
    points = settings.train_points
    return Table(
        title="Three-body problem, masses unknown: error of the predicted motion on [0, 2]",
        columns=[
            "gradient",
            "test MSE, median",
            "mean ± std",
            "paper",
            "per coordinate",
            "mass error",
            "epochs",
        ],
        rows=[
            [
                method["gradient"],
                number(method["mse_sum_median"]),
                spread(method["mse_sum"]),
                PAPER.get(method["gradient"], NONE),
                number(method["mse_mean_median"]),
                number(method["mass_error_median"]),
                _epochs(method, settings.epochs),
            ]
            for method in methods
        ],
        notes=[
            "test MSE: sum over the 9 coordinates, mean over the points (the authors' script); "
            "per coordinate: its median divided by 9; mass error: the largest of three, median over seeds.",
            f"seeds: {settings.seeds}, with the same initial masses for every gradient method. "
            "The epoch with the smallest training loss is tested.",
            f"float64, {settings.method} rtol {settings.rtol:g} atol {settings.atol:g}; "
            f"truth: {TRUTH_METHOD} at {settings.truth_tolerance:g}; "
            f"{points} training points k / {points}, test points half a step beside them.",
            "The motion is reversible in time: here the continuous adjoint can be as close to the true "
            "gradient as the discrete ones.",
            *(note for method in methods for note in _failures(method)),
        ],
    )


def cost_table(methods: Sequence[Row]) -> Table:
    """What an epoch costs: one solve of the training trajectory and its gradient."""
    return Table(
        title="Cost of an epoch (means)",
        columns=[
            "gradient",
            "seconds",
            "NFE forward",
            "NFE backward",
            "rejected forward",
            "backward",
            "saved KiB",
        ],
        rows=[
            [
                method["gradient"],
                number(method["seconds"]),
                *(count(method[name]) for name in COUNTS),
                number(method["saved_kib"], 3),
            ]
            for method in methods
        ],
        notes=["saved: the most that autograd held at once for the backward pass, at the initial masses."],
    )


def _epochs(method: Row, wanted: int) -> str:
    low, high = min(method["epochs"]), max(method["epochs"])
    return f"{low} of {wanted}" if low == high else f"{low} to {high} of {wanted}"


def _failures(method: Row) -> list[str]:
    """The seeds whose training ended with a solve that failed, in one sentence."""
    failed = method["failed"]
    if not failed:
        return []
    reason = failed[0].splitlines()[0]
    return [f"{method['gradient']}: {len(failed)} of {method['seeds']} seeds ended early, {reason}"]
