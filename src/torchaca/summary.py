"""A solve in a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .core import Control, Gradient, Method, tolerant
from .errors import shorten
from .torch_internals import is_functorch_wrapped_tensor, pytree

if TYPE_CHECKING:
    from .solve import Solution


def describe_settings(method: Method, control: Control, gradient: Gradient) -> str:
    """Name the method, its tolerances and the gradient."""
    return f"{method.name}, {_tolerances(control)}, gradient {gradient.name!r}"


def _tolerances(control: Control) -> str:
    own = tolerant(control)
    if own is None:
        return f"steps of {type(control).__name__}" if control.adaptive else "fixed steps"
    pairs = (("rtol", own.rtol), ("atol", own.atol))
    return ", ".join(
        f"{name} per component" if isinstance(x, Tensor) else f"{name} {x:g}" for name, x in pairs
    )


def describe(solution: Solution) -> str:
    """Say in at most 600 characters how a solve went and what it has, without its numbers."""
    stats = solution.stats
    steps = f"{stats.accepted} steps" + (f" ({stats.rejected} rejected)" if stats.rejected else "")
    evaluations = f"{stats.nfe} evaluations" + (
        f" (+ {stats.nfe_backward} backward)" if stats.nfe_backward else ""
    )
    leaves = pytree.tree_leaves(solution.ys)
    hidden = any(x.is_meta or is_functorch_wrapped_tensor(x) for x in leaves)
    parts = [
        *([shorten(solution.settings, 150)[1:-1]] if solution.settings else []),
        "status unknown" if hidden else f"status {solution.status!r}",
        steps,
        evaluations,
        f"ts {tuple(solution.ts.shape)}",
        f"ys {shorten(pytree.tree_map(lambda x: tuple(x.shape), solution.ys), 250)}",
        *(["dense"] if solution.dense is not None else []),
    ]
    return f"Solution({'; '.join(parts)})"
