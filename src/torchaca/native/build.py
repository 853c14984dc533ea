"""From C to a loaded library: the machine's compiler, a limit to its time, and a cache on disk.

`TORCHACA_KEEP_SOURCE=DIR` keeps the text that is compiled, `CC` names the compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import cache

SECONDS = 120.0
"""After which a compiler is taken for one that hangs."""
KEEP_SOURCE = "TORCHACA_KEEP_SOURCE"
COMPILERS = ("cc", "gcc", "clang")
ALWAYS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-w", "-fvisibility=hidden")
# No -ffast-math: nan has to stay nan. What may be added up in another order says so itself.
FASTER = ("-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp-simd")
FLAGS = ((*ALWAYS, *FASTER), ALWAYS)
"""Tried in turn: another compiler, or another processor, may not know those that make code faster."""


class CannotBuild(Exception):
    """Why there is no code; the text ends a sentence."""


@dataclass(frozen=True)
class Library:
    """Loaded code. Its functions release the interpreter's lock while they run."""

    path: Path
    handle: ctypes.CDLL = field(repr=False)

    def function(self, name: str) -> Any:
        """A function by its name: the same object each time."""
        return getattr(self.handle, name)

    def pointer(self, name: str) -> int:
        """Where a function lies."""
        return ctypes.cast(self.function(name), ctypes.c_void_p).value or 0


class Build:
    """A library in the making, by a thread of its own: others are made meanwhile.

    Parameters
    ----------
    text : str
        C, complete.
    name : str
        What it is, for the names of files.
    """

    def __init__(self, text: str, name: str) -> None:
        parts = (text, *map(" ".join, FLAGS), _machine())
        self.key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
        self.thread: threading.Thread | None = None
        self.found = _LOADED.get(self.key)
        if self.found is None:
            self.thread = threading.Thread(target=self._make, args=(text, f"{name}_{self.key}"), daemon=True)
            self.thread.start()

    def _make(self, text: str, name: str) -> None:
        with _LOCK:
            own = _LOCKS.setdefault(self.key, threading.Lock())
        with own:
            if self.key not in _LOADED:
                _LOADED[self.key] = _load(text, name)
            self.found = _LOADED[self.key]

    def result(self) -> Library:
        """Wait for the library: found in this process or on disk, or compiled.

        Raises
        ------
        CannotBuild
            Without a compiler, or where it fails, or takes too long.
        """
        if self.thread is not None:
            self.thread.join()
        if not isinstance(self.found, Library):  # another attempt would take as long
            raise CannotBuild(self.found or "the thread that compiles has failed")
        return self.found


_LOCK = threading.Lock()
_LOCKS: dict[str, threading.Lock] = {}
_LOADED: dict[str, Library | str] = {}


@functools.cache
def _machine() -> str:
    """What compiled code depends on beside its text."""
    compiler = _compiler()
    about = [platform.machine(), torch.__version__, str(compiler)]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    if compiler is not None:
        with contextlib.suppress(OSError):
            found = Path(shutil.which(compiler[0]) or compiler[0]).resolve().stat()
            about += [str(found.st_size), str(found.st_mtime_ns)]
    return "\0".join(about)


def _compiler() -> list[str] | None:
    """The command of a C compiler, if there is one."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def _load(text: str, name: str) -> Library | str:
    """The library, or why there is none."""
    folder, failed = cache.folder(), ""
    path = folder / f"{name}.so"
    if kept := os.environ.get(KEEP_SOURCE):
        with contextlib.suppress(OSError):
            Path(kept).mkdir(parents=True, exist_ok=True)
            (Path(kept) / f"{name}.c").write_text(text)
    if cache.sound(path):
        with contextlib.suppress(OSError):
            return Library(path, ctypes.CDLL(str(path)))
    for place in (lambda: folder, cache.of_this_process):
        try:
            path = place() / path.name
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="new-") as own:
                return _made(text, Path(own), path)
        except CannotBuild as reason:
            return str(reason)
        except OSError as error:  # a disk that is full, a folder that is gone
            failed = f"compiled code cannot be written or loaded ({error})"
    return failed


def _made(text: str, own: Path, path: Path) -> Library:
    """Compile in a folder of its own; what can be loaded moves to its place in one piece."""
    source, made = own / "code.c", own / "code.so"
    source.write_text(text)
    _compile(source, made)
    cache.sealed(made)
    library = Library(path, ctypes.CDLL(str(made)))
    made.replace(path)
    return library


def _compile(source: Path, made: Path) -> None:
    command, said = _compiler(), ""
    if command is None:
        raise CannotBuild(
            f"there is no C compiler on this machine (none of {', '.join(COMPILERS)}; CC names another)"
        )
    for flags in FLAGS:
        words = [*command, *flags, str(source), "-o", str(made), "-lm"]
        code, said = _run(words)
        if code == 0 and made.exists():
            return
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
    raise CannotBuild(f"the C compiler {command[0]} failed ({first[:200].replace(str(source), 'code.c')})")


def _run(words: Sequence[str]) -> tuple[int, str]:
    """The exit status of a command, and what it said; with all that it started, it is ended after `SECONDS`."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CannotBuild(f"the C compiler {words[0]} cannot be started ({error.strerror})") from error
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except BaseException as error:  # Ctrl-C as well: nothing that was started goes on
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CannotBuild(f"the C compiler {words[0]} was not done after {SECONDS:g} s") from error
        raise
    return process.returncode, said
