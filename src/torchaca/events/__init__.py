"""Events: where a function of time and state changes sign, the solve notes it, jumps or ends."""

from .course import Course, occurrences, solve_through, watch_for
from .event import Event, Occurrences, events_of
from .guard import Guard
from .pieces import Pieces
from .watch import PARTS, Crossing, Watch

__all__ = [
    "PARTS",
    "Course",
    "Crossing",
    "Event",
    "Guard",
    "Occurrences",
    "Pieces",
    "Watch",
    "events_of",
    "occurrences",
    "solve_through",
    "watch_for",
]
