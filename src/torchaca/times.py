"""Output times: numbers of the host that steer a solve, and the tensor that carries their derivative."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .errors import shorten
from .numbers import Time, host_times, value
from .transforms import is_differentiated, refuse_lanes


@dataclass(frozen=True)
class Times:
    """The output times: host values that steer, and the tensor that carries their derivative, if wanted.

    `moving`: somebody differentiates with respect to them, also where a forward pass goes without the tensor.
    """

    values: tuple[float, ...]
    tensor: Tensor | None = None
    moving: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "moving", self.moving or self.tensor is not None)

    @cached_property
    def sign(self) -> float:
        """+1.0 where time increases from the first to the last value, else -1.0."""
        return -1.0 if self.values[-1] < self.values[0] else 1.0

    @cached_property
    def _ordered(self) -> list[float]:
        return [self.sign * t for t in self.values]

    @cached_property
    def _unbound(self) -> Sequence[Time]:
        return self.values if self.tensor is None else self.tensor.unbind()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> Time:
        return self._unbound[i]

    def up_to(self, t: float) -> int:
        """The number of output times that are at or before `t` in the direction of the solve."""
        return bisect_right(self._ordered, self.sign * t)

    def at_start(self) -> int:
        """The number of outputs that are the initial state.

        Where the times carry derivatives, only the first: one that shares its value moves along the solution.
        """
        if self.moving and self.values[0] != self.values[-1]:
            return 1
        return self.up_to(self.values[0])

    def first(self, n: int) -> Times:
        """The first `n` of them."""
        if n == len(self.values):
            return self
        return Times(self.values[:n], None if self.tensor is None else self.tensor[:n], moving=self.moving)

    def ending(self, n: int, t: Time) -> Times:
        """The first `n` of them, and another last one."""
        tensor = self.tensor
        if tensor is not None or isinstance(t, Tensor):
            with (
                torch.enable_grad()
            ):  # a forward pass that goes without a graph ends the problem that has one
                first = host_times(self.values[:n]) if tensor is None else tensor[:n]
                tensor = torch.cat([first, host_times(t).reshape(1)])
        return Times((*self.values[:n], value(t)), tensor, moving=self.moving)

    def detached(self) -> Times:
        return Times(self.values, moving=self.moving) if self.tensor is not None else self


def times_of(t: Any, name: str) -> Times:
    """Output times from a list, an array or a tensor: finite and monotone, or an error that says where not.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
    """
    tensor = None
    if isinstance(t, list | tuple) and {*map(type, t)} <= {int, float}:
        values = tuple(map(float, t))
    else:
        refuse_lanes(t, name)
        try:
            tensor = host_times(t)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} must be a list, an array or a tensor of real numbers, got {shorten(t)}"
            ) from error
        if tensor.ndim != 1:
            hint = " (the order is f, y0, t)" if tensor.ndim else ": write [t0, t1]"
            hint += "; times of each sample, (B, n), need batch=1" if tensor.ndim == 2 else ""
            raise ValueError(f"{name} must be one-dimensional, got shape {tuple(tensor.shape)}{hint}")
        values = tuple(tensor.detach().tolist())
    if not values:
        raise ValueError(f"{name} is empty: give at least the initial time, usually [t0, t1]")
    for i, time in enumerate(values):
        if not math.isfinite(time):
            raise ValueError(f"{name}[{i}] is {time}: times must be finite")
    times = Times(values, tensor if tensor is not None and is_differentiated(tensor) else None)
    for i in range(1, len(values)):
        if times.sign * values[i] < times.sign * values[i - 1]:
            raise ValueError(
                f"{name} must be increasing or decreasing, but {name}[{i}] = {values[i]:g} follows "
                f"{name}[{i - 1}] = {values[i - 1]:g}: sort it"
            )
    return times
