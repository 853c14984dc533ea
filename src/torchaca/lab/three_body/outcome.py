"""Everything that a run does, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from ..report import Report
from ..run import Run
from ..table import deviation, mean, median
from .animation import animate
from .plots import plot_losses, plot_motion
from .problem import Data, true_motion
from .rows import measure_gradients, search, train_rows
from .settings import COUNTS, SOLVED, Settings
from .tables import cost_table, error_table, gradient_table, parts_table, search_table

Row = Mapping[str, Any]


def main(run: Run, settings: Settings, console: Console) -> Report:
    """Train what is not trained yet; test, plot and tabulate every row."""
    data = true_motion(settings.train_points, settings.truth_tolerance)
    found = search(run, settings, data, console)
    rows = train_rows(run, settings, data, console, found)
    gradients = measure_gradients(run, settings, data, console)
    methods = [summarise(method, rows) for method in dict.fromkeys(row["method"] for row in rows)]
    tables = [error_table(methods, settings), parts_table(methods)]
    tables += [search_table(found, settings)] if found else []
    solved = [method for method in methods if method["model"] in SOLVED]
    tables += [cost_table(solved)] if solved else []
    tables += [gradient_table(gradients, settings)] if gradients else []
    numbers = [
        {key: value for key, value in row.items() if key not in ("positions", "losses")} for row in rows
    ]
    return Report(
        tables,
        draw(run, data, rows, methods),
        {"methods": methods, "rows": numbers, "search": found, "gradient_errors": gradients},
    )


def draw(run: Run, data: Data, rows: Sequence[Row], methods: Sequence[Row]) -> dict[str, str]:
    """Write the plots; file name -> caption."""
    drawn = [first_tested(method["method"], rows) for method in methods]
    plots = {}
    if any(drawn):
        moving = {row["model"]: row for row in reversed(drawn) if row}
        plots["motion.gif"] = "Motion on [0, 2]: truth (solid) and prediction (dashed, black), seed 0."
        animate(data, list(reversed(moving.values())), run.folder / "motion.gif")
    for model in dict.fromkeys(row["model"] for row in rows):
        name = f"loss-{model}.png"
        plots[name] = f"Training loss per epoch, {model}: seeds thin, their median thick."
        plot_losses([row for row in rows if row["model"] == model], run.folder / name)
    for row in drawn:
        if row:
            name = f"motion-{row['method'].replace(' ', '-')}.png"
            plots[name] = f"Motion on [0, 2], {row['method']}, seed 0: truth (solid) and prediction (dashed)."
            plot_motion(data, row, run.folder / name)
    return plots


def first_tested(method: str, rows: Sequence[Row]) -> Row | None:
    """Seed 0 of a method, unless its test failed."""
    return next(
        (row for row in rows if row["method"] == method and row["seed"] == 0 and "positions" in row), None
    )


def summarise(method: str, rows: Sequence[Row]) -> dict[str, Any]:
    """One method over its seeds."""
    own = [row for row in rows if row["method"] == method]
    tested = [row for row in own if "mse_sum" in row]
    mse = [row["mse_sum"] for row in tested]
    found: dict[str, Any] = {
        "model": own[0]["model"],
        "gradient": own[0]["gradient"],
        "method": method,
        "seeds": len(own),
        "failed": [row["failed"] for row in own if "failed" in row],
        "mse_sum": mse,
        "mse_sum_median": median(mse),
        "mse_sum_mean": mean(mse),
        "mse_sum_std": deviation(mse),
        "mse_mean": [row["mse_mean"] for row in tested],
        "epochs": [row["epochs"] for row in own],
        "wanted": own[0]["wanted"],
    }
    for name in ("mse_seen", "mse_ahead", "mass_error", "best_loss"):
        found[f"{name}_median"] = median([row[name] for row in tested if name in row])
    for name in ("solves", *COUNTS):
        found[name] = mean([row[name] for row in own if row[name] is not None])
    found["seconds"] = median([row["seconds"] for row in own if row["seconds"] is not None])
    found["saved_kib"] = max((row["saved_kib"] for row in own if row.get("saved_kib")), default=None)
    return found
