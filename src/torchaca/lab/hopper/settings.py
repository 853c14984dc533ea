"""What can be set, and the recipes: that of the public latent-ODE code, and one that learns faster."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

KL_WAIT, KL_BASE = 10, 0.99  # the divergence counts 0 for 10 epochs, then 1 - 0.99^(epochs since)
LR_DECAY, LR_LEAST = 0.999, 0.1  # of the schedule "decay"; after each step, down to a tenth

ENCODERS = ("all", "seen")
MUON = "muon"
OPTIMIZERS = ("adamax", "adam", MUON)
SCHEDULES = ("decay", "cosine")


@dataclass(frozen=True)
class Settings:
    """Those of the public latent-ODE code at the paper's size.

    Attributes
    ----------
    encode : {"all", "seen"}
        Between which points the encoder takes its Euler steps: all times of the window, as the public code does where
        some series of a batch was seen at each of them, or those at which the series itself was seen.
    train_samples, samples : int
        Draws of z0 in training, and in tests.
    optimizer, lr, muon_lr, schedule, warm_up : str, float, float, str, float
        "muon" is Muon with `muon_lr` for the matrices between hidden units, and Adam with `lr` for all other weights.
        "decay" is the public code's: times 0.999 after each step, down to a tenth. "cosine" rises linearly during the
        part `warm_up` of all steps, and falls to zero at the last one.
    matmul : str
        The precision of `torch.set_float32_matmul_precision`.
    replay : bool
        Whether aca takes its steps again in the backward pass, as the paper's does, or keeps their graphs, which is
        the library's default where they fit.
    baseline_epochs : int, optional
        Epochs of the recurrent networks; as many as the latent ODEs have where nothing is given.
    short : tuple of (str, float, int)
        Gradients that are trained only at one fraction and for a few epochs, the first ones of the same schedule.
    fewer : tuple of (float, int)
        Fractions at which the latent ODEs are trained for fewer epochs than `epochs`, with a whole schedule.
    curve : int
        Sequences of the test set whose error is recorded after each epoch; nothing is chosen by it.
    """

    gradient: tuple[str, ...] = ("aca", "direct", "naive", "adjoint")
    baselines: tuple[str, ...] = ("rnn", "rnn-gru")
    fractions: tuple[float, ...] = (0.1, 0.2, 0.5)
    seeds: int = 3
    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-4
    data: str | None = None
    sequences: int = 10_000
    window: int = 100
    batch: int = 50
    epochs: int = 300
    latent: int = 15
    units: int = 300
    layers: int = 3
    state: int = 30
    gru_units: int = 100
    std: float = 1e-3
    samples: int = 3
    train_samples: int = 3
    encode: str = "all"
    optimizer: str = "adamax"
    lr: float = 1e-2
    muon_lr: float = 1e-2
    schedule: str = "decay"
    warm_up: float = 0.0
    matmul: str = "highest"
    replay: bool = True
    baseline_epochs: int | None = None
    short: tuple[tuple[str, float, int], ...] = field(default=())
    fewer: tuple[tuple[float, int], ...] = field(default=())
    curve: int = 400
    precision: str = "32"
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    time_limit: float | None = None
    threads: int = 1


def kl_weight(epoch: int) -> float:
    """The factor of the divergence in an epoch."""
    return 0.0 if epoch < KL_WAIT else 1 - KL_BASE ** (epoch - KL_WAIT)


def lr_factor(settings: Settings, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at one of all steps."""
    if settings.schedule == "decay":
        return max(LR_DECAY ** (step + 1), LR_LEAST)
    rise = settings.warm_up * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def epochs_at(fraction: float, settings: Settings) -> int:
    """Epochs of the latent ODEs at a fraction."""
    return dict(settings.fewer).get(fraction, settings.epochs)


def recipe(settings: Settings) -> str:
    """The recipe in words."""
    s = settings
    schedule = (
        f"times {LR_DECAY} after each step, down to a tenth"
        if s.schedule == "decay"
        else f"rising for {s.warm_up:.0%} of the steps, then a cosine to zero"
    )
    optimizer = (
        f"Muon, learning rate {s.muon_lr:g}, for the matrices between hidden units, Adam, {s.lr:g}, for all others"
        if s.optimizer == MUON
        else f"{s.optimizer}, learning rate {s.lr:g}"
    )
    steps = "all times of the window" if s.encode == "all" else "the points that the series was seen at"
    return (
        f"recipe of all rows: {optimizer}, {schedule}; batches of {s.batch}; "
        f"latent samples in training: {s.train_samples}; Euler steps of the encoder between {steps}; "
        f"matrix products in the precision {s.matmul!r} of `torch.set_float32_matmul_precision`; aca "
        f"{'takes its steps again' if s.replay else 'keeps the graphs of its steps'} in the backward pass."
    )


def differences(settings: Settings) -> list[str]:
    """In which settings of the recipe these differ from the public code's."""
    names = ("batch", "epochs", "train_samples", "encode", "optimizer", "lr", "schedule")
    own, public = vars(settings), vars(Settings())
    return [
        f"{name} {_said(own[name])} for {_said(public[name])}" for name in names if own[name] != public[name]
    ]


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
