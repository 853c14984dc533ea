"""torchaca: neural ODEs for PyTorch whose gradients can be trusted.

`solve` is the front door, `odeint` and `odeint_adjoint` take torchdiffeq's arguments, `nn.NeuralODE` is a module.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import nn
from .compat.install import install_as_torchdiffeq, uninstall_as_torchdiffeq
from .compat.torchdiffeq import odeint, odeint_adjoint, odeint_event
from .control import I_CONTROL, PI_CONTROL, PID, PID_CONTROL, Adaptive, FixedSteps
from .core import Stats
from .errors import SolverError
from .events import Event, Occurrences
from .explain import Explanation, explain
from .going_on import State
from .gradients import ACA, GRADIENTS, MALI, Adjoint, Direct, Naive
from .integrals import with_integral
from .iterate import iterate
from .methods import ALF, CONSTRUCTORS, METHODS, ReversibleHeun, RungeKutta
from .nn import NeuralODE
from .report import GradientReport, check_gradient
from .solve import Solution, solve
from .trace import Trace

__version__ = "0.2.0"

globals().update(CONSTRUCTORS)  # Dopri5 and its like
if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[[], RungeKutta]: ...


__all__ = [
    "ACA",
    "ALF",
    "GRADIENTS",
    "GradientReport",
    "I_CONTROL",
    "MALI",
    "METHODS",
    "PID",
    "PID_CONTROL",
    "PI_CONTROL",
    "Adaptive",
    "Adjoint",
    "Direct",
    "Event",
    "Explanation",
    "FixedSteps",
    "Naive",
    "NeuralODE",
    "Occurrences",
    "ReversibleHeun",
    "RungeKutta",
    "Solution",
    "SolverError",
    "State",
    "Stats",
    "Trace",
    "check_gradient",
    "explain",
    "install_as_torchdiffeq",
    "iterate",
    "nn",
    "odeint",
    "odeint_adjoint",
    "odeint_event",
    "solve",
    "uninstall_as_torchdiffeq",
    "with_integral",
]
__all__ += [name for name in CONSTRUCTORS if name not in __all__]
