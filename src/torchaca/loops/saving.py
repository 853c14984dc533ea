"""`save=`: what is wanted of the states at the output times, in place of the states.

A gradient that records the steps, or replays them, takes a step's outputs as soon as they are known, and of these
only what `save` makes of them is kept. Any other, and compiled loops, hand over the states, and `after` replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..core import Outcome, Problem, Step, Times
from ..errors import shorten
from ..layout import stacked
from ..numbers import BLOCK, Time
from ..state import Structure, structure_of
from ..torch_internals import is_functorch_wrapped_tensor, pytree
from .outputs import emit


class Saving:
    """`function(t, y)` on the user's structure, as a function of (time, packed state) with packed values.

    `time` makes a time what f gets; `kind` is the structure of the values, which the first one shows.
    """

    def __init__(
        self, function: Callable[..., Any], structure: Structure, time: Callable[[Time], Tensor]
    ) -> None:
        self.function, self.structure, self.time = function, structure, time
        self.kind: Structure | None = None

    def __call__(self, t: Time, y: Tensor) -> Tensor:
        """Return the value at a state, packed.

        Raises
        ------
        TypeError, ValueError
            For a value that is no tensor, or of another structure than the first one.
        """
        found = self.function(self.time(t), self.structure.unpack(y))
        kind = _structure_of(found)
        if self.kind is None:
            self.kind = kind
        elif _shapes(kind) != _shapes(self.kind):
            raise ValueError(
                f"save(t, y) returned {_words(self.kind)} at first and then {_words(kind)}: its values are stacked, "
                "and have to be of one structure and shape"
            )
        value = self.kind.pack(found)
        if value.requires_grad or is_functorch_wrapped_tensor(value):
            return value
        whole = value.untyped_storage().nbytes() > value.nbytes
        return value.clone() if whole else value  # a part of the state would hold all of it

    def emitted(self, ts: Times, step: Step, first: int, last: int, end: Time | None = None) -> Tensor:
        """Return the values at the outputs `first:last`, which lie in the step: `(last - first, *shape)`.

        `end` is where the step ends, if it is one that stands for another.
        """
        each = max(1, BLOCK // max(1, step.y1.numel()))
        values: list[Tensor] = []
        for low in range(first, last, each):
            high = min(low + each, last)
            ys = emit(ts, step, low, high, end)
            values += [self(ts[i], y) for i, y in zip(range(low, high), ys.unbind(), strict=True)]
        return stacked(values)

    def at_start(self, p: Problem, n: int) -> list[Tensor]:
        """Return the values at the first n outputs, which are y0, each `(1, *shape)`."""
        return [self(p.ts[i], p.y0)[None] for i in range(n)]

    def after(self, ts: Times, outcome: Outcome) -> Outcome:
        """Put the values in the place of the states of a solve that is done, whose output times start with `ts`."""
        ys = outcome.ys.unbind()
        return replace(outcome, ys=stacked([self(ts[i], y) for i, y in enumerate(ys)]), end=ys[-1])


def _structure_of(found: Any) -> Structure:
    leaves = pytree.tree_leaves(found)
    tensors = [x for x in leaves if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())]
    if not leaves or len(tensors) < len(leaves):
        raise TypeError(
            "save(t, y) returns a real or complex tensor, or nested tuples, lists and dicts of them; it returned "
            f"{shorten(found)}"
        )
    return structure_of(found)


def _shapes(kind: Structure) -> Sequence[Any]:
    return [kind.tree, *((leaf.shape, leaf.dtype) for leaf in kind.leaves)]


def _words(kind: Structure) -> str:
    shapes = [f"{tuple(leaf.shape)}{leaf.path and ' at '}{leaf.path}" for leaf in kind.leaves]
    return f"a tensor of shape {shapes[0]}" if kind.plain else f"tensors of shapes {', '.join(shapes)}"
