"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PART_BYTES = 16 << 20  # of the files of a large state


def write(path: Path, content: bytes | memoryview) -> None:
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


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and containers of them: the old state or the new one is there at every moment.

    A large state goes into parts, `PATH.SUM.0`, `PATH.SUM.1`, ..., that are easier to move, and `path` lists them.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getbuffer()
    parts = []
    if len(content) > PART_BYTES:
        total = hashlib.sha256(content).hexdigest()
        for number, start in enumerate(range(0, len(content), PART_BYTES)):
            parts.append(path.with_name(f"{path.name}.{total[:8]}.{number}"))
            write(parts[-1], content[start : start + PART_BYTES])
        content = json.dumps({"sha256": total, "parts": [part.name for part in parts]}).encode()
    write(path, content)
    for old in set(path.parent.glob(f"{glob.escape(path.name)}.*.*")) - set(parts):
        old.unlink()


def load_state(path: Path, place: Any = "cpu") -> Any:
    """What `save_state` has written, on the device `place`.

    Raises
    ------
    ValueError
        Where a part is not the one that was written.
    """
    content = path.read_bytes()
    if content.startswith(b"{"):
        listed = json.loads(content)
        content = b"".join((path.parent / name).read_bytes() for name in listed["parts"])
        if hashlib.sha256(content).hexdigest() != listed["sha256"]:
            raise ValueError("its parts are not those that were written with it")
    return torch.load(io.BytesIO(content), map_location=place, weights_only=True)
