"""What a contestant does for the benchmark, in whatever process and with whatever library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .workloads import Result


class Run(Protocol):
    """A contestant that is ready for one workload."""

    def train(self) -> tuple[float, float]:
        """Make one training step; seconds of its forward pass, and of all of it."""
        ...

    def result(self) -> Result:
        """What an untimed training step finds, with the counts of its evaluations and steps."""
        ...

    def peak(self) -> int | None:
        """The bytes that a training step needs at most at one time."""
        ...

    def syncs(self) -> int | None:
        """How often a training step makes the host wait for the device; None where there is none."""
        ...


@dataclass(frozen=True)
class Refusal:
    """Why a contestant has no number for a workload."""

    reason: str
