"""The rows of the table, and training them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from rich.console import Console
from torch import Tensor

from torchaca.errors import SolverError

from ..cases import measure
from ..rows import Row
from ..run import Run
from ..table import mean
from ..training import Trainee, share, train
from .gradients import Solved, gradient_errors
from .lstm import Choice, SequenceFit, best_choice, choices, validate
from .masses import MassFit
from .node import MotionFit
from .problem import Data
from .settings import COUNTS, SOLVED, Settings

Result = dict[str, Any]

NEAR = 0.99
"""Times the weights of a trained model: close to where the training ended."""


class Fit(Trainee, Protocol):
    """A model in training that knows how long, and can be tested."""

    epochs: int

    def test(self) -> Result:
        """The test errors and the predicted positions."""
        ...


def rows_of(settings: Settings) -> list[Row]:
    """All rows of a run, in the order of the table."""
    return [
        Row(model, gradient, seed)
        for model in settings.model
        for gradient in (settings.gradient if model in SOLVED else (None,))
        for seed in range(settings.seeds)
    ]


def search(run: Run, settings: Settings, data: Data, console: Console) -> dict[str, list[Result]]:
    """What the search for each LSTM of the run has found."""
    found = {}
    for model in settings.model:
        if model not in SOLVED:
            augment = model == "lstm-aug-input"
            cases = {
                f"search {model} {choice.name}": partial(validate, settings, data, augment, choice)
                for choice in choices(settings)
            }
            measure(run, console, f"search {model}", cases)
            found[model] = [line for line in run.metrics if line["row"] in cases]
    return found


def fit_of(settings: Settings, data: Data, row: Row, choice: Mapping[str, Choice]) -> Fit:
    """The model of a row as its training begins."""
    if row.gradient is None:
        augment = row.model == "lstm-aug-input"
        return SequenceFit(data.train, data, augment, choice[row.model], row.seed)
    return _solved(row.model, settings, data, row.gradient, row.seed)


def _solved(model: str, settings: Settings, data: Data, gradient: str, seed: int) -> Solved:
    kind = MotionFit if model == "node" else MassFit
    return kind(settings, data, gradient, seed)


def train_rows(
    run: Run, settings: Settings, data: Data, console: Console, found: Mapping[str, Sequence[Result]]
) -> list[Result]:
    """One result per row; the first gradient method is given time before the others."""
    choice = {model: best_choice(lines) for model, lines in found.items()}
    rows = rows_of(settings)
    first = [row.name for row in rows if row.gradient in (None, settings.gradient[0])]
    waiting = [row.name for row in rows]
    results = []
    for row in rows:
        fit = fit_of(settings, data, row, choice)
        seconds = share(run, settings.time_limit, waiting, first)
        least = 1 if row.seed == 0 else 0
        train(run, console, row.name, fit, seed=row.seed, epochs=fit.epochs, seconds=seconds, least=least)
        told = {"model": row.model, "gradient": row.gradient, "method": row.label, "seed": row.seed}
        results.append({**told, "wanted": fit.epochs, **result(run.of(row.name), fit)})
        waiting.remove(row.name)
    return results


def result(lines: Sequence[Mapping[str, Any]], fit: Fit) -> Result:
    """What one row is worth: its test errors and its cost per epoch."""
    trained = [line for line in lines if "failed" not in line]
    failures = [line for line in lines if "failed" in line]
    means = ("seconds", "solves", *COUNTS)
    found: Result = {
        "epochs": len(trained),
        "losses": [line["loss"] for line in trained],
        **{name: mean([line[name] for line in trained if name in line]) for name in means},
    }
    if failures:
        found["failed"] = failures[-1]["message"]
    if trained:
        found["saved_kib"] = trained[0].get("saved_kib")
        found["best_loss"] = min(found["losses"])
        try:
            found.update(fit.test())
        except SolverError as error:
            found["failed"] = f"the test solve: {error}"
    return found


def measure_gradients(run: Run, settings: Settings, data: Data, console: Console) -> list[Result]:
    """The errors of the gradients, for every model and seed: at the start of "ode", beside the end of "node".

    At the end itself the gradient is almost zero, so its weights are taken times `NEAR`. They are those that the first
    gradient method has found; where its training is not at an end yet, nothing is measured.
    """
    cases = {}
    trained = settings.gradient[0]
    for row in rows_of(settings):
        if row.gradient == trained and settings.reference is not None:
            fit = _solved(row.model, settings, data, trained, row.seed)
            weights = fit.system.state_dict()
            if isinstance(fit, MotionFit):
                state = run.load(row.name)
                with run.reading(row.name):
                    if state is None or state["epochs"] < fit.epochs:
                        continue
                    weights = {name: NEAR * value for name, value in state["trainee"]["best"].items()}
            make = partial(_with_weights, weights, data, row)
            cases[f"gradient error {row.model} seed {row.seed}"] = partial(gradient_errors, settings, make)
    measure(run, console, "gradient errors", cases)
    return [{**line, "model": line["row"].split()[2]} for line in run.metrics if line["row"] in cases]


def _with_weights(
    weights: Mapping[str, Tensor], data: Data, row: Row, settings: Settings, gradient: str
) -> Solved:
    fit = _solved(row.model, settings, data, gradient, row.seed)
    fit.system.load_state_dict(weights)
    return fit
