"""`torchaca run toy`: dz/dt = k z, where the gradient of L = z(T)^2 is known in closed form.

From the slides ("Consider a toy example whose gradient can be analytically solved"). Two errors are measured:
against the gradient of the exact solution, which is mostly the solver's error, and against the gradient of
the computed, discrete solution, which is the gradient method's own.
"""

from __future__ import annotations

from ..experiment import Experiment
from .errors import Settings
from .outcome import main

EXPERIMENT = Experiment(
    name="toy",
    about="dz/dt = k z, L = z(T)^2: the error of dL/dz0 and dL/dk of every gradient method, against T.",
    defaults=Settings(),
    sizes={"smoke": {"times": (5.0, 20.0)}, "cpu": {}, "paper": {}},
    main=main,
)
