"""Gradients of times: steps may end elsewhere, and outputs lie elsewhere on their interpolants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core import Problem
from ..field.inputs import Inputs
from ..gradients import without_graph
from ..gradients.replay import MaybeTensors, Parts, rebuilt, vjp


def gradients_of_times(
    p: Problem,
    times: Sequence[float],
    ts: Tensor | None,
    control: Sequence[Tensor],
    ends: Tensor,
    moved: Tensor,
) -> MaybeTensors:
    """Those of the output times and of the control's tensors, from those of the steps' `ends` and of the outputs.

    `times` are the boundaries of the steps, which are functions of the output times and of what the control holds.
    """
    plain, parts = without_graph(p), Parts(p.y0.detach(), ts, tuple(control), (), ()).leaves()
    own = rebuilt(plain, replace(parts, y0=plain.y0), Inputs())
    with torch.enable_grad():
        boundaries = own.control.boundaries(own.ts, times)
    wrt = [own.ts.tensor, *own.control.tensors]
    moving = [(b, g) for b, g in zip(boundaries, ends.unbind(), strict=True) if isinstance(b, Tensor)]
    found: MaybeTensors = [None] * len(wrt)
    if moving:  # none where a solve failed before its first step
        found = vjp([b for b, _ in moving], wrt, [g for _, g in moving], keep=True)
    if own.ts.tensor is not None:
        found[0] = moved if found[0] is None else found[0] + moved
    return found
