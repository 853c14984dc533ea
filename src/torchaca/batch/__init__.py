"""Batches: the samples in the leading dimension of y0 are independent problems, each with steps of its own."""

from .check import check_independence, check_sizes
from .door import check_door
from .natively import passed_over
from .run import solve_samples
from .solved import Solved
from .times import SampleTimes, common_times, sample_times

__all__ = [
    "SampleTimes",
    "Solved",
    "check_door",
    "check_independence",
    "check_sizes",
    "common_times",
    "passed_over",
    "sample_times",
    "solve_samples",
]
