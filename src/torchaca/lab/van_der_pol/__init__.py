"""`torchaca run van-der-pol`: forward in time, then back from where that ended, which is not where it began.

From the slides ("Forward-time trajectory z(t) and reverse-time trajectory might mismatch due to numerical errors",
van der Pol equation, ode45 of MATLAB).
"""

from __future__ import annotations

from ..experiment import Experiment
from .outcome import main
from .problem import Settings

EXPERIMENT = Experiment(
    name="van-der-pol",
    about="The van der Pol equation to T and back to 0: the start that is recovered, and what it costs the gradient.",
    defaults=Settings(),
    sizes={"smoke": {"times": (25.0,), "tolerances": ((1e-3, 1e-6), (1e-4, 1e-4))}, "cpu": {}, "paper": {}},
    main=main,
)
