"""One process at a time in the folder of a run.

The system holds the lock and frees it when the process ends, however it ends; the file says who holds it.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from time import sleep

from .experiment import UsageError
from .files import make
from .machine import now

NAME = "run.lock"
BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
"""What file systems without locks answer."""
TRIES = 20
HOLDER = re.compile(r"PID \d+ on \S+, since [\d: -]+ UTC")
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 1 << 30, os.SEEK_SET)  # behind the content: what is locked cannot be read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Be the only process at work in a folder, which is made if it is not there.

    Processes that are forked meanwhile share the lock. A folder that is made here and stays empty goes again.

    Raises
    ------
    UsageError
        When another process is at work there, or when the folder cannot be written.
    """
    made, owner = not folder.exists(), os.getpid()
    file = None
    try:
        try:
            file = _held(folder)
        except OSError as error:
            where = f"{NAME}: " if error.filename == str(folder / NAME) else ""
            raise UsageError(f"cannot write the run to {folder}: {where}{error.strerror or error}") from error
        yield
    finally:
        if os.getpid() == owner:
            if file is not None:
                _let_go(folder / NAME, file)
            if made:
                with suppress(OSError):
                    folder.rmdir()


def writing(folder: Path) -> AbstractContextManager[None]:
    """Be the only process at work in a folder if it is that of a run; any other folder is not locked."""
    return at_work(folder) if (folder / "config.json").is_file() else nullcontext()


def _held(folder: Path) -> int:
    """The locked file, with this process's number in it."""
    path = folder / NAME
    for _ in range(TRIES):
        make(folder)
        try:
            file = os.open(path, _FLAGS, 0o666)
        except FileNotFoundError:  # another process has just removed a folder that it had made
            continue
        try:
            _lock_or_refuse(file, folder)
            if _is(file, path):
                os.truncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
                os.write(file, f"PID {os.getpid()} on {socket.gethostname()}, since {now()}\n".encode())
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has just removed it
    raise UsageError(
        f"{folder / NAME} comes and goes: is another process being started there again and again?"
    )


def _lock_or_refuse(file: int, folder: Path) -> None:
    try:
        _lock(file)
    except OSError as error:
        if error.errno in WITHOUT:
            print(
                f"torchaca: note: the file system of {folder} has no locks: let no other process work there",
                file=sys.stderr,
            )
        elif error.errno in BUSY:
            raise UsageError(
                f"another process{_holder(file)} is at work in {folder}: wait for its end, or end it"
            ) from error
        else:
            raise


def _holder(file: int) -> str:
    """` (PID ...)`, or nothing where the file does not say it."""
    for _ in range(TRIES):
        os.lseek(file, 0, os.SEEK_SET)
        found = HOLDER.match(os.read(file, 1000).decode(errors="replace"))
        if found:
            return f" ({found[0]})"
        sleep(0.01)  # it may be about to write it
    return ""


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _let_go(path: Path, file: int) -> None:
    """Remove the file while it is locked, so that nobody finds it unlocked; Windows removes no open file."""
    if sys.platform != "win32":
        with suppress(OSError):
            path.unlink()
    os.close(file)
    if sys.platform == "win32":
        with suppress(OSError):
            path.unlink()
