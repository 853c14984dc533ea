"""The methods, by name: torchdiffeq's names and torch_ACA's beside our own."""

from collections.abc import Callable

from ..core import Method
from .alf import ALF
from .bosh3 import BOSH3
from .dopri5 import DOPRI5
from .dopri8 import DOPRI8
from .euler import EULER
from .fehlberg import FEHLBERG2, FEHLBERG5
from .heun import HEUN2, HEUN3, HEUN_EULER
from .midpoint import MIDPOINT
from .ralston import RALSTON
from .reversible_heun import ReversibleHeun
from .rk4 import RK4, RK4_38
from .runge_kutta import RungeKutta
from .tsit5 import TSIT5

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        EULER,
        MIDPOINT,
        HEUN2,
        HEUN3,
        RALSTON,
        FEHLBERG2,
        RK4,
        RK4_38,
        HEUN_EULER,
        BOSH3,
        FEHLBERG5,
        DOPRI5,
        TSIT5,
        DOPRI8,
        ALF(),
        ReversibleHeun(),
    )
}

ALIASES: dict[str, Method] = {
    "adaptive_heun": HEUN_EULER,  # torchdiffeq
    "Euler": EULER,  # torch_ACA, from here on
    "RK2": MIDPOINT,
    "RK4": RK4,
    "RK12": HEUN_EULER,
    "HeunEuler": HEUN_EULER,
    "RK23": BOSH3,
    "RK45": DOPRI5,
    "Dopri5": DOPRI5,
}


def _constructor(method: RungeKutta) -> Callable[[], RungeKutta]:
    """For `aca.Dopri5()`: a method is a value, so every call gives the same one."""
    return lambda: method


Euler = _constructor(EULER)
Midpoint = _constructor(MIDPOINT)
Heun2 = _constructor(HEUN2)
Heun3 = _constructor(HEUN3)
Ralston = _constructor(RALSTON)
Fehlberg2 = _constructor(FEHLBERG2)
Rk4 = _constructor(RK4)
Rk4_38 = _constructor(RK4_38)
HeunEuler = _constructor(HEUN_EULER)
Bosh3 = _constructor(BOSH3)
Fehlberg5 = _constructor(FEHLBERG5)
Dopri5 = _constructor(DOPRI5)
Tsit5 = _constructor(TSIT5)
Dopri8 = _constructor(DOPRI8)

__all__ = [
    "ALF",
    "ALIASES",
    "BOSH3",
    "Bosh3",
    "DOPRI5",
    "DOPRI8",
    "Dopri5",
    "Dopri8",
    "EULER",
    "Euler",
    "FEHLBERG2",
    "FEHLBERG5",
    "Fehlberg2",
    "Fehlberg5",
    "HEUN2",
    "HEUN3",
    "HEUN_EULER",
    "Heun2",
    "Heun3",
    "HeunEuler",
    "METHODS",
    "MIDPOINT",
    "Midpoint",
    "RALSTON",
    "RK4",
    "RK4_38",
    "Ralston",
    "ReversibleHeun",
    "Rk4",
    "Rk4_38",
    "RungeKutta",
    "TSIT5",
    "Tsit5",
]
