"""Training every row, testing it with other solvers, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from ..cases import measure
from ..cifar import Data, Kind
from ..engine import Batches, Loader, fit
from ..report import Report
from ..rows import Row
from ..run import Run
from ..table import deviation, mean
from ..training import share
from .distances import distance_table, gradient_distances
from .evaluation import TITLES, Solver, error_rate, place_of, solvers
from .images import Samples, samples
from .loggers import tensorboard
from .module import Training
from .plots import plot_curves, plot_evaluations, plot_solvers, plot_spread
from .recipe import Settings, loaded, rows
from .tables import cost_table, error_table, scope, solver_table

Line = Mapping[str, Any]
SOLVERS = tuple(TITLES)
DISTANCES = "gradients"  # the row of metrics that has them
CHECKPOINT_SECONDS = 60.0  # between checkpoints within an epoch


def main(run: Run, settings: Settings, console: Console, kind: Kind) -> Report:
    """Train what is not trained yet, test it, and write tables and plots."""
    data = loaded(settings, kind)
    train, test = samples(data, settings)
    everything = rows(settings)
    waiting = [row.name for row in everything]
    found = []
    for row in everything:
        module = Training(settings, kind, row, len(train))
        seconds = share(run, settings.time_limit, waiting, [])
        fit_row(run, console, row, module, (train, test), seconds)
        waiting.remove(row.name)
        if run.writes:
            found.append(result(run, console, row, module, test))
            if row == first_node(settings) and found[-1]["epochs"] == settings.epochs:
                cases = {DISTANCES: partial(gradient_distances, module, train)}
                measure(run, console, "distances of gradients", cases)
    if not run.writes:
        return Report([], {}, {})
    return report(run, settings, data, (train, test), found)


def first_node(settings: Settings) -> Row | None:
    """The row at whose weights the gradient methods are compared: the first NODE18."""
    return next((row for row in rows(settings) if row.model == "node18"), None)


def fit_row(
    run: Run,
    console: Console,
    row: Row,
    module: Training,
    images: tuple[Samples, Samples],
    seconds: float | None,
) -> None:
    """Train one row to its last epoch, from where the run folder says it is."""
    settings, (train, test) = module.settings, images
    fit(
        run,
        console,
        row.name,
        module,
        Loader(train, Batches(len(train), settings.batch, row.seed)),
        hardware=settings,
        seed=row.seed,
        epochs=settings.epochs,
        seconds=seconds,
        least=1 if row.seed == 0 else 0,
        validation=Loader(test, Batches(len(test), settings.batch)),
        every=CHECKPOINT_SECONDS,
        loggers=[tensorboard(run.folder, row.name)] if settings.tensorboard else [],
    )


def result(run: Run, console: Console, row: Row, module: Training, test: Samples) -> dict[str, Any]:
    """What one row is worth: its epochs, and its error rates with every solver."""
    lines = run.of(row.name)
    epochs = [line for line in lines if "failed" not in line]
    about = {"label": row.label, "seed": row.seed, "epochs": len(epochs), "curve": epochs}
    failed = [line["message"] for line in lines if "failed" in line]
    if not epochs:
        return {**about, "failed": failed, "solvers": {}}
    cases = {}
    if module.model.blocks():
        module.to(place_of(module.settings))
        for solver in solvers(SOLVERS, module.settings.dt, module.settings.tolerances):
            name = f"{row.name}, {solver.title}, epoch {len(epochs)}"
            cases[name] = partial(measured, module, test, solver)
        measure(run, console, f"{row.name}, other solvers", cases)
    tested = [line for line in run.metrics if line["row"] in cases]
    return {**about, "failed": failed, "solvers": {line["solver"]: line for line in tested}}


def measured(module: Training, test: Samples, solver: Solver) -> dict[str, Any]:
    """One case: the row's network with another solver."""
    found = error_rate(module, test, solver.options)
    return {"solver": solver.title, "method": solver.method, "value": solver.value, **found}


def report(
    run: Run,
    settings: Settings,
    data: Data,
    images: tuple[Samples, Samples],
    found: Sequence[Mapping[str, Any]],
) -> Report:
    """Tables, plots and numbers."""
    labels = list(dict.fromkeys(row["label"] for row in found))
    kinds = [summarise(label, [row for row in found if row["label"] == label]) for label in labels]
    ode = [kind for kind in kinds if kind["solvers"]]
    plots = {
        "error.png": "Test error over epochs and over the seconds of training: seeds thin, their mean thick.",
        "spread.png": "Test error of the last epoch over the seeds.",
    }
    plot_curves(found, run.folder / "error.png")
    plot_spread(kinds, run.folder / "spread.png")
    tables = [error_table(kinds, settings, data, images), cost_table(kinds)]
    if ode:
        plots["solvers.png"] = (
            "By how much another solver changes the test error, without retraining: means over the seeds."
        )
        plots["evaluations.png"] = (
            "Evaluations of f in each ODE block, forward, over the epochs: means over seeds."
        )
        plot_solvers(ode, run.folder / "solvers.png")
        plot_evaluations(found, run.folder / "evaluations.png")
        tables.insert(1, solver_table(ode, data.kind, notes=[]))
    distances = [line for line in run.of(DISTANCES) if "failed" not in line]
    if distances and (row := first_node(settings)):
        tables.append(distance_table(distances[0], settings, row.name))
    about = {"data": data.source, "standard": data.standard, "gradient_distances": distances}
    return Report(
        tables,
        plots,
        {**about, "models": kinds},
        first_line(scope(settings, data, images)[0], settings, kinds),
    )


def first_line(size: str, settings: Settings, kinds: Sequence[Mapping[str, Any]]) -> str:
    """What size was run, and whether the models differ in it by more than their seeds do."""
    images = size.partition(". The paper's")[0]
    done = f"{images}; {settings.epochs} epochs, {settings.seeds} seeds"
    means = [kind["error_mean"] for kind in kinds if kind["error_mean"] is not None]
    spread = max((kind["error_std"] or 0.0 for kind in kinds), default=0.0)
    if len(means) < 2:
        return f"{done}."
    difference = max(means) - min(means)
    verdict = "no more than" if difference <= spread else "more than"
    return (
        f"{done}: the models reach {100 * min(means):.1f} to {100 * max(means):.1f} % test error and differ by "
        f"{100 * difference:.1f} points, {verdict} the seeds of a model (standard deviation {100 * spread:.1f})."
    )


def summarise(label: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One kind of row over its seeds; error rates are shares."""
    trained = [row for row in found if row["curve"]]
    last = [row["curve"][-1] for row in trained]
    errors = [line["test_error"] for line in last]
    titles = list(dict.fromkeys(title for row in trained for title in row["solvers"]))
    costs = ("seconds", "nfe", "nfe_backward", "rejected")
    return {
        "label": label,
        "errors": errors,
        "error_mean": mean(errors),
        "error_std": deviation(errors),
        "train_error_mean": mean([line["train_error"] for line in last]),
        "epochs": [row["epochs"] for row in found],
        "failed": [message for row in found for message in row["failed"]],
        "solvers": {title: _over_seeds(trained, title) for title in titles},
        **{name: mean([line[name] for row in trained for line in row["curve"]]) for name in costs},
    }


def _over_seeds(found: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """One solver: its errors and how far they are from those of the training solver on the same weights."""
    lines = [(row["curve"][-1], row["solvers"][title]) for row in found]
    tested = [(last, line) for last, line in lines if "failed" not in line]
    first = lines[0][1]
    return {
        "method": first.get("method"),
        "value": first.get("value"),
        "failed": len(lines) - len(tested),
        "errors": [line["error"] for _, line in tested],
        "error_mean": mean([line["error"] for _, line in tested]),
        "nfe": mean([line["nfe"] for _, line in tested]),
        "change_mean": mean([line["error"] - last["test_error"] for last, line in tested]),
    }
