"""What a backward pass did, step by step: `debug=True`.

Where the gradient becomes nan or inf, that step and the tensor are named and the pass ends; where it explodes, a
warning names the step that did most; the norms of all steps are there for a plot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .core import Stats
from .errors import SolverError, warn
from .field.places import label
from .field.reach import reach

EXPLODED = 1e6  # growth of the cotangent over consecutive steps that is worth a warning
NAMED = 3  # tensors named in a message, the rest is counted


@dataclass(frozen=True)
class Point:
    """The backward pass through one step.

    Attributes
    ----------
    step : int
        Its number in the forward pass, from 0.
    t0, t1 : float
        Where it starts and ends.
    norm : float
        2-norm of dL/dy(t1), the cotangent of what the step hands on (for alf and reversible Heun that is more than
        y). Outputs between t0 and t1 count for
        the step with "aca", for its end state with "direct", which differs in this number alone.
    growth : float
        By how much the step multiplies that norm on the way back to t0.
    shares : dict
        Tensor name -> 2-norm of what this step adds to its gradient.
    """

    step: int
    t0: float
    t1: float
    norm: float
    growth: float
    shares: dict[str, float]


@dataclass
class _Told:
    """What the parts of a solve have told: how many steps it has, the last backward pass, and how much it has grown."""

    n_steps: int = 0
    points: list[Point] = field(default_factory=list)
    gain: float = 1.0
    highest: float = 1.0


class Trace:
    """The last backward pass of a solution, step by step; empty before it.

    Attributes
    ----------
    points : list of Point
        In the order of the backward pass: the last step first.
    """

    def __init__(self, f: Callable[..., Any], args: tuple[Any, ...], stats: Stats) -> None:
        self.names = {id(tensor): label(path) for path, tensor in reversed(reach(f, args).tensors)}
        self.stats = stats
        self.before = 0
        self._told = _Told()

    def behind(self, n_steps: int) -> Trace:
        """The same trace, for a part of the solve that has so many steps before it: theirs are told as well."""
        part = copy(self)
        part.before = n_steps
        return part

    def reaches(self, n_steps: int) -> None:
        """Note that this part of the solve has at least so many steps."""
        self._told.n_steps = max(self._told.n_steps, self.before + n_steps)

    @property
    def points(self) -> list[Point]:
        """The steps; see the class."""
        return self._told.points

    @property
    def ts(self) -> list[float]:
        """The times of `norms`, in the direction of the solve."""
        return [self.points[-1].t0, *(p.t1 for p in reversed(self.points))] if self.points else []

    @property
    def norms(self) -> list[float]:
        """|dL/dy| at the ends of the steps; the first, at t[0], without what an output there adds."""
        if not self.points:
            return []
        first = self.points[-1]
        return [first.norm * first.growth, *(p.norm for p in reversed(self.points))]

    def passed(
        self,
        step: int,
        span: tuple[float, float],
        cotangents: Sequence[Tensor],
        grad_y: Tensor | None,
        grads: Sequence[tuple[Tensor, Tensor | None]],
    ) -> None:
        """Note the backward pass through one step.

        Parameters
        ----------
        step, span
            The step's number in this part of the solve, and its two times.
        cotangents
            Of its end state (first), and of its other outputs.
        grad_y
            The product with its Jacobian: the cotangent of the state that it starts from.
        grads
            The tensors that f uses, each with the step's share of its gradient.

        Raises
        ------
        SolverError
            Of kind "gradient", where one of them is not finite.
        """
        step, told = self.before + step, self._told
        if not told.points or step >= told.points[-1].step:
            told.points, told.gain, told.highest = [], 1.0, 1.0
        norm, onward = _norm(cotangents[0]), 0.0 if grad_y is None else _norm(grad_y)
        shares = {self._name(x): _norm(grad) for x, grad in grads if grad is not None}
        growth = onward / norm if norm else 0.0
        self.points.append(Point(step, *span, norm, growth, shares))
        if not all(map(math.isfinite, map(_norm, cotangents))):
            raise self._stopped("the loss's own gradient with respect to the outputs is not finite", "")
        bad = [name for name, share in shares.items() if not math.isfinite(share)]
        if not math.isfinite(onward):
            raise self._stopped("the cotangent of y became nan or inf", _listed(bad))
        if bad:
            raise self._stopped("a gradient became nan or inf, that of y did not", _listed(bad))
        told.gain = max(told.gain, 1.0) * growth
        told.highest = max(told.highest, told.gain)
        if step == 0 and told.highest > EXPLODED:
            self._warn()

    def _name(self, tensor: Tensor) -> str:
        return self.names.get(id(tensor), f"a tensor of shape {tuple(tensor.shape)}")

    def _where(self, point: Point) -> str:
        low, high = sorted((point.t0, point.t1))
        return f"in step {point.step + 1} of {self._told.n_steps}, t in [{low:.6g}, {high:.6g}]"

    def _stopped(self, what: str, tensors: str) -> SolverError:
        point = self.points[-1]
        if tensors:
            advice = (
                "a root, norm, division or logarithm of zero in f, and masks behind it (torch.where passes 0 * inf "
                "= nan on); torch.autograd.detect_anomaly() around f(t, y) there finds the line."
            )
        else:
            advice = "the loss first: the solve only hands its gradient on."
        message = f"{what} {self._where(point)}{tensors}.\n  try: look at {advice}"
        return SolverError(
            "gradient", message, t=point.t1, dt=abs(point.t1 - point.t0), stats=self.stats, backward=True
        )

    def _warn(self) -> None:
        worst = max(self.points, key=lambda point: point.growth)
        share = max(worst.shares, key=lambda name: worst.shares[name], default="")
        warn(
            f"the gradient exploded: |dL/dy| grew {self._told.highest:.1e}-fold on the way back, most "
            f"{self._where(worst)} ({worst.growth:.2g}-fold)"
            + (f"; {share} got most of that step's gradients" if share else "")
        )


def _norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.detach()).item()


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ", while the gradients of all tensors that f uses stayed finite"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f", in {', '.join(sorted(names)[:NAMED])}{more}"
