"""Batches: the samples in the leading dimension of y0 are independent problems, each with steps of its own."""

from .check import check_independence, check_options
from .dense import SampleDense
from .door import check_door
from .pieces import SamplePieces
from .solved import Solved
from .solving import solve_samples, solver_of
from .times import SampleTimes, common_times, sample_times

__all__ = [
    "SampleDense",
    "SamplePieces",
    "SampleTimes",
    "Solved",
    "check_door",
    "check_independence",
    "check_options",
    "common_times",
    "solver_of",
    "sample_times",
    "solve_samples",
]
