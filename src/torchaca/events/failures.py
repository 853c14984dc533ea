"""Why a solve with events cannot go on, in the words of every other failure."""

from __future__ import annotations

from ..core import Problem
from ..errors import SolverError


def stopped(p: Problem, kind: str, t: float, dt: float, seen: str, advice: str) -> SolverError:
    """Say where the solve stopped, in a step of size `dt`, what was seen there, and what to try."""
    stats, (start, end) = p.stats, (p.ts.values[0], p.ts.values[-1])
    message = (
        f"stopped at t = {t:.10g} of [{start:g}, {end:g}] after {stats.accepted} accepted and {stats.rejected} "
        f"rejected steps ({p.method.name}).\n  {seen}\n  try: {advice}"
    )
    return SolverError(kind, message, t=t, dt=abs(dt), stats=stats)
