"""torchaca: neural ODEs for PyTorch whose gradients can be trusted.

`solve` is the front door, `odeint` and `odeint_adjoint` take torchdiffeq's arguments, `nn.NeuralODE` is a module.
"""

from . import nn
from .compat.torchdiffeq import odeint, odeint_adjoint, odeint_event
from .control import I_CONTROL, PI_CONTROL, PID, PID_CONTROL, Adaptive, FixedSteps
from .core import Stats
from .errors import SolverError
from .gradients import ACA, GRADIENTS, MALI, Adjoint, Direct, Naive
from .methods import (
    ALF,
    METHODS,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    Fehlberg5,
    Heun2,
    Heun3,
    HeunEuler,
    Midpoint,
    Ralston,
    ReversibleHeun,
    Rk4,
    Rk4_38,
    RungeKutta,
    Tsit5,
)
from .nn import NeuralODE
from .report import GradientReport, check_gradient
from .solve import Solution, solve
from .trace import Trace

__version__ = "0.1.0"

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
    "Bosh3",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Fehlberg2",
    "Fehlberg5",
    "FixedSteps",
    "Heun2",
    "Heun3",
    "HeunEuler",
    "Midpoint",
    "Naive",
    "NeuralODE",
    "Ralston",
    "ReversibleHeun",
    "Rk4",
    "Rk4_38",
    "RungeKutta",
    "Solution",
    "SolverError",
    "Stats",
    "Trace",
    "Tsit5",
    "check_gradient",
    "nn",
    "odeint",
    "odeint_adjoint",
    "odeint_event",
    "solve",
]
