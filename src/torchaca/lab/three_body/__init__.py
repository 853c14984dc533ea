"""`torchaca run three-body`: the motion of three bodies, learned from its first half.

Table 5 of the paper. Rows "ode": the equations of motion are known, the masses are not. Rows "node": a neural
network is the acceleration. Rows "lstm": a network predicts the next positions.
"""

from __future__ import annotations

from ..experiment import Experiment
from .outcome import main
from .settings import Settings, check

EXPERIMENT = Experiment(
    name="three-body",
    about="Three bodies under gravity: models learn the motion on [0, 1] and are tested on [0, 2].",
    defaults=Settings(),
    sizes={
        "smoke": {
            "epochs": 2,
            "rtol": 1e-5,
            "atol": 1e-5,
            "train_points": 50,
            "seeds": 1,
            "node_stages": ((0.2, 1), (1.0, 1)),
            "node_solves": 3,
            "lstm_steps": (0.02,),
            "lstm_hidden": (8,),
            "lstm_epochs": 20,
            "lstm_seeds": 1,
            "reference": 1e-8,
        },
        "demo": {"model": ("ode",), "reference": None, "time_limit": 150.0},
        "cpu": {"epochs": 20, "lr_decay": 0.8},
        "paper": {},
    },
    main=main,
    check=check,
)
