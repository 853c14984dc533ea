"""Files that survive a kill and a full disk: written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .experiment import UsageError

PROBE_BYTES = 4 << 20  # room for the checkpoints and plots of a run


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def probe(folder: Path) -> None:
    """Write to the folder what takes as much room as the results of a run, and remove it.

    Raises
    ------
    OSError
        When the folder cannot be made or written, or when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "write-probe.tmp"
    write(file, bytes(PROBE_BYTES))
    file.unlink()


def whole_lines(path: Path) -> tuple[bytes, bool]:
    """The whole lines of a metrics file, and whether a kill has torn another one."""
    content = path.read_bytes() if path.exists() else b""
    whole, newline, torn = content.rpartition(b"\n")
    return whole + newline, bool(torn)


def read_json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """A JSON file that holds the names that are needed.

    Raises
    ------
    UsageError
        When it is damaged, or of something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} does not read as JSON: {error}") from error
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise UsageError(f"{path} is not what `torchaca run` writes: it has no {', '.join(missing)}")
    return content
