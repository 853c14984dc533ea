"""The floor of the three bodies: a training step in C, written by hand for this problem alone, without a library."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import numpy as np

from torchaca.native.build import Build

from .memory import resident_peak
from .workloads import Counts, Result, Workload

TEXT = Path(__file__).with_name("three_bodies.c")
FIRST_STEP = 1e-3


class ByHand:
    """See `protocol.Run`; forward and backward pass are one call."""

    def __init__(self, w: Workload) -> None:
        self.w, self.step = w, Build(TEXT.read_text(), "three_bodies").result().function("train")
        self.step.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_double] * 3 + [ctypes.c_void_p] * 3

    def train(self) -> tuple[float, float]:
        start = time.perf_counter()
        self.y, self.m = self.w.y0.copy(), self.w.parameters["masses"]
        self.gy, self.gm, self.counts = np.zeros_like(self.y), np.zeros(3), np.zeros(2, np.int32)
        numbers = self.w.t1, self.w.tolerance, FIRST_STEP
        places = (x.ctypes.data for x in (self.gy, self.gm, self.counts))
        self.accepted = self.step(self.y.ctypes.data, self.m.ctypes.data, *numbers, *places)
        total = time.perf_counter() - start
        return total, total

    def result(self) -> Result:
        self.train()
        evaluated, rejected = self.counts.tolist()
        counts = Counts(evaluated, 6 * self.accepted, self.accepted, rejected)
        return Result(self.y, {"y0": self.gy, "masses": self.gm}, counts)

    def peak(self) -> int | None:
        return resident_peak(self.train)

    def syncs(self) -> int | None:
        return None
