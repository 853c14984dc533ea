"""Training steps under other memory allocators, which a process takes with LD_PRELOAD.

    python -m benchmarks.allocators [--rounds 15] [--write docs/results/allocators.md]

The contestants and problems are those of `python -m benchmarks.peers`, each with every allocator that this machine
has, in a process of its own. The allocators of a contestant take turns; medians of forward + backward in ms.
"""

from __future__ import annotations

import ctypes.util
import math
import statistics
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.machine import command_line, described, publish, table
from benchmarks.peers import measure
from benchmarks.peers.contestants import COMPILED, CONTESTANTS, Contestant
from benchmarks.peers.measure import Plan, say
from benchmarks.peers.process import Process, missing
from benchmarks.peers.protocol import Refusal
from benchmarks.peers.workloads import Workload, workloads

SYSTEM = "the system's"
NAMES = ("tcmalloc_minimal", "jemalloc")
ROWS = (COMPILED, "torchaca", "torchdiffeq odeint", "diffrax")
WORKLOADS = ("small", "middle", "three-body")


def allocators() -> dict[str, dict[str, str]]:
    """The environment of each allocator that can be had."""
    found = {name: ctypes.util.find_library(name) for name in NAMES}
    return {SYSTEM: {}, **{name: {"LD_PRELOAD": path} for name, path in found.items() if path}}


def row(w: Workload, contestant: Contestant, processes: dict[str, Process], rounds: int) -> dict[str, Any]:
    """A line of the table, without where it is from."""
    ready = {name: p.ask("setup", w, dict(contestant.variant), "cpu") for name, p in processes.items()}
    able = {name: p for name, p in processes.items() if not isinstance(ready[name], Refusal)}
    times = measure.rounds(w, able, Plan(rounds, math.inf, rounds, "cpu"))
    medians = {name: _median(times.get(name, [])) for name in processes}
    say(f"  {contestant.name}: {medians}")
    return {"problem": w.name, "": contestant.name, **medians}


def _median(turns: Sequence[Any]) -> float | str:
    """Of forward + backward, in ms; a dash where one was refused."""
    if not turns or any(isinstance(turn, Refusal) for turn in turns):
        return "-"
    return 1e3 * statistics.median(total for _, total in turns)


def rows(rounds: int, cache: str) -> list[dict[str, Any]]:
    """The table."""
    chosen = [c for c in CONTESTANTS if c.name in ROWS and missing(c.library) is None]
    found, cold = [], {"TORCHINDUCTOR_CACHE_DIR": cache}
    for c in chosen:
        processes = {name: Process(c.library, 300.0, {**own, **cold}) for name, own in allocators().items()}
        found += [row(workloads()[name], c, processes, rounds) for name in WORKLOADS]
        for process in processes.values():
            process.end()
    return sorted(found, key=lambda line: WORKLOADS.index(line["problem"]))


def page(lines: Sequence[dict[str, Any]], command: str) -> str:
    """The Markdown page."""
    return "\n".join(
        [
            "# Memory allocators",
            "",
            *(line.strip() for line in (__doc__ or "").strip().splitlines()[4:]),
            "",
            table(lines),
            "",
            described(command),
        ]
    )


def main() -> None:
    options = command_line(__doc__, rounds=15).parse_args()
    torch.set_num_threads(1)
    if len(allocators()) == 1:
        raise SystemExit(
            f"none of {', '.join(NAMES)} is installed: on Debian, apt install libtcmalloc-minimal4 libjemalloc2"
        )
    with TemporaryDirectory() as cache:
        text = page(rows(options.rounds, cache), f"python -m benchmarks.allocators --rounds {options.rounds}")
    publish(text, options.write)


if __name__ == "__main__":
    main()
