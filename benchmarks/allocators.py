"""Training steps under other memory allocators, which a process takes with LD_PRELOAD.

    python -m benchmarks.allocators [--rounds 15] [--write docs/results/allocators.md]

The contestants and problems are those of `python -m benchmarks.peers`, each with every allocator that this machine
has, in a process of its own; turns are interleaved, medians of forward + backward in ms.
"""

from __future__ import annotations

import argparse
import ctypes.util
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import described, table
from benchmarks.peers.contestants import COMPILED, CONTESTANTS, Contestant
from benchmarks.peers.measure import TURN, say
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
    times: dict[str, list[float]] = {name: [] for name, first in ready.items() if isinstance(first, float)}
    for _ in range(rounds):
        for name, own in times.items():
            reply = processes[name].ask("turn", TURN)
            own.append(float("nan") if isinstance(reply, Refusal) else 1e3 * reply[1])
    medians = {name: statistics.median(times[name]) if name in times else "-" for name in processes}
    say(f"{w.name}, {contestant.name}: {medians}")
    return {"problem": w.name, "": contestant.name, **medians}


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    if len(allocators()) == 1:
        raise SystemExit(
            f"none of {', '.join(NAMES)} is installed: on Debian, apt install libtcmalloc-minimal4 libjemalloc2"
        )
    with TemporaryDirectory() as cache:
        text = page(rows(options.rounds, cache), f"python -m benchmarks.allocators --rounds {options.rounds}")
    print(text)
    if options.write:
        options.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
