"""The tables of a three-body run, next to the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..table import NONE, Table, count, median, number, spread
from .problem import TRUTH_METHOD
from .rows import NEAR
from .settings import COUNTS, Settings

PAPER = {
    "lstm": "0.59±0.12",
    "lstm-aug-input": "0.49±0.06",
    "node adjoint": "3.47±0.67",
    "node naive": "0.21±0.11",
    "node aca": "0.16±0.06",
    "ode adjoint": "0.0025±0.0012",
    "ode naive": "0.0025±0.0013",
    "ode aca": "0.0007±0.0005",
}

Row = Mapping[str, Any]


def error_table(methods: Sequence[Row], settings: Settings) -> Table:
    """The paper's Table 5."""
    columns = ["model, gradient", "test MSE, median", "mean ± std", "paper", "per coordinate", "epochs"]
    rows = [
        [
            method["method"],
            number(method["mse_sum_median"]),
            _spread(method["mse_sum"]),
            PAPER.get(method["method"], NONE),
            _spread(method["mse_mean"]),
            _epochs(method),
        ]
        for method in methods
    ]
    notes = [*_conditions(settings), *(note for method in methods for note in _failures(method))]
    about = dict.fromkeys(NOTES[method["model"]] for method in methods)
    notes += [note for describe in about for note in describe(settings)]
    return Table("Three-body problem: error of the predicted motion on [0, 2]", columns, rows, notes)


def parts_table(methods: Sequence[Row]) -> Table:
    """Where the error is: in the range that was trained on, or after it."""
    columns = ["model, gradient", "MSE on [0, 1]", "MSE on (1, 2]", "training loss", "mass error"]
    names = ("mse_seen_median", "mse_ahead_median", "best_loss_median", "mass_error_median")
    rows = [[method["method"], *(number(method[name]) for name in names)] for method in methods]
    notes = [
        "The test points of each range, summed over the 9 coordinates; the smallest training loss; the largest error "
        "of the three masses. Medians over seeds."
    ]
    return Table("Where the error is", columns, rows, notes)


def _conditions(settings: Settings) -> list[str]:
    points = settings.train_points
    return [
        "test MSE: sum over the 9 coordinates, mean over the points (the authors' script); per coordinate: that "
        "divided by 9, mean ± std. Which of the two the paper's table has is not known.",
        f"seeds: {settings.seeds}, with the same initial weights for every gradient method. Nothing is chosen by its "
        "test error.",
        f"float64; truth: {TRUTH_METHOD} at {settings.truth_tolerance:g}; {points} training points k / {points}, "
        "test points half a step beside them.",
    ]


def _lstm_notes(settings: Settings) -> list[str]:
    return [
        "lstm: predicts the positions one time step ahead. On [0, 1] each prediction is made from the true positions "
        "before it, on (1, 2] from its own predictions; between the steps it is linear. Time step, units, learning "
        "rate and number of epochs are those that the search below chooses."
    ]


def _node_notes(settings: Settings) -> list[str]:
    stages = ", ".join(f"{length:g} ({epochs} epochs)" for length, epochs in settings.node_stages)
    return [
        "node: r' = K2 v, v' = FC(aug(r)), one fully connected layer from the 45 augmented inputs to the 9 "
        f"accelerations; {settings.method} rtol {settings.node_tolerance:g} atol {settings.node_tolerance:g}.",
        f"node: trained by L-BFGS, {settings.node_solves} solves an epoch and what the last line search takes more, "
        f"on segments of the training motion that grow: {stages}. A segment starts at true positions, with "
        "differences of positions as its velocities; the last stage is the whole motion from its given start. "
        "After every epoch the whole training motion is solved; the weights of the smallest error are tested.",
        "node: the accelerations of Newton's law are linear in the augmented inputs, so that the layer can represent "
        "them. This recipe was chosen by its authors among trials whose errors on the test range they had seen; within "
        "a run nothing is.",
    ]


def _ode_notes(settings: Settings) -> list[str]:
    return [
        f"ode: Adam, learning rate {settings.lr:g} times {settings.lr_decay:g} per epoch, {settings.epochs} epochs "
        "(the authors: 0.1, 0.95, 100); the epoch of the smallest training loss is tested; "
        f"{settings.method} rtol {settings.rtol:g} atol {settings.atol:g}.",
    ]


NOTES = {"lstm": _lstm_notes, "lstm-aug-input": _lstm_notes, "node": _node_notes, "ode": _ode_notes}


def search_table(found: Mapping[str, Sequence[Row]], settings: Settings) -> Table:
    """How the LSTMs were chosen."""
    lines = list(zip(*found.values(), strict=True))
    best = [min(line["error"] for line in column) for column in found.values()]
    columns = ["time step, units, learning rate"]
    for model in found:
        columns += [f"{model}: error", "epochs"]
    rows = []
    for line in lines:
        cells = [f"{line[0]['step']:g}, {line[0]['hidden']}, {line[0]['lr']:g}"]
        for one, least in zip(line, best, strict=True):
            chosen = " (chosen)" if one["error"] == least else ""
            cells += [spread(one["errors"]) + chosen, str(one["epochs"])]
        rows.append(cells)
    tail = settings.lstm_tail
    notes = [
        f"Trained on [0, {1 - tail:g}] with Adam; the error is that of its own predictions on the {tail:g} after this, "
        f"summed over the 9 coordinates, mean ± std over {settings.lstm_seeds} seeds. It is taken every "
        f"{settings.lstm_check} epochs up to {settings.lstm_epochs}; the epochs are those of the smallest mean. The "
        "test range is not looked at.",
        "The chosen one is trained anew on [0, 1], for as many epochs, with every seed.",
    ]
    return Table("Search for the LSTMs", columns, rows, notes)


def cost_table(methods: Sequence[Row]) -> Table:
    """What an epoch costs: one or more solves and their gradients."""
    columns = [
        "model, gradient",
        "solves",
        "seconds",
        "NFE forward",
        "NFE backward",
        "rejected forward",
        "backward",
        "saved KiB",
    ]
    rows = [
        [
            method["method"],
            count(method["solves"]),
            number(method["seconds"]),
            *(count(method[name]) for name in COUNTS),
            number(method["saved_kib"], 3),
        ]
        for method in methods
    ]
    notes = [
        "seconds: on the clock, so that other work on the machine counts; median over seeds. saved: the most that "
        "autograd held at once for the backward pass, in the first epoch.",
        "The adjoint stops at every output: its evaluations grow with their number, those of the others do not.",
    ]
    return Table("Cost of an epoch (means)", columns, rows, notes)


def gradient_table(measured: Sequence[Row], settings: Settings) -> Table:
    """The errors of the gradients that the rows are trained with."""
    models = list(dict.fromkeys(line["model"] for line in measured))
    rows = []
    for gradient in settings.gradient:
        cells = [gradient]
        for model in models:
            own = [
                line["errors"][gradient] for line in measured if line["model"] == model and "errors" in line
            ]
            cells.append(number(median([error for error in own if error is not None])))
        rows.append(cells)
    notes = [
        "The loss of the whole training motion; beside ACA's gradient with rtol and atol "
        f"{settings.reference:g}; |difference| / |gradient|, median over seeds.",
        "ode: at the initial masses. node: at the weights that its first row has found, times "
        f"{NEAR:g}, as the gradient at its end is almost zero.",
        "An error that all methods share is that of the solve at its tolerance. ACA and direct differentiate the "
        "computed solution with its steps held; what the steps contribute in a close approach is missing, which naive "
        "has.",
        "The motion is reversible in time, so that the adjoint's backward solve is as stable as the forward one: here "
        "it can be closer to the true gradient than the discrete ones, at more evaluations.",
    ]
    return Table("Relative error of the gradient", ["gradient", *models], rows, notes)


def _spread(values: Sequence[float]) -> str:
    return spread(values) if values else NONE


def _epochs(method: Row) -> str:
    low, high = min(method["epochs"]), max(method["epochs"])
    return f"{low if low == high else f'{low} to {high}'} of {method['wanted']}"


def _failures(method: Row) -> list[str]:
    """The seeds whose training ended with a solve that failed, in one sentence."""
    failed = method["failed"]
    if not failed:
        return []
    reason = failed[0].splitlines()[0]
    return [f"{method['method']}: {len(failed)} of {method['seeds']} seeds ended early, {reason}"]
