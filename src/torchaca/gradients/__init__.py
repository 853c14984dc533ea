"""The gradient methods, by name."""

from collections.abc import Callable

from ..core import Gradient
from .aca import ACA
from .adjoint import Adjoint
from .direct import Direct
from .mali import MALI
from .naive import Naive

GRADIENTS: dict[str, Callable[[], Gradient]] = {
    "aca": ACA,
    "direct": Direct,
    "naive": Naive,
    "adjoint": Adjoint,
    "mali": MALI,
}

TRACED = (ACA, Direct, MALI)
"""Those whose backward pass goes from step to step and can tell what happens in each (`debug=True`)."""

__all__ = ["ACA", "GRADIENTS", "TRACED", "Adjoint", "Direct", "MALI", "Naive"]
