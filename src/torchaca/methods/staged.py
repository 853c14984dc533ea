"""Methods whose steps are made of stages: what a compiled solve has to know of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor

from ..core import Method, Step, VectorField
from ..numbers import Time


class StagedStep(Step, Protocol):
    """A step of a method that is `Staged`."""

    @property
    def known(self) -> Sequence[Tensor]:
        """The stages that have been evaluated so far."""
        ...


class Staged(Method, Protocol):
    """A method whose step evaluates stages k_i = f(t_i, y_i), each at a state made of y0 and the stages before it.

    y1, the error and the interpolant are linear in y0 and the stages; the basis of a step is y0 and h times each of
    the `dense_stages` stages. `RungeKutta` is one, and so is any method with these members: compiled solves ask for
    no more.
    """

    @property
    def fsal(self) -> bool:
        """First same as last: the last of `stages` is f(t1, y1), which only the error estimate needs."""
        ...

    @property
    def dense_stages(self) -> int:
        """The number of stages with which the interpolant is made, those of the step included."""
        ...

    @property
    def f1_index(self) -> int | None:
        """Which stage is f(t1, y1), if one is."""
        ...

    @property
    def error_weights(self) -> Sequence[float]:
        """The e_i in `error = h sum_i e_i k_i`; empty if the method has no error estimate."""
        ...

    def step(self, f: VectorField, t0: Time, t1: Time, y0: Tensor, hint: Tensor | None = None) -> StagedStep:
        """One step; `f0` is f(t0, y0) if known and only saves work."""
        ...

    def complete(
        self,
        f: VectorField,
        t0: Time,
        t1: Time,
        y0: Tensor,
        stages: Sequence[Tensor],
        y1: Tensor | None = None,
        error: Tensor | None = None,
    ) -> StagedStep:
        """The step whose first stages are known, and its y1 and error if they are given; it evaluates the rest."""
        ...


def staged(method: Method) -> Staged | None:
    """The method, if it is `Staged`; told by one member, which Dynamo can trace."""
    return cast("Staged", method) if hasattr(method, "complete") else None
