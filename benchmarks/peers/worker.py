"""One contestant in a process of its own: `python -m benchmarks.peers.worker LIBRARY` answers requests over pipes.

Requests and answers are pickles of plain Python and NumPy objects, so that the two sides may have different libraries.
"""

from __future__ import annotations

import importlib
import os
import pickle
import statistics
import sys
import time
import traceback
from typing import Any, BinaryIO

from .protocol import Refusal, Run

MODULES = {
    "torchaca": ".contestants_torchaca",
    "torchdiffeq": ".contestants_torchdiffeq",
    "torchode": ".contestants_torchode",
    "torchdyn": ".contestants_torchdyn",
    "diffrax": ".contestants_diffrax",
}


def answer(module: Any, state: dict[str, Run], request: tuple[Any, ...]) -> Any:
    """What one request returns; `("setup", workload, variant, device)` comes first."""
    name, *arguments = request
    if name == "versions":
        return module.versions()
    if name == "setup":
        start = time.perf_counter()
        state["run"] = module.build(*arguments)
        state["run"].train()
        return time.perf_counter() - start
    if name == "turn":
        return turn(state["run"], *arguments)
    return getattr(state["run"], name)()


def turn(run: Run, seconds: float) -> tuple[float, float]:
    """Training steps until the time is up, at least one: the medians of their times, see `Run.train`.

    A single short step would be timed with the caches that the contestant before it has left.
    """
    end, times = time.perf_counter() + seconds, [run.train()]
    while time.perf_counter() < end:
        times.append(run.train())
    forward, total = (statistics.median(column) for column in zip(*times, strict=True))
    return forward, total


def serve(library: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other side closes the pipe."""
    state: dict[str, Run] = {}
    module = importlib.import_module(MODULES[library], __package__)
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            reply = answer(module, state, request)
        except Exception as error:  # what a contestant cannot do is a line under the table
            traceback.print_exc()
            reply = Refusal(f"{type(error).__name__}: {error}")
        pickle.dump(reply, answers)
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get into the answers
    serve(sys.argv[1], sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
