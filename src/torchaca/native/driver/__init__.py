"""The loops in C: search, march and sweep of any explicit Runge-Kutta method over any f that is code.

They know f as a pointer to its code and a method as its numbers, so that they are compiled once for a dtype, not for
each f.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path

import torch

from ..build import Build, Library
from ..records import LAYOUT

PIECES = ("types", "arithmetic", "stages", "watch", "march", "search", "sweep", "step")
ROW_PIECES = ("lanes", "rows", "rows_forward", "rows_backward")
"""What the loops over rows have beside them."""
LOOPS = {"march": 3, "search": 3, "sweep": 3}
ROW_LOOPS = {"forward_rows": 3, "backward_rows": 4}
"""With how many structures they work, until a slice of time is spent."""
_PLACE, _REAL, _WHOLE = ctypes.c_void_p, ctypes.c_double, ctypes.c_int64
SINGLE = {
    "slope": [_PLACE, _REAL, _PLACE, _PLACE],
    "g_at": [_PLACE, _WHOLE, _REAL, _REAL, _PLACE, _PLACE],
    "step": [_PLACE, _REAL, _REAL, _WHOLE, _WHOLE, *[_PLACE] * 4],
    "pull_step": [_PLACE, _PLACE, _REAL, _REAL, _WHOLE, _WHOLE, *[_PLACE] * 5],
}
"""What they take that do one thing and return."""
STAGES = 64
"""The most that a method may have; see driver/types.c."""
C_TYPES = {torch.float32: "float", torch.float64: "double"}
"""The dtypes of states that there is code for."""


def text_of(dtype: torch.dtype, width: int = 0) -> str:
    """The text of the loops for states of a dtype; with a `width`, of those over rows, so many side by side."""
    head = f"typedef {C_TYPES[dtype]} T;\n#define TINY ((T){torch.finfo(dtype).tiny!r})\n"
    head += f"#define W {width}\n" + ("#define FLOATS\n" if dtype == torch.float32 else "")
    folder = Path(__file__).parent
    return head + "\n".join(
        (folder / f"{piece}.c").read_text() for piece in PIECES + (ROW_PIECES if width else ())
    )


@functools.cache
def started(dtype: torch.dtype, width: int = 0) -> Build:
    """The loops, in the making."""
    return Build(text_of(dtype, width), "rows" if width else "driver")


@functools.cache
def loops_for(dtype: torch.dtype) -> Library:
    """The loops, compiled.

    Raises
    ------
    CannotBuild
    """
    library = started(dtype).result()
    _declare(library, LOOPS)
    for name, kinds in SINGLE.items():
        library.function(name).argtypes = kinds
    library.function("g_at").restype = _REAL
    return library


@functools.cache
def row_loops_for(dtype: torch.dtype, width: int) -> Library:
    """The loops over rows, so many side by side, compiled.

    Raises
    ------
    CannotBuild
    """
    library = started(dtype, width).result()
    _declare(library, ROW_LOOPS)
    library.function("slopes_of_rows").argtypes = [_PLACE] * 3
    return library


def _declare(library: Library, loops: Mapping[str, int]) -> None:
    for name, places in loops.items():
        function = library.function(name)
        function.restype, function.argtypes = ctypes.c_int64, [*[_PLACE] * places, _REAL]
    found = library.function("layout")
    found.restype = ctypes.c_int64
    for i, record in enumerate(LAYOUT):
        if found(i) != ctypes.sizeof(record):
            raise RuntimeError(f"{record.__name__} is laid out in other ways in C and in Python")
