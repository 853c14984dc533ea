"""What a three-body run is made of."""

from __future__ import annotations

from dataclasses import dataclass

from ..experiment import UsageError, check_name

MODELS = ("lstm", "lstm-aug-input", "node", "ode")
SOLVED = ("node", "ode")
"""The models that are differential equations: one row for each gradient method."""

COUNTS = ("nfe", "nfe_backward", "rejected", "rejected_backward")
"""What is counted of a solve and its gradient."""


@dataclass(frozen=True)
class Settings:
    """The settings of the authors' script for the ODE rows, in float64; of this project for the others.

    Attributes
    ----------
    model
        Those of `MODELS` that are trained.
    rtol, atol, epochs, lr, lr_decay, betas, time_weight, mass_spread
        Of the ODE rows.
    node_stages
        Length of the segments that the NODE is trained on, as a part of [0, 1], and epochs.
    node_tolerance
        rtol and atol of the NODE.
    node_solves
        The solves with a gradient in an epoch of the NODE.
    node_targets
        At most so many outputs are compared with the truth in a segment.
    node_spread
        Initial weights of the NODE are normal with this standard deviation.
    lstm_steps, lstm_hidden, lstm_lr
        The grid that the LSTMs are searched on: time step, units, learning rate.
    lstm_epochs, lstm_check
        The longest training of the search, and after how many epochs each it is validated.
    lstm_seeds
        The trainings of each choice in the search.
    lstm_tail
        The end of [0, 1] that the search validates on.
    reference
        Tolerances of the gradient that every method's is compared with; None leaves the comparison out.
    """

    model: tuple[str, ...] = MODELS
    gradient: tuple[str, ...] = ("aca", "direct", "naive", "adjoint")
    seeds: int = 3
    method: str = "dopri5"
    rtol: float = 1e-7
    atol: float = 1e-7
    epochs: int = 100
    train_points: int = 1000
    truth_tolerance: float = 1e-12
    lr: float = 0.1
    lr_decay: float = 0.95
    betas: tuple[float, float] = (0.5, 0.5)
    time_weight: float = 0.01
    mass_spread: float = 0.1
    node_stages: tuple[tuple[float, int], ...] = ((0.02, 10), (0.1, 6), (1.0, 5))
    node_tolerance: float = 1e-5
    node_solves: int = 20
    node_targets: int = 50
    node_spread: float = 1e-3
    lstm_steps: tuple[float, ...] = (0.01, 0.02)
    lstm_hidden: tuple[int, ...] = (16, 32, 64)
    lstm_lr: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    lstm_epochs: int = 200
    lstm_check: int = 20
    lstm_seeds: int = 5
    lstm_tail: float = 0.2
    reference: float | None = 1e-9
    time_limit: float | None = None
    threads: int = 1


def check(settings: Settings) -> None:
    """Refuse models that do not exist, and one that is named twice.

    Raises
    ------
    UsageError
        With the names of those that exist.
    """
    for name in settings.model:
        check_name("model", name, MODELS)
        if settings.model.count(name) > 1:
            raise UsageError(f"--model names {name!r} twice")
