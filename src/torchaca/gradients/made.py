"""Parts of a solve that were made again, to be differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core import Step
from ..field.inputs import Inputs
from ..numbers import Time
from .replay import MaybeTensors, vjp


@dataclass(frozen=True)
class Taken:
    """A step between leaves: where it starts, when, and what it has handed on."""

    y: Tensor
    times: tuple[Time, Time]
    step: Step
    end: Tensor


@dataclass(frozen=True)
class Made:
    """A part of a solve that was made again, with its graph: `outs`, and the `cotangents` of them.

    `wrt`: what a product is with respect to, in the order of `Tally.add`. `kept`: somebody else needs the graph, too.
    """

    inputs: Inputs
    step: Step
    wrt: Sequence[Tensor | None]
    outs: list[Tensor]
    cotangents: list[Tensor]
    kept: bool = False

    def pulled(
        self, outs: Sequence[Tensor], cotangents: Sequence[Tensor], *, keep: bool = False
    ) -> MaybeTensors:
        """The vector-Jacobian product; `keep` the graph for another one."""
        return vjp(outs, self.wrt, cotangents, keep=keep or self.kept or self.inputs.shared)


def on_leaves(*times: Time) -> list[Tensor | None]:
    """Times as what a product is with respect to: None where they are numbers."""
    return [t if isinstance(t, Tensor) else None for t in times]
