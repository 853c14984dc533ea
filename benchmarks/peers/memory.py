"""The growth of a process's resident memory at its peak: one measure for every library.

Before the measured call, free memory goes back to the system (`malloc_trim`) and the kernel's high-water mark is set to
what is resident; afterwards, the difference is what the call needed at most at one time, the code it loaded included.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def resident_peak(call: Callable[[], object]) -> int | None:
    """Bytes by which `call` lifts the process's peak above what is resident now; None where the system cannot say."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return None
    before = _kilobytes("VmRSS")
    call()
    return 1024 * max(0, _kilobytes("VmHWM") - before)


def _kilobytes(entry: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(entry + ":"))
    return int(line.split()[1])
