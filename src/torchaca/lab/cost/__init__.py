"""`torchaca run cost`: what each gradient method costs, beside the table of the slides.

"Comparison with naive method" and the table that follows it: computation, memory, depth of the graph, and whether the
reverse-time trajectory is right, in N_f (layers of f), N_t (steps), N_r (steps of a backward integration) and m
(trials per step).
"""

from __future__ import annotations

from ..experiment import Experiment
from .outcome import main
from .problem import Settings

EXPERIMENT = Experiment(
    name="cost",
    about="Evaluations, memory, depth of the graph and reverse accuracy of every gradient method, counted.",
    defaults=Settings(),
    sizes={
        "smoke": {"spans": (1.0, 2.0, 4.0), "layers": (1, 4, 16), "trials": (1, 2, 4)},
        "cpu": {},
        "paper": {"spans": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), "layers": (1, 2, 4, 8, 16, 32, 64)},
    },
    main=main,
)
