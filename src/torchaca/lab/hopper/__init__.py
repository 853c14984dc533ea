"""`torchaca run hopper`: latent ODEs on irregularly sampled trajectories of a MuJoCo hopper.

The paper's table of interpolation errors: a model sees 10, 20 or 50 % of the points of a trajectory and predicts all.
"""

from __future__ import annotations

from ..engine import SHARDED, check_hardware
from ..experiment import Experiment, UsageError, check_name
from . import data
from .outcome import main
from .settings import ENCODERS, OPTIMIZERS, SCHEDULES, Settings


def _check(settings: Settings) -> None:
    check_hardware(settings)
    if settings.strategy == SHARDED:
        raise UsageError(
            f"--strategy {SHARDED} shards wide networks, and hopper's is small: leave it out, for DDP"
        )
    for option, known in (
        ("encode", ENCODERS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
    ):
        check_name(option, getattr(settings, option), known)
    data.check(settings.data, settings.sequences)


SMALL = {"units": 100, "layers": 1, "gru_units": 50}

ONE_CORE = {
    "gradient": ("aca", "direct", "adjoint"),
    "baselines": ("rnn-gru",),
    "seeds": 1,
    "batch": 100,
    "epochs": 50,
    "train_samples": 1,
    "encode": "seen",
    "optimizer": "muon",
    "lr": 6e-3,
    "muon_lr": 4e-2,
    "schedule": "cosine",
    "warm_up": 0.1,
    "matmul": "medium",
    "replay": False,
    "fewer": ((0.2, 40), (0.5, 28)),
    "baseline_epochs": 5,
    "short": (("direct", 0.2, 3), ("adjoint", 0.2, 1)),
}
"""The paper's data and networks, by a recipe that learns faster: an hour or two of one core."""

EXPERIMENT = Experiment(
    name="hopper",
    about="Latent ODEs and recurrent networks: trajectories of a hopper from 10, 20 and 50 % of their points.",
    defaults=Settings(),
    sizes={
        "smoke": {
            "sequences": 20,
            "window": 20,
            "batch": 8,
            "epochs": 2,
            "seeds": 1,
            "units": 10,
            "layers": 0,
            "gru_units": 10,
        },
        "demo": {"sequences": 500, "epochs": 35, "seeds": 1, **SMALL},
        "cpu": {"sequences": 500, "epochs": 45, "seeds": 2, **SMALL},
        "one-core": ONE_CORE,
        "paper": {},
    },
    main=main,
    check=_check,
)
