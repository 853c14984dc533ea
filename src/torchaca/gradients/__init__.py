"""The gradient methods, by name."""

from collections.abc import Callable

from ..core import Gradient
from ..field.effects import Moments
from .aca import ACA
from .adjoint import Adjoint
from .again import differentiate_again
from .direct import Direct
from .facts import Facts
from .mali import MALI
from .naive import Naive
from .passes import Passes, refuse, solve_with
from .replay import without_graph
from .store import Replayed, Store
from .sweep import Replay

GRADIENTS: dict[str, Callable[[], Gradient]] = {
    "aca": ACA,
    "direct": Direct,
    "naive": Naive,
    "adjoint": Adjoint,
    "mali": MALI,
}

__all__ = [
    "ACA",
    "GRADIENTS",
    "Adjoint",
    "Direct",
    "Facts",
    "MALI",
    "Moments",
    "Naive",
    "Passes",
    "Replay",
    "Replayed",
    "Store",
    "differentiate_again",
    "refuse",
    "solve_with",
    "without_graph",
]
