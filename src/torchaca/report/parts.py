"""What makes the gradient of a computed solution wrong: its steps, its states or its outputs. Measured."""

from __future__ import annotations

from ..errors import SolverError
from ..gradients import ACA
from ..log import GradientError
from .model import Grads, Model, differentiate, distance
from .reference import Reference

MOST = 1024  # sub-steps
AGREED = 0.1  # of what they are off by, or of the error of the computed solution: more of them change nothing
SEEN = 0.1  # an error above it counts as this much: it is to be resolved, however large
ROUNDING = 100.0  # roundings of the state's dtype: less is noise


def parts_of(model: Model, own: Grads, reference: Reference) -> GradientError | None:
    """The parts of the error of the computed solution's gradient, in units of the reference; None if f refuses.

    Sub-steps take away what steps are off by that are too long for their derivative, and the loss differentiated at the
    reference's outputs what its own are off by. What is left are the states between.
    """
    try:
        fine = _resolved(model, own, reference.grads)
        right = differentiate(model, ACA(substeps=fine[0]), at=reference.outputs).grads
    except (SolverError, RuntimeError, ValueError, TypeError):
        return None
    size = distance({x: 0.0 * g for x, g in reference.grads.items()}, reference.grads)
    if not size:
        return None
    return GradientError(
        _apart(own, fine[1], reference.grads),
        distance(right, reference.grads),
        _apart(fine[1], right, reference.grads),
    )


def _resolved(model: Model, own: Grads, reference: Grads) -> tuple[int, Grads]:
    """So many sub-steps that twice as many change nothing, and the gradient."""
    parts, before = 1, own
    least = max(AGREED * min(SEEN, distance(own, reference)), ROUNDING * model.rounding)
    while True:
        parts *= 2
        now = differentiate(model, ACA(substeps=parts)).grads
        changed, off = _apart(before, now, reference), distance(now, reference)
        if changed <= max(AGREED * off, least) or parts >= MOST:
            return parts, now
        before = now


def _apart(a: Grads, b: Grads, unit: Grads) -> float:
    """The distance of two gradients in units of a third."""
    return distance({x: unit[x] + (a[x] - b[x]).to(unit[x].dtype) for x in unit}, unit)
