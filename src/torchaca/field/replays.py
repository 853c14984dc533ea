"""Whether a replayed step uses no tensor but the inputs of the solve."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from torch import Tensor

from .histories import used
from .inputs import Inputs
from .places import label


def check_replay(
    outs: Sequence[Tensor], inputs: Inputs, own: Sequence[Tensor | None], span: str, *, complete: bool = False
) -> None:
    """Refuse a replayed step that uses a tensor which the solve does not know as an input.

    `complete`: if f keeps values from its first evaluation, this step has to use all that the first evaluation used.

    Raises
    ------
    ValueError
        Naming the tensor: its gradient would be lost, or its history differentiated once per step.
    """
    history = {(t.grad_fn, t.output_nr) for t in inputs.captured if t.grad_fn is not None}
    known = {id(tensor) for tensor in (*inputs.tensors, *own) if tensor is not None}
    reached: set[Any] = set()
    for out in outs:
        leaves, edges = used(out, 0, {node for node, _ in (*history, *inputs.strangers)})
        names = [label(inputs.strangers[edge]) for edge in edges if edge in inputs.strangers]
        names += [f"a tensor of shape {tuple(leaf.shape)}" for leaf in leaves if id(leaf) not in known]
        reached |= {*map(id, leaves), *edges}
        if names and inputs.kept:
            raise ValueError(
                f"f keeps {inputs.kept} from its first call, computed from y or from an argument, and uses it in the "
                f"step {span}: its gradient would be lost. Compute it before the solve, or use gradient='direct'"
            )
        if names:
            raise ValueError(
                f"f first used {names[0]} in the step {span}, not at t0, so it is no input of the solve and "
                "its gradient would be lost: hand it over with args=(tensor, ...), or use gradient='direct'"
            )
    if complete and inputs.kept:
        _refuse_forgotten(inputs, reached, span)


def _refuse_forgotten(inputs: Inputs, reached: Set[Any], span: str) -> None:
    """Refuse an f that remembers values which it computed without a graph."""
    for t in inputs.used_at_start:
        if id(t) not in reached and (t.grad_fn, t.output_nr) not in reached:
            raise ValueError(
                f"f used a tensor of shape {tuple(t.shape)} at t0, and not in the step {span}, and it keeps "
                f"{inputs.kept}: a cache that was filled without a graph has no gradient. Compute what f keeps before "
                "the solve and hand it over with args=(tensor, ...), or use gradient='direct'"
            )
