"""Every solver library side by side: torchaca, torchdiffeq, torchode, torchdyn and diffrax.

make benchmark                                        # the environments, then all of it, into docs/results
python -m benchmarks.peers --workloads small conv --contestants torchaca diffrax --rounds 5
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .contestants import CONTESTANTS, Contestant
from .floor import floor_of, reference
from .growth import curves
from .measure import Plan, measure, say
from .page import page
from .process import ROOT, Process, missing
from .protocol import Refusal
from .stored import redraw
from .targets import Tables, verdicts
from .worker import MODULES
from .workloads import workloads

REFERENCES = ROOT / ".benchmarks" / "references"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--workloads", nargs="+", choices=list(workloads()), default=list(workloads()), metavar="NAME"
    )
    made.add_argument(
        "--contestants", nargs="+", choices=list(MODULES), default=list(MODULES), metavar="LIBRARY"
    )
    made.add_argument("--rounds", type=int, default=51, help="at most so many turns each (default 51)")
    made.add_argument(
        "--seconds", type=float, default=15.0, help="start no round of a workload after (default 15)"
    )
    made.add_argument("--least", type=int, default=3, help="at least so many rounds (default 3)")
    made.add_argument(
        "--patience", type=float, default=90.0, help="seconds until a contestant is given up (default 90)"
    )
    made.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    made.add_argument("--eager", action="store_true", help="without the contestants that compile")
    made.add_argument(
        "--no-growth", action="store_true", help="without the growth of cost with steps and batch"
    )
    made.add_argument("--write", type=Path, help="folder for peers.md and its plots")
    return made


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device on this machine; leave the option out")


def taking_part(libraries: Sequence[str], eager: bool) -> list[Contestant]:
    """The contestants whose libraries are installed; says which are not."""
    absent = {library: reason for library in libraries if (reason := missing(library))}
    for reason in absent.values():
        say(f"left out: {reason}")
    present = [c for c in CONTESTANTS if c.library in libraries and c.library not in absent]
    return [c for c in present if not (eager and c.compiled)]


def versions_of(workers: dict[Contestant, Process]) -> dict[str, str]:
    found: dict[str, str] = {}
    for library in dict.fromkeys(c.library for c in workers):
        reply = next(p for c, p in workers.items() if c.library == library).ask("versions")
        found |= {} if isinstance(reply, Refusal) else reply
    return found


def run(options: argparse.Namespace, contestants: Sequence[Contestant], cache: str) -> None:
    """Measure, print, and write."""
    plan = Plan(options.rounds, options.seconds, min(options.least, options.rounds), options.device)
    cold = {"TORCHINDUCTOR_CACHE_DIR": cache}
    workers = {c: Process(c.library, options.patience, cold) for c in contestants}
    warm = {
        c: Process(c.library, options.patience, cold)
        for c in contestants
        if c.compiled and c.library != "diffrax"
    }
    chosen = {name: workloads()[name] for name in options.workloads}
    tables: Tables = {}
    for name, w in chosen.items():
        say(f"{name}: {w.title}")
        true, floor = reference(w, REFERENCES), floor_of(w, options.device)
        tables[name] = measure(w, workers, warm, true, floor, plan)
    versions = versions_of(workers)
    for process in (*workers.values(), *warm.values()):
        process.end()
    ours = [c for c in contestants if c.library == "torchaca" and c.takes(workloads()["small"])]
    grown = [] if options.no_growth else curves(ours, options.patience, options.device)
    command = "python -m benchmarks.peers " + shlex.join(sys.argv[1:])
    text = page(chosen, tables, verdicts(tables), grown, command.strip(), versions)
    print(text)
    if options.write:
        from . import plots

        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "peers.md").write_text(text)
        redraw(options.write)
        if grown:
            plots.growth(grown, options.write / "peers-growth.png")


def main() -> None:
    options = parser().parse_args()
    check_device(options.device)
    contestants = taking_part(options.contestants, options.eager)
    if not contestants:
        raise SystemExit("none of these contestants is installed; `make benchmark` installs all of them")
    with tempfile.TemporaryDirectory() as cache:
        run(options, contestants, cache)


if __name__ == "__main__":
    main()
