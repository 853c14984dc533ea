"""`torchaca run three-body`: three masses from one trajectory of the three-body problem.

Table 5 of the paper, rows "ODE": the equations of motion are known, the masses are not.
"""

from __future__ import annotations

from ..experiment import Experiment
from .fit import Settings
from .outcome import main

EXPERIMENT = Experiment(
    name="three-body",
    about="Three bodies under gravity: the masses are learned from the motion on [0, 1], tested on [0, 2].",
    defaults=Settings(),
    sizes={
        "smoke": {"epochs": 3, "train_points": 50, "seeds": 1},
        "demo": {"time_limit": 150.0},
        "cpu": {},
        "paper": {},
    },
    main=main,
)
