"""The loops in C: search, march and sweep of any explicit Runge-Kutta method over any f that is code.

They know f as a pointer to its code and a method as its numbers, so that they are compiled once for a dtype, not for
each f.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from ..build import Build, Library
from ..records import LAYOUT

PIECES = ("types", "arithmetic", "stages", "watch", "march", "search", "sweep", "step", "rows")
LOOPS = {"march": 3, "search": 3, "sweep": 3, "forward_rows": 3, "backward_rows": 4}
"""With how many structures they work, until a slice of time is spent."""
_PLACE, _REAL, _WHOLE = ctypes.c_void_p, ctypes.c_double, ctypes.c_int64
SINGLE = {
    "slope": [_PLACE, _REAL, _PLACE, _PLACE],
    "g_at": [_PLACE, _WHOLE, _REAL, _REAL, _PLACE, _PLACE],
    "step": [_PLACE, _REAL, _REAL, _WHOLE, _WHOLE, *[_PLACE] * 4],
    "slopes_of_rows": [_PLACE, _PLACE, _PLACE],
    "pull_step": [_PLACE, _PLACE, _REAL, _REAL, _WHOLE, _WHOLE, *[_PLACE] * 5],
}
"""What they take that do one thing and return."""
STAGES = 64
"""The most that a method may have; see driver/types.c."""
C_TYPES = {torch.float32: "float", torch.float64: "double"}
"""The dtypes of states that there is code for."""


def text_of(dtype: torch.dtype) -> str:
    """The text of the loops for states of a dtype."""
    head = f"typedef {C_TYPES[dtype]} T;\n#define TINY ((T){torch.finfo(dtype).tiny!r})\n"
    folder = Path(__file__).parent
    return head + "\n".join((folder / f"{piece}.c").read_text() for piece in PIECES)


@functools.cache
def started(dtype: torch.dtype) -> Build:
    """The loops, in the making."""
    return Build(text_of(dtype), "driver")


@functools.cache
def loops_for(dtype: torch.dtype) -> Library:
    """The loops, compiled.

    Raises
    ------
    CannotBuild
    """
    library = started(dtype).result()
    for name, places in LOOPS.items():
        function = library.function(name)
        function.restype, function.argtypes = ctypes.c_int64, [*[_PLACE] * places, _REAL]
    for name, kinds in SINGLE.items():
        library.function(name).argtypes = kinds
    library.function("g_at").restype = _REAL
    found = library.function("layout")
    found.restype = ctypes.c_int64
    for i, record in enumerate(LAYOUT):
        if found(i) != ctypes.sizeof(record):
            raise RuntimeError(f"{record.__name__} is laid out in other ways in C and in Python")
    return library
