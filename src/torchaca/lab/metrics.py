"""The lines of `metrics.jsonl`: what they hold, and how a line that a disk has changed is told from a good one."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .experiment import UsageError
from .files import first_line, read, whole_lines, write

CHECK = "check"
"""The name of a line's checksum; lines of earlier versions have none."""
CLOCKS = ("seconds", "elapsed")
"""What the clock says, which differs between two runs of the same numbers: the checksum is not about it."""


def encode(line: Mapping[str, Any]) -> bytes:
    """A line with its checksum."""
    plain = json.loads(json.dumps(line))
    return json.dumps({**plain, CHECK: _checksum(plain)}).encode() + b"\n"


def read_metrics(path: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """The lines of a metrics file, none where there is no file.

    A kill may have torn the last line, which is left out, and with `repair` cut off in the file.

    Raises
    ------
    UsageError
        When a line is damaged.
    """
    if not os.path.lexists(path):
        return []
    lines, torn = whole_lines(read(path, "metrics"))
    found = [_decoded(path, number, line) for number, line in enumerate(lines.split(b"\n")[:-1], 1)]
    if torn and repair:
        write(path, lines)
    return found


def rewrite(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Put these lines in the place of those that are there."""
    write(path, b"".join(map(encode, lines)))


def _checksum(line: Mapping[str, Any]) -> str:
    """The first digits of the SHA-256 sum of what the line says, whatever the order."""
    said = {name: value for name, value in line.items() if name not in CLOCKS}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _decoded(path: Path, number: int, content: bytes) -> dict[str, Any]:
    line: Any = None
    try:
        line = json.loads(content.decode())
        wrong = _objection(line)
    except (ValueError, RecursionError) as error:
        wrong = f"it does not read as JSON: {first_line(error)}"
    if wrong:
        raise UsageError(
            f"line {number} of {path} is damaged ({wrong}): delete the line; if it was an epoch's, --resume then names "
            "the checkpoint to delete with it, to train its row anew"
        )
    return line


def _objection(line: Any) -> str:
    """What a line lacks; its checksum is taken out."""
    if not isinstance(line, dict):
        return "it holds no names"
    check = line.pop(CHECK, None)
    if check is not None and check != _checksum(line):
        return "its values are not those of its checksum"
    if not isinstance(line.get("row"), str):
        return "it has no row"
    elapsed = line.get("elapsed")
    if not isinstance(elapsed, int | float) or not math.isfinite(elapsed):
        return "it has no time elapsed"
    return ""
