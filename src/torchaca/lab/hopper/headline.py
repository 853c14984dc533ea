"""The first line of the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..table import mean
from .train import Settings

Row = Mapping[str, Any]


def first_line(rows: Sequence[Row], settings: Settings) -> str:
    """What size was run, and how much the gradient matters in it."""
    paper = Settings()
    size = (
        f"{settings.sequences} of the paper's {paper.sequences} sequences, {settings.epochs} of its {paper.epochs} "
        f"epochs, {settings.seeds} {'seed' if settings.seeds == 1 else 'seeds'}"
    )
    spreads = []
    for fraction in settings.fractions:
        errors = [
            mean(
                [
                    row["mse"]
                    for row in rows
                    if (row["model"], row["fraction"]) == (name, fraction) and "mse" in row
                ]
            )
            for name in settings.gradient
        ]
        found = [error for error in errors if error is not None]
        if len(found) > 1:
            spreads.append((max(found) - min(found)) / min(found))
    if not spreads:
        return f"{size}."
    out = (
        ""
        if settings.epochs >= paper.epochs
        else " It is not trained out, and not to be compared with the paper's."
    )
    return f"{size}: the latent ODE's error is the same for every gradient, to {max(spreads):.1%}.{out}"
