"""The gradient methods as the experiments compare them: with the solver each one needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

import torchaca as aca
from torchaca.core import Gradient, Method, Reversible
from torchaca.gradients import Adjoint

INTERPOLATED = "adjoint interpolated"


@dataclass(frozen=True)
class Variant:
    """A row of a comparison: a gradient method and the solver that it is used with."""

    name: str
    gradient: Gradient
    method: Method

    @property
    def title(self) -> str:
        """The name, with the solver where it is a reversible one."""
        return f"{self.name} ({self.method.name})" if isinstance(self.method, Reversible) else self.name


def gradient_of(name: str) -> Gradient:
    """The gradient method of that name; "aca" is the paper's, which keeps states and takes every step again."""
    return aca.ACA(checkpoints="all") if name == "aca" else aca.GRADIENTS[name]()


def variants(names: Iterable[str], method: str, reversible: Method) -> list[Variant]:
    """One row per name, two for "adjoint": integrating the state back, and reading it from the forward steps.

    `reversible` is the solver of "mali", which no other solver's steps can be undone for.
    """
    rows = []
    for name in names:
        solver = reversible if name == "mali" else aca.METHODS[method]
        rows.append(Variant(name, gradient_of(name), solver))
        if name == "adjoint":
            rows.append(Variant(INTERPOLATED, Adjoint(state="interpolated"), solver))
    return rows


class StartSeen:
    """An f that remembers the state at which it was last evaluated at time 0.

    After a backward pass that is the start as this pass took it to be.
    """

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.f = f
        self.start: Tensor | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if t.item() == 0:
            self.start = y.detach()
        return self.f(t, y)


def relative_distance(found: Tensor, truth: Tensor) -> float:
    """|found - truth| / |truth| in the Euclidean norm, in float64."""
    found, truth = found.detach().double(), truth.detach().double()
    return float(torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth))
