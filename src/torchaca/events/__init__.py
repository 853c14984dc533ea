"""Events: where a function of time and state changes sign, the solve notes it, jumps or ends."""

from .course import Course, occurrences, solve_through
from .event import Event, Occurrences, events_of

__all__ = ["Course", "Event", "Occurrences", "events_of", "occurrences", "solve_through"]
