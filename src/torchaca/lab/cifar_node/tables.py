"""The tables, next to the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..cifar import Data, Kind
from ..table import NONE, Table, count, number
from .evaluation import TITLES
from .images import Samples
from .recipe import Settings

PAPER = {
    "cifar10": {
        "resnet18": "6.98",
        "node18-aca": "4.85",
        "node18-adjoint": "9.8",
        "node18-naive": "9.3",
        "anode18": "6.8",
    },
    "cifar100": {
        "resnet18": "27.08",
        "node18-aca": "22.66",
        "node18-adjoint": "30.6",
        "node18-naive": "29.4",
        "anode18": "22.7",
    },
}
"""Error rates in percent at full width, 32 x 32 pixels and all images; resnet18 is quoted there from the literature."""
PAPER_SOLVERS = {
    "cifar10": {
        "heun_euler": "4.85",
        "bosh3": "4.92",
        "dopri5": "5.29",
        "euler": "5.52",
        "midpoint": "5.27",
        "rk4": "5.24",
    },
    "cifar100": {
        "heun_euler": "22.66",
        "bosh3": "24.13",
        "dopri5": "23.56",
        "euler": "24.44",
        "midpoint": "24.44",
        "rk4": "24.43",
    },
}
"""Of NODE18-ACA; its step sizes and tolerances in testing are not given."""

Row = Mapping[str, Any]


def percent(share: float | None) -> str:
    """A share in percent, to two decimals."""
    return NONE if share is None else f"{100 * share:.2f}"


def spread(row: Row) -> str:
    """The mean error rate and its standard deviation over the seeds."""
    std = row["error_std"]
    return percent(row["error_mean"]) + ("" if std is None else f" ± {percent(std)}")


def error_table(
    kinds: Sequence[Row], settings: Settings, data: Data, images: tuple[Samples, Samples]
) -> Table:
    """Test errors of all rows."""
    paper = PAPER[data.kind.name]
    return Table(
        title=f"{data.kind.title}: test error in percent",
        columns=["model", "test error", "paper", "training error", "seeds", "epochs"],
        rows=[
            [
                row["label"],
                spread(row),
                paper.get(row["label"], NONE),
                percent(row["train_error_mean"]),
                str(len(row["errors"])),
                _epochs(row, settings.epochs),
            ]
            for row in kinds
        ],
        notes=[
            *scope(settings, data, images),
            "test error: mean ± standard deviation over the seeds, of the last epoch. training error: mean over the "
            "last epoch, on mirrored and cropped images, while the weights move.",
            "All rows have the same minibatches, augmentation and initial weights for a seed.",
            f"anode18: {settings.euler_steps} Euler steps a block, the gradient that of these steps. "
            "The paper does not give their number.",
            *(
                f"{row['label']}: {len(row['failed'])} seeds ended early, {row['failed'][0].splitlines()[0]}"
                for row in kinds
                if row["failed"]
            ),
        ],
    )


def scope(settings: Settings, data: Data, images: tuple[Samples, Samples]) -> list[str]:
    """What sets the figures apart from those of the data set and of the paper."""
    train, test = map(len, images)
    notes = [
        f"{train} of {len(data.train)} training images and {test} of {len(data.test)} test images of {data.source}, "
        f"{settings.side} x {settings.side} pixels; width {settings.width}. The paper's: all images, 32 x 32, width 64."
    ]
    if not data.standard:
        notes.append(
            f"The images were compressed with loss: these are not standard {data.kind.title} numbers."
        )
    return notes


def solver_table(kinds: Sequence[Row], kind: Kind, notes: Sequence[str]) -> Table:
    """The trained networks with every solver; `notes` go before its own."""
    titles = list(dict.fromkeys(title for row in kinds for title in row["solvers"]))
    paper = PAPER_SOLVERS[kind.name]
    body = []
    for title in titles:
        cells = [row["solvers"].get(title) for row in kinds]
        method = next((cell["method"] for cell in cells if cell and cell["method"]), None)
        body.append([title, *map(_cell, cells), paper.get(method or "", NONE)])
    return Table(
        title="Other solvers without retraining: test error in percent",
        columns=["solver", *(row["label"] for row in kinds), "paper, node18-aca"],
        rows=[["as trained", *(percent(row["error_mean"]) for row in kinds), NONE], *body],
        notes=[
            *notes,
            "Means over the seeds; in brackets: the change from the training solver, in points, and evaluations of f "
            "for a minibatch, over all blocks.",
            f"h: step size; tol: rtol = atol. Names: {', '.join(f'{v} is {k}' for k, v in TITLES.items())}.",
        ],
    )


def _cell(found: Row | None) -> str:
    if found is None or found["error_mean"] is None:
        return "failed" if found else NONE
    change = round(100 * found["change_mean"], 2) + 0.0  # no "-0.00"
    return f"{percent(found['error_mean'])} ({change:+.2f}, {count(found['nfe'])})"


def cost_table(kinds: Sequence[Row]) -> Table:
    """What training costs."""
    return Table(
        title="Cost of training (means over epochs and seeds)",
        columns=["model", "seconds an epoch", "NFE forward", "NFE backward", "rejected"],
        rows=[
            [
                row["label"],
                number(row["seconds"], 3),
                *(_one(row[name]) for name in ("nfe", "nfe_backward", "rejected")),
            ]
            for row in kinds
        ],
        notes=[
            "NFE: evaluations of f for a minibatch, over all blocks; rejected: trials, forward and backward.",
            "seconds: on the clock, so that other work on the machine counts; compare times in "
            "`benchmarks/node18.py`, which takes turns.",
        ],
    )


def _one(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _epochs(row: Row, wanted: int) -> str:
    low, high = min(row["epochs"]), max(row["epochs"])
    return f"{low} of {wanted}" if low == high else f"{low} to {high} of {wanted}"
