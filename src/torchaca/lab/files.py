"""Files that survive a kill, a power cut and a full disk: written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .experiment import UsageError

PROBE_BYTES = 4 << 20  # room for the checkpoints and plots of a run
PART_BYTES = 16 << 20  # of the files of a large state
CHECKPOINT = "a checkpoint"
PART_SUM = 16  # digits of the sum of a part: it says which one is damaged
SEAL, SUM = b"torchaca sha256 ", 64
"""The comment of a checkpoint's zip: these bytes, and as many hexadecimal digits."""
UNFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What goes wrong when something takes over what was written of another thing."""
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


def whole_lines(content: bytes) -> tuple[bytes, bool]:
    """The whole lines of a file, and whether a kill has torn another one."""
    whole, newline, torn = content.rpartition(b"\n")
    return whole + newline, bool(torn)


def read_json(path: Path, needed: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """A JSON file that holds the names that are needed, with values of these types.

    Raises
    ------
    UsageError
        When it is damaged, or of something else.
    """
    try:
        content = json.loads(read(path, "JSON").decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} does not read as JSON: {first_line(error)}") from error
    try:
        expect(content, needed)
    except ValueError as error:
        raise UsageError(f"{path} is not what `torchaca run` writes: {error}") from error
    return content


def expect(content: Any, needed: Mapping[str, type | tuple[type, ...]]) -> None:
    """Look whether something that was read from JSON holds these names, with values of these types.

    Raises
    ------
    ValueError
    """
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    for name, kind in needed.items():
        if not isinstance(content[name], kind):
            raise ValueError(f"its {name} cannot be a {type(content[name]).__name__}")


def read(path: Path, what: str) -> bytes:
    """The content of a file.

    Raises
    ------
    UsageError
        When there is none, or a folder or a device of this name: "PATH does not read as WHAT: ...".
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} does not read as {what}: it is no file")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} does not read as {what}: {error.strerror or error}") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and containers of them: the old state or the new one is there at every moment.

    The file is one of `torch.save` with its checksum as the comment of the zip, so that `torch.load` reads it. A large
    state goes into parts, `PATH.SUM.0`, `PATH.SUM.1`, ..., that are easier to move, and `path` lists them.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = seal(buffer)
    parts = {}
    if len(content) > PART_BYTES:
        total = _sum(content)
        for number, start in enumerate(range(0, len(content), PART_BYTES)):
            part, piece = f"{path.name}.{total[:8]}.{number}", content[start : start + PART_BYTES]
            write(path.with_name(part), piece)
            parts[part] = _sum(piece)[:PART_SUM]
        listed = {"sha256": total, "parts": list(parts), "sums": list(parts.values())}
        content = json.dumps(listed).encode()
    write(path, content)
    old = re.compile(re.escape(path.name) + r"\.([0-9a-f]{8}\.\d+|\d+\.tmp|[0-9a-f]{8}\.\d+\.\d+\.tmp)")
    for other in path.parent.iterdir():
        if old.fullmatch(other.name) and other.name not in parts:
            other.unlink()


def load_state(path: Path, place: Any = "cpu") -> Any:
    """What `save_state` has written, on the device `place`.

    Checkpoints of earlier versions, which have no checksum, are checked by those of the zip's members.

    Raises
    ------
    UsageError
        When the file, or a part of it, is not the one that was written, or is no checkpoint.
    """
    content = read(path, CHECKPOINT)
    if content.startswith(b"{"):
        content = _joined(path, content)
    try:
        _check(content)
        with warnings.catch_warnings(action="ignore"):  # about pickles that are refused afterwards
            return torch.load(io.BytesIO(content), map_location=place, weights_only=True)
    except Damaged as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} does not read as {CHECKPOINT}: it holds more than tensors and plain values (nothing of it was run)"
        ) from error
    except Exception as error:  # of torch's reader, which was made for files that are whole
        raise UsageError(f"{path} does not read as {CHECKPOINT}: {first_line(error)}") from error


class Damaged(ValueError):
    """The content is not the one that was written."""


def seal(buffer: io.BytesIO) -> memoryview:
    """The zip in `buffer` with a comment at its end: the SHA-256 sum of everything before that sum."""
    length = len(SEAL) + SUM
    buffer.seek(-2, io.SEEK_END)
    buffer.write(length.to_bytes(2, "little") + SEAL)
    buffer.write(_sum(buffer.getbuffer()).encode())
    return buffer.getbuffer()


def _check(content: bytes) -> None:
    """Look whether a checkpoint is as it was written; nothing is unpacked.

    Raises
    ------
    Damaged
    """
    body, sealed = content[:-SUM], content[-SUM - len(SEAL) : -SUM] == SEAL
    if sealed and _sum(body).encode() != content[-SUM:]:
        raise Damaged("its content is not that of its SHA-256 sum")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, as no checkpoint is")
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("it claims to hold more than it is long")
        if not sealed and (wrong := archive.testzip()):
            raise Damaged(f"{wrong} in it is not that of its CRC-32 sum")


def _joined(path: Path, listed: bytes) -> bytes:
    """The content of a checkpoint in parts."""
    try:
        about = json.loads(listed)
        names, total = about["parts"], about["sha256"]
        sums = about.get("sums") or [None] * len(names)  # which earlier versions did not write
        known = all(_is_part(path, name, total, number) for number, name in enumerate(names))
        wanted = dict(zip(names, sums, strict=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} does not read as {CHECKPOINT}: its list of parts is broken") from error
    if not known:
        raise UsageError(f"{path} does not read as {CHECKPOINT}: it lists files that are no parts of it")
    pieces = []
    for part, wanted_sum in wanted.items():
        pieces.append(read(path.with_name(part), f"a part of the checkpoint {path}"))
        if wanted_sum is not None and _sum(pieces[-1])[:PART_SUM] != wanted_sum:
            raise UsageError(f"{path} is damaged: its parts are not those of its sums, {part} for one")
    content = b"".join(pieces)
    if _sum(content) != total:
        raise UsageError(f"{path} is damaged: its parts are not those of its SHA-256 sum")
    return content


def _sum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_part(path: Path, name: str, total: str, number: int) -> bool:
    """Whether it is the name of a part that lies beside `path`, which may have been renamed."""
    return path.with_name(name).parent == path.parent and name.endswith(f".{total[:8]}.{number}")


def first_line(error: Exception) -> str:
    """What an error says in its first line, or of which kind it is where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
