"""`compile=True` beside the eager loop and torchdiffeq's odeint: training steps of three models.

    python benchmarks/compiled.py [--rounds 21] [--write docs/results/compiled.md]

All contestants run in one process, one thread, interleaved; medians, and the quartiles of the training step. Then
each starts once more in a process of its own, which finds its graphs in PyTorch's disk cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchdiffeq
from machine import described, table
from torch import Tensor, nn

import torchaca as aca


class Cubed(nn.Module):
    """The vector field of torchdiffeq's demo: an MLP of y^3."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, d))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


class Gravity(nn.Module):
    """Three bodies with unknown masses; y is positions and velocities, `(6, 3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.masses = nn.Parameter(torch.tensor([1.0, 0.9, 1.1], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        position, velocity = y[:3], y[3:]
        apart = position[None] - position[:, None]
        distance = (apart.square().sum(-1) + torch.eye(3, dtype=y.dtype)).sqrt()
        pull = (self.masses[None, :, None] * apart / distance[..., None] ** 3).sum(1)
        return torch.cat([velocity, pull])


@dataclass(frozen=True)
class Workload:
    """One model, its initial state, its end time and tolerance."""

    name: str
    field: nn.Module
    y0: Tensor
    t1: float
    tolerance: float


def workloads() -> list[Workload]:
    """Small and middle MLP in float32, three bodies in float64."""
    torch.manual_seed(0)
    bodies = torch.cat([torch.randn(3, 3), 0.3 * torch.randn(3, 3)]).double()
    return [
        Workload("small MLP, 16x2, 2-50-2, 1e-6", Cubed(2, 50), torch.randn(16, 2), 10.0, 1e-6),
        Workload("middle MLP, 128x64, hidden 256, 1e-5", Cubed(64, 256), torch.randn(128, 64), 1.0, 1e-5),
        Workload("three bodies, float64, 1e-9", Gravity(), bodies, 2.0, 1e-9),
    ]


def contestants(w: Workload) -> dict[str, Callable[[Tensor], Tensor]]:
    """One training solve each, y0 -> y(t1)."""
    tolerances = {"rtol": w.tolerance, "atol": w.tolerance}
    span = torch.tensor([0.0, w.t1], dtype=w.y0.dtype)

    def ours(compile: bool) -> Callable[[Tensor], Tensor]:
        return lambda y0: aca.solve(w.field, y0, [0.0, w.t1], compile=compile, **tolerances).ys[-1]

    return {
        "torchaca, compile=True": ours(True),
        "torchaca": ours(False),
        "torchdiffeq odeint": lambda y0: torchdiffeq.odeint(w.field, y0, span, method="dopri5", **tolerances)[
            -1
        ],
    }


def training_step(w: Workload, run: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Seconds of the forward pass, and of forward and backward pass."""
    w.field.zero_grad()
    y0 = w.y0.clone().requires_grad_()
    start = time.perf_counter()
    y1 = run(y0)
    middle = time.perf_counter()
    y1.square().sum().backward()
    return middle - start, time.perf_counter() - start


def fresh_process(w: Workload, name: str) -> float:
    """Seconds from the start of a process to its first gradient, imports and all."""
    start = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--first", w.name, name], check=True)
    return time.perf_counter() - start


def measure(w: Workload, rounds: int) -> list[dict[str, object]]:
    """Medians over interleaved rounds; the first round, which compiles, apart."""
    runs = contestants(w)
    first = {name: training_step(w, run)[1] for name, run in runs.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(training_step(w, run))
    peer = statistics.median(total for _, total in times["torchdiffeq odeint"])
    rows = []
    for name in runs:
        forward, total = zip(*times[name], strict=True)
        low, median, high = statistics.quantiles(total, n=4)
        row: dict[str, object] = {w.name: name}
        row["forward, ms"] = 1e3 * statistics.median(forward)
        row["forward + backward, ms"] = 1e3 * median
        row["quartiles, ms"] = f"{1e3 * low:.3g} to {1e3 * high:.3g}"
        row["torchdiffeq's, divided by it"] = peer / median
        row["first call, s"] = first[name]
        row["a fresh process, to its first gradient, s"] = fresh_process(w, name)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--write", type=Path)
    parser.add_argument(
        "--first", nargs=2, metavar=("WORKLOAD", "CONTESTANT"), help="one training step of one"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.first:
        w = next(w for w in workloads() if w.name == options.first[0])
        training_step(w, contestants(w)[options.first[1]])
        return
    tables = [table(measure(w, options.rounds)) for w in workloads()]
    page = "\n".join(
        [
            "# Compiled solves, beside the eager loop and torchdiffeq",
            "",
            described("python benchmarks/compiled.py"),
            "",
            f"dopri5, one training step, medians of {options.rounds} interleaved rounds. The first call compiles, "
            "unless the disk cache of PyTorch knows the graphs already; a fresh process, started after that, imports "
            "PyTorch and finds them there.",
            "",
            "\n\n".join(tables),
            "",
        ]
    )
    print(page)
    if options.write:
        options.write.write_text(page)


if __name__ == "__main__":
    main()
