"""The table of operations: which there are, and how each is written in C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from .code import Code
from .sizes import Size


@dataclass(frozen=True)
class Call:
    """One call of an operation in a graph: what it gives, and where it is written."""

    code: Code
    shape: tuple[Size, ...]
    dtype: torch.dtype
    results: tuple[tuple[tuple[Size, ...], torch.dtype], ...] = ()
    """Shapes and dtypes, where it gives several."""

    inputs: tuple[torch.Tensor, ...] = ()
    """The tensors that it takes, as the graph knows them."""


Writer = Callable[..., Any]
"""Takes a `Call` and the operation's arguments, tensors as `Value`; gives a `Value`, or a list of them."""


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes
    ----------
    name
        As in `torch.ops.aten`, or `torch.ops` if it has a dot.
    kind
        The part of the table it is in.
    example
        An expression in Python that uses it; its variables are those of `VARIABLES`.
    overloads
        Those that are covered.
    write
        Writes a call of it; None for an operation that PyTorch's own decomposition turns into others.
    """

    name: str
    kind: str
    example: str
    overloads: tuple[str, ...] = ("default",)
    write: Writer | None = None

    @property
    def targets(self) -> tuple[Any, ...]:
        """The operations themselves, as they stand in graphs."""
        packet = attrgetter(self.name)(torch.ops if "." in self.name else torch.ops.aten)
        return tuple(getattr(packet, x) for x in self.overloads)


VARIABLES = {
    "x": "numbers (n, 4)",
    "y": "numbers (n, 4)",
    "z": "numbers (n, 4)",
    "p": "positive numbers (n, 4)",
    "u": "numbers between -0.9 and 0.9 (n, 4)",
    "w": "a matrix (4, 5)",
    "v": "a vector (4,)",
    "c": "one number ()",
    "s": "three axes (2, n, 4)",
    "i": "integers from 0 to 3 (n, 4)",
    "b": "booleans (n, 4)",
}
"""The variables of examples. n is symbolic."""


def by_target(*parts: Sequence[Operation]) -> dict[Any, Operation]:
    """All operations by their targets."""
    return {target: row for part in parts for row in part for target in row.targets}
