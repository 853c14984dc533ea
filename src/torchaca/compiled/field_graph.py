"""f as a pure function of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .facts import dynamic_sizes, half_inside, read_unrecorded, refuse, without_sizes, without_switches
from .scalars import with_scalars


@dataclass(eq=False)
class FieldGraph:
    """`f(t, y)` on packed states as a graph; `t_at` and `y_at` are the places of t and y among its inputs.

    `silent` is the graph to use if nothing is recorded, None if that is the same. `dynamic` are the (input,
    dimension) pairs whose sizes may change; `half` is the coarsest half precision in which f computes; `unrecorded` are
    the inputs from which a value without a graph is computed where grad mode is off. `loops` holds what was compiled
    for it, `warm` for which shapes that has run; `effects` says what it leaves behind beside its value, None before its
    first evaluation. `exact` is the graph that reads Python numbers of f, where they are among its inputs.
    """

    graph: fx.GraphModule
    silent: fx.GraphModule | None = None
    effects: str | None = None
    dynamic: tuple[tuple[int, int], ...] = ()
    half: torch.dtype | None = None
    unrecorded: frozenset[int] = frozenset()
    exact: fx.GraphModule | None = None
    n_inputs: int = 0
    t_at: int | None = None
    y_at: int | None = None
    loops: dict[Any, Any] = field(default_factory=dict)
    warm: set[Any] = field(default_factory=set)

    @staticmethod
    def of(graph: fx.GraphModule, *, transforms: bool = False) -> FieldGraph:
        """Take over a graph that Dynamo has made; with `transforms`, those of torch.func may be in it.

        Raises
        ------
        CannotCompile
            If it is not a function of tensors, or cannot be differentiated as f.
        """
        refuse(graph, transforms=transforms)
        half, unrecorded = half_inside(graph), read_unrecorded(graph)
        plain = without_sizes(graph)
        made = with_scalars(plain)
        exact, plain = (None, plain) if made is None else (plain, made)
        dynamic = dynamic_sizes(plain)
        silent = without_switches(plain)
        return FieldGraph(plain, silent, dynamic=dynamic, half=half, unrecorded=unrecorded, exact=exact)

    @property
    def scalars(self) -> bool:
        """Whether Python numbers of f are among its inputs."""
        return self.exact is not None

    def evaluate(self, *tensors: Tensor) -> Tensor:
        """The derivative from all inputs of the graph, in their order."""
        graph = self.graph if self.silent is None or torch.is_grad_enabled() else self.silent
        return graph(*tensors)[0]

    def __call__(self, t: Tensor, y: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The derivative; `inputs` are the tensors that f reads."""
        own, everything = iter(inputs), []
        for at in range(self.n_inputs):
            everything.append(t if at == self.t_at else y if at == self.y_at else next(own))
        return self.evaluate(*everything)
