"""Processes that torchrun has started: each of them carries out the whole command, and the first one writes."""

from __future__ import annotations

import os

from torch import distributed


def launched() -> bool:
    """Whether torchrun has started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def first() -> bool:
    """Whether this process is the one that writes."""
    return not launched() or os.environ["RANK"] == "0"


def machines() -> int:
    """How many machines the processes are on."""
    return int(os.environ["WORLD_SIZE"]) // on_this_machine() if launched() else 1


def on_this_machine() -> int:
    """How many processes torchrun has started on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"])
