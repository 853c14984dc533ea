"""Files that survive a kill, a power cut and a full disk: written whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .experiment import UsageError

PROBE_BYTES = 4 << 20  # room for the checkpoints and plots of a run
PART_BYTES = 16 << 20  # of the files of a large state
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
"""What file systems without the fsync of a folder, and folders that may be written but not read, answer to it."""


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    beside = unfinished(path)
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        rename(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def unfinished(path: Path) -> Path:
    """Where this process writes a file before it has its name: two processes do not write into each other's."""
    return path.parent / f"{path.name}.{os.getpid()}.tmp"


def rename(beside: Path, path: Path) -> None:
    """Give a file, whose content is on the disk, its name, so that a power cut does not take the name back."""
    os.replace(beside, path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk, if the system and the file system can do that."""
    if os.name == "nt":
        return
    try:
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


def make(folder: Path) -> None:
    """Make a folder and those it lies in, if they are not there yet."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        sync(place.parent)


def probe(folder: Path) -> None:
    """Write to the folder what takes as much room as the results of a run, and remove it.

    Raises
    ------
    OSError
        When the folder cannot be made or written, or when the disk is full.
    """
    make(folder)
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
