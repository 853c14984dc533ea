"""Which rows are trained, in which order and for how long, and what each of them is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import TensorDataset

from ..cases import measure
from ..engine import Batches, Loader, evaluate, fit
from ..run import Run
from ..table import mean
from ..training import share
from .data import Data, seen
from .networks import CELLS
from .parts import error_parts
from .plots import plot_reconstructions
from .settings import Settings
from .train import Fit, epochs_of, gradient_distances

COUNTS = ("nfe", "nfe_backward", "rejected")
DRAWS = 50  # samples of a reconstruction's band
RESIDUALS = 400  # training sequences that say how large the errors are

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One training, up to `epochs`; a short one ends where its schedule goes on."""

    name: str
    fraction: float
    seed: int
    epochs: int
    short: bool = False

    @property
    def row(self) -> str:
        """As it is in the run folder."""
        return f"{self.name} {self.fraction:.0%} seed {self.seed}"


def full(settings: Settings) -> list[str]:
    """The networks that are trained to the end at all fractions: what is asked for first comes first."""
    short = {name for name, _, _ in settings.short}
    gradients = [name for name in settings.gradient if name not in short]
    return [*gradients, *settings.baselines]


def cases(settings: Settings) -> list[Case]:
    """All trainings of a run; those that a time limit should reach come first."""
    found = [
        Case(name, fraction, seed, epochs_of(name, fraction, settings))
        for seed in range(settings.seeds)
        for name in full(settings)
        for fraction in settings.fractions
    ]
    shorts = [
        Case(name, fraction, 0, min(epochs, epochs_of(name, fraction, settings)), short=True)
        for name, fraction, epochs in settings.short
        if name in settings.gradient
    ]
    return [*found, *shorts]


def train_rows(
    run: Run, settings: Settings, data: Mapping[int, Data], console: Console
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One result for every case; for the first gradient and seed, plots with their captions."""
    waiting = [case.row for case in cases(settings)]
    rows, plots = [], {}
    for case in cases(settings):
        own = data[case.seed]
        made = train_row(run, settings, own, case, console, share(run, settings.time_limit, waiting, []))
        found = result(run.of(case.row), made, own, case)
        rows.append({"model": case.name, "fraction": case.fraction, "seed": case.seed, **found})
        waiting.remove(case.row)
        if case.name == full(settings)[0] and case.name not in CELLS and case.seed == 0 and "mse" in found:
            rows[-1]["parts"] = error_parts(made.to("cpu"), own, test_mask(own, case.fraction, 0))
            if case.fraction == settings.fractions[(len(settings.fractions) - 1) // 2]:
                plots.update(reconstructions(run, made, own, case))  # the others look much alike
            if found["epochs"] == case.epochs:
                measured = {
                    f"gradients {case.fraction:.0%}": lambda made=made: gradient_distances(
                        settings, data[0], made, 0
                    )
                }
                measure(run, console, "distances of gradients", measured)
    return rows, plots


def train_row(
    run: Run, settings: Settings, data: Data, case: Case, console: Console, seconds: float | None
) -> Fit:
    """The network of a case, trained from where the run folder says it is."""
    made = Fit(case.name, settings, data, case.fraction, case.seed)
    loader = Loader(TensorDataset(data.train), Batches(len(data.train), settings.batch, case.seed))
    fit(
        run,
        console,
        case.row,
        made,
        loader,
        hardware=settings,
        seed=case.seed,
        epochs=case.epochs,
        seconds=seconds,
        least=1,
        validation=_tested(data, case, settings.curve) if settings.curve else None,
    )
    return made


def result(lines: Sequence[Line], made: Fit, data: Data, case: Case) -> dict[str, Any]:
    """What one row is worth: its test error and the cost of an epoch."""
    trained = [line for line in lines if "failed" not in line]
    batches = len(Batches(len(data.train), made.settings.batch))
    found: dict[str, Any] = {
        "epochs": len(trained),
        "of": case.epochs,
        "short": case.short,
        "parameters": sum(parameter.numel() for parameter in made.parameters()),
        "batches": batches,
        "seconds": median(line["seconds"] for line in trained) if trained else None,
        **{name: mean([line[name] * batches for line in trained]) for name in COUNTS},
        "train_mse": trained[-1]["mse"] if trained else None,
        "curve": [line.get("test_mse") for line in trained],
        "epoch_seconds": [line["seconds"] for line in trained],
    }
    failures = [line["message"] for line in lines if "failed" in line]
    if failures:
        return {**found, "failed": failures[-1]}
    loader = _tested(data, case, len(data.test))
    return {**found, **evaluate(made, loader, hardware=made.settings, seed=case.seed)}


def _tested(data: Data, case: Case, count: int) -> Loader:
    """The first of the test sequences, with the points of each that are seen."""
    tested = TensorDataset(data.test[:count], test_mask(data, case.fraction, case.seed)[:count])
    return Loader(tested, Batches(len(tested), 200))


def test_mask(data: Data, fraction: float, seed: int) -> torch.Tensor:
    """Which points of the test set are seen: the same for every model."""
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    return seen(len(data.test), data.test.shape[1], fraction, generator)


def reconstructions(run: Run, made: Fit, data: Data, case: Case) -> dict[str, str]:
    """A plot of test sequences beside the band that the model gives them."""
    mask, chosen = test_mask(data, made.fraction, 0), slice(0, 3)
    train, made = data.train[:RESIDUALS], made.to("cpu")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = made.draws(data.test[chosen], mask[chosen], DRAWS)
        told = made.draws(train, seen(len(train), train.shape[1], made.fraction), 1)[0]
        noise = (told - train).square().mean(0).sqrt()
    file = f"reconstructions-{made.fraction * 100:.0f}.png"
    plot_reconstructions(data, mask[chosen], draws, noise, run.folder / file)
    caption = (
        f"Test sequences, {case.name}, {made.fraction:.0%} of the points seen (dots): truth (black), the mean of "
        f"{DRAWS} draws, and two standard deviations: of the draws and of the noise together, which is not the "
        f"{made.settings.std:g} of the likelihood, but what the trained model leaves of {len(train)} training "
        "sequences at each time, for each dimension (the likelihood's maximum)."
    )
    return {file: caption}
