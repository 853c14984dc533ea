"""The first line of the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..table import mean
from .networks import CELLS
from .settings import Settings, epochs_at

Row = Mapping[str, Any]
SIZE = ("sequences", "window", "latent", "units", "layers", "state", "gru_units")


def first_line(rows: Sequence[Row], settings: Settings, paper: Mapping[str, Sequence[str]]) -> str:
    """What size was run, where the latent ODE stands beside the paper's, and beside recurrent networks."""
    public = Settings()
    whole = of_its_size(settings)
    seeds = f"{settings.seeds} {'seed' if settings.seeds == 1 else 'seeds'}"
    short = any(row["epochs"] < row["of"] for row in rows)
    data = (
        f"The paper's size ({settings.sequences} sequences, {settings.units} units)"
        if whole
        else f"{settings.sequences} of the paper's {public.sequences} sequences, {settings.units} of its "
        f"{public.units} units"
    )
    epochs = f"{_epochs(settings)} of its {public.epochs} epochs{' (some rows have fewer)' if short else ''}"
    size = f"{data}, {epochs}, {seeds}."
    return " ".join([size, *_reached(rows, settings, paper if whole else {}), *_gradients(rows, settings)])


def of_its_size(settings: Settings) -> bool:
    """Whether data and networks are the paper's."""
    public = Settings()
    return all(getattr(settings, name) == getattr(public, name) for name in SIZE)


def _epochs(settings: Settings) -> str:
    """The latent ODE's, at each fraction where they differ."""
    own = [epochs_at(fraction, settings) for fraction in settings.fractions]
    return f"{own[0]}" if len(set(own)) == 1 else " / ".join(map(str, own))


def _reached(rows: Sequence[Row], settings: Settings, paper: Mapping[str, Sequence[str]]) -> list[str]:
    """The errors of the first gradient, beside the paper's and the best recurrent network's."""
    name = settings.gradient[0]
    own = [_error(rows, name, fraction) for fraction in settings.fractions]
    seen = " / ".join(f"{fraction * 100:g}" for fraction in settings.fractions)
    if None in own:
        return []
    theirs = f", the paper's has {' / '.join(paper[name])}" if name in paper else ""
    said = f"With {seen} % of the points seen, the latent ODE by {name} has {_said(own)} (x 1e-2){theirs}"
    best = [_best(rows, fraction) for fraction in settings.fractions]
    if None in best:
        return [f"{said}."]
    below, above = (
        [
            f"{f:.0%}"
            for f, a, b in zip(settings.fractions, own, best, strict=True)
            if a and b and (a < b) is less
        ]
        for less in (True, False)
    )
    verdicts = [f"{word} at {', '.join(at)}" for word, at in (("below", below), ("above", above)) if at]
    return [f"{said}: {' and '.join(verdicts)} the recurrent networks' best, {_said(best)}."]


def _gradients(rows: Sequence[Row], settings: Settings) -> list[str]:
    spreads = []
    for fraction in settings.fractions:
        found = [e for name in settings.gradient if (e := _error(rows, name, fraction)) is not None]
        if len(found) > 1:
            spreads.append((max(found) - min(found)) / min(found))
    return [f"Its error is the same for every gradient, to {max(spreads):.1%}."] if spreads else []


def _error(rows: Sequence[Row], name: str, fraction: float) -> float | None:
    return mean(
        [row["mse"] for row in rows if (row["model"], row["fraction"]) == (name, fraction) and "mse" in row]
    )


def _best(rows: Sequence[Row], fraction: float) -> float | None:
    """The least error of a recurrent network."""
    return min((e for cell in CELLS if (e := _error(rows, cell, fraction)) is not None), default=None)


def _said(errors: Sequence[float | None]) -> str:
    return " / ".join("-" if error is None else f"{error * 100:.2f}" for error in errors)
