"""Events: where a function of time and state changes sign, the solve notes it, jumps or ends."""

from .course import Course, occurrences, solve_through, watch_for
from .event import Event, Occurrences, events_of
from .pieces import Pieces

__all__ = [
    "Course",
    "Event",
    "Occurrences",
    "Pieces",
    "events_of",
    "occurrences",
    "solve_through",
    "watch_for",
]
