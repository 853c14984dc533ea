"""Whether f gives in the backward pass what it gave in the forward pass."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import Problem
from ..field.inputs import Inputs
from ..field.places import label
from .replay import MaybeTensors, Parts

CHANGED = (
    "f gave other values in the backward pass than in the forward pass, so that the gradient would not be the "
    "solution's. {0}: keep it as it was until backward() is done, hand it over with args=(value, ...), or use "
    "gradient='direct'"
)
UNKNOWN = (
    "Something that f reads was changed in between (a tensor in place, a weight's .data, a counter of calls), or f is "
    "random in a way that was not noticed (NumPy's generator, or one of its own)"
)
THREADS = (
    "f draws random numbers, and the other threads that are running may have drawn from the same generator (solve in "
    "one thread, or in processes)"
)


class Drift:
    """How much further than rounding values of the backward pass are from those of the forward pass.

    One number, not one for each step: the backward pass holds nothing that grows with the steps.
    """

    def __init__(self, like: Tensor) -> None:
        self.allowed = torch.finfo(like.dtype).eps ** 0.5
        self.worst = self.sizes = torch.zeros((), device=like.device, dtype=like.dtype.to_real())

    def note(self, now: Tensor, before: Tensor, *, again: bool = False) -> None:
        """Compare a value with that of the forward pass; `again`: with what the backward pass has computed for it."""
        before = before.detach()
        off = torch.linalg.vector_norm(now.detach() - before)
        size = torch.linalg.vector_norm(before)
        self.worst = torch.maximum(self.worst, torch.sub(off, size, alpha=self.allowed))
        self.sizes = self.sizes if again else self.sizes + size

    def settled(
        self, grads: Sequence[Tensor | None], p: Problem, inputs: Inputs, parts: Parts | None = None
    ) -> MaybeTensors:
        """The gradients, in the order of `parts`, if nothing has drifted.

        Raises
        ------
        RuntimeError
            If f gave other values than in the forward pass. After fixed steps on a device that is not the host, which
            this would have to wait for, all gradients are nan instead.
        """
        # nan is no rounding either, unless there were values that are not finite in the forward pass, which say so.
        drifted = (self.worst > 0) | (torch.isnan(self.worst) & torch.isfinite(self.sizes))
        if drifted.device.type != "cpu" and not p.control.adaptive:
            return nan_where(drifted, grads, inputs.without_late(parts.flat()) if parts else ())
        if drifted.item():
            raise RuntimeError(CHANGED.format(_cause(p, inputs)))
        return list(grads)


def _cause(p: Problem, inputs: Inputs) -> str:
    if names := ", ".join(label(place.path) for place in inputs.reads.changed() if place.public):
        return f"Now something else is bound to {names}"
    if p.effects is not None and p.effects.random and threading.active_count() > 1:
        return THREADS
    return UNKNOWN


def nan_where(
    wrong: Tensor, grads: Sequence[Tensor | None], inputs: Sequence[Tensor | None] = ()
) -> MaybeTensors:
    """The gradients, or nan in all of them if `wrong`, 0-dim, is true; without reading it.

    The first belong to `inputs`: one of those that requires a gradient and has none may be one that f no longer reads,
    and gets zeros, or nan.
    """
    found = list(grads)
    for i, x in enumerate(inputs):
        if found[i] is None and x is not None and x.requires_grad:
            found[i] = torch.zeros_like(x, requires_grad=False)
    factor = torch.where(wrong, math.nan, 1.0)  # sparse and distributed gradients take one
    return [None if g is None else g * factor.to(g.device, g.dtype) for g in found]
