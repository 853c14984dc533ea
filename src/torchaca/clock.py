"""How finely time is resolved: steps are made in float64, and f gets their times in its state's precision."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import torch

from .control import Adaptive
from .core import Times
from .stepping import TINY, TOO_SMALL

STEP = 1.6 * TOO_SMALL * 2.0**-52  # of t: what steps are longer than, and to spare


def merged(control: Adaptive, ts: Times, dtype: torch.dtype) -> Adaptive:
    """The control with one jump in place of several that rounding cannot tell apart.

    A jump, or a stop, that is as near to an output time is moved there: onto the ends of the solve first of all.

    Parameters
    ----------
    dtype : torch.dtype
        In which f gets the time.
    """
    if not (control.jump_ts or control.stop_ts):
        return control
    start, end = ts.values[0], ts.values[-1]
    part, least = max(STEP, torch.finfo(dtype).eps), TINY * abs(end - start)

    def same(t: float, other: float) -> bool:
        return abs(t - other) <= max(part * max(abs(t), abs(other)), least)

    outputs = sorted(ts.values)
    places: dict[float, bool] = {}  # the times that are kept, and whether f jumps there
    last = start
    for t, jumps in sorted([*((t, True) for t in control.jump_ts), *((t, False) for t in control.stop_ts)]):
        place = next((known for known in (start, end, last) if same(t, known)), None)
        if place is None:
            output = _nearest(t, outputs)
            crowded = any(same(output, known) for known in (start, end, last))
            place = output if same(t, output) and not crowded else t
        places[place] = places.get(place, False) or jumps
        last = place
    jump_ts = tuple(t for t, jumps in places.items() if jumps)
    stop_ts = tuple(t for t, jumps in places.items() if not jumps)
    return replace(control, jump_ts=jump_ts, stop_ts=stop_ts)


def _nearest(t: float, times: Sequence[float]) -> float:
    n = bisect_left(times, t)
    return min(times[max(n - 1, 0) : n + 1], key=lambda other: abs(other - t))
