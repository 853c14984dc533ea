"""The folder of compiled code: the user's alone, each file whole or not there, and none believed without its hash.

A library that is damaged (a disk that was full, a process that was killed) may crash whoever loads it, so that each
file ends with the hash of what is before it, which loaders of libraries do not look at.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

ENVIRONMENT = "TORCHACA_CACHE_DIR"
HASH = 32  # bytes
SHARED = 0o022  # the rights of others to write


@functools.cache
def of_this_process() -> Path:
    """A folder for when there is no other: it is gone when the process ends."""
    made = tempfile.mkdtemp(prefix="torchaca-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def home() -> Path:
    """Where the user wants compiled code to be kept."""
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchaca"


def folder() -> Path:
    """A folder that nobody but this user can write to: the user's, or one of this process."""
    with contextlib.suppress(OSError, RuntimeError):  # no home, no room, no right
        place = home()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.stat()
        if found.st_uid == os.getuid() and not found.st_mode & SHARED and os.access(place, os.W_OK | os.X_OK):
            return place
    return of_this_process()


def sound(path: Path) -> bool:
    """Whether a file is there and is as it was written."""
    try:
        found = path.read_bytes()
    except OSError:
        return False
    return len(found) > HASH and hashlib.sha256(found[:-HASH]).digest() == found[-HASH:]


def sealed(path: Path) -> None:
    """Put the hash behind a finished file."""
    with path.open("ab") as file:
        file.write(hashlib.sha256(path.read_bytes()).digest())
