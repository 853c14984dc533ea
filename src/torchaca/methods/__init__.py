"""The methods, by name: torchdiffeq's names and torch_ACA's beside our own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

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
from .stability import stability
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

for _method in METHODS.values():
    stability(_method)  # measured here, a millisecond each, and not in the middle of a solve

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


def _constructor(method: Method) -> Callable[..., Method]:
    """For `aca.Dopri5()`: a Runge-Kutta method is a value, so every call gives the same one; others are classes."""
    if not isinstance(method, RungeKutta):
        return type(method)

    def constructor() -> RungeKutta:
        return method

    constructor.__doc__ = f"Return the method {method.name!r}, of order {method.order}."
    return constructor


def _name(method: Method) -> str:
    """The name of its constructor: "HeunEuler" for "heun_euler"."""
    if not isinstance(method, RungeKutta):
        return type(method).__name__
    return re.sub("(^|_)([a-z])", lambda found: found[2].upper(), method.name)


CONSTRUCTORS: dict[str, Callable[..., Method]] = {
    _name(method): _constructor(method) for method in METHODS.values()
}
"""`Dopri5` and its like: names here and in `torchaca`, one for each row of METHODS."""

globals().update(CONSTRUCTORS)
if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[[], RungeKutta]: ...


__all__ = ["ALF", "ALIASES", "CONSTRUCTORS", "METHODS", "ReversibleHeun", "RungeKutta"]
__all__ += [name for name in CONSTRUCTORS if name not in __all__]
__all__ += [name.upper() for name, method in METHODS.items() if isinstance(method, RungeKutta)]
