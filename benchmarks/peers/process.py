"""The other side of `worker`: starts a contestant's process, asks it, and outlives its crashes."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .protocol import Refusal

ROOT = Path(__file__).resolve().parents[2]
JAX_PYTHON = ROOT / ".venv-jax" / "bin" / "python"
INSTALL = "make benchmark installs it"
# Imports, which are a part of the first call, read bytecode, as an installed package has it.
BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def python_of(library: str) -> str:
    """The interpreter that has this library."""
    return os.environ.get("TORCHACA_JAX_PYTHON", str(JAX_PYTHON)) if library == "diffrax" else sys.executable


def missing(library: str) -> str | None:
    """Why this library cannot take part here, or None."""
    python = python_of(library)
    if not Path(python).exists():
        return f"no environment for {library}: {INSTALL}"
    asked = subprocess.run([python, "-c", f"import {library}"], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        return None
    last = asked.stderr.strip().splitlines()[-1:] or ["no reason given"]
    return f"{library} cannot be imported ({last[0]}): {INSTALL}"


class Process:
    """A worker for one library; a new one is started when the last one ended or did not answer in time."""

    def __init__(self, library: str, patience: float, environment: dict[str, str] | None = None) -> None:
        self.library, self.patience = library, patience
        self.environment = {**os.environ, **ONE_THREAD, **BYTECODE, **(environment or {})}
        self.worker: subprocess.Popen[bytes] | None = None
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)

    def ask(self, *request: Any) -> Any:
        """The answer, or a `Refusal`."""
        if self.worker is None:
            command = [python_of(self.library), "-W", "ignore", "-m", "benchmarks.peers.worker", self.library]
            self.worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                cwd=ROOT,
                env=self.environment,
            )
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        try:
            pickle.dump(request, self.worker.stdin)
            self.worker.stdin.flush()
            if not select.select([self.worker.stdout], [], [], self.patience)[0]:
                self.end()
                return Refusal(f"no answer within {self.patience:.0f} s")
            return pickle.load(self.worker.stdout)
        except (BrokenPipeError, EOFError):
            self.end()
            return Refusal(f"the process ended: {self.last_words()}")

    def last_words(self) -> str:
        """The last line that the worker wrote."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def end(self) -> None:
        """Stop the worker; the next request starts another one."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None
