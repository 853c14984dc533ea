"""Side by side with torchdiffeq on its own ground: a small MLP, where the solver's overhead is what counts.

    python benchmarks/overhead.py [--rounds 15] [--write docs/results/overhead.md]

State 16x2, f a 2-50-2 tanh MLP of y^3, dopri5, rtol = atol = 1e-6, t from 0 to 10, one thread, float32. All
contestants run in one process, interleaved; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torchdiffeq
from floor import SPAN as FLOOR_SPAN
from floor import rows as beside_floor
from machine import command_line, described, publish, table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchaca as aca

SPAN = torch.tensor([0.0, 10.0])
TOLERANCES = {"rtol": 1e-6, "atol": 1e-6}


class Field(nn.Module):
    """The vector field of torchdiffeq's demo: a small MLP of y^3."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.net(y**3)


class OperationCount(TorchDispatchMode):
    """Counts aten operations, and reads of device values among them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def contestants(field: Field, y0: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One training solve each, returning y(t1)."""

    def ours(gradient: object) -> Callable[[], Tensor]:
        return lambda: aca.solve(field, y0, SPAN, gradient=gradient, **TOLERANCES).ys[-1]

    landing = {"step_t": SPAN[1:]}
    return {
        "torchaca, aca": ours("aca"),
        'torchaca, ACA(checkpoints="all")': ours(aca.ACA(checkpoints="all")),
        'torchaca, ACA(checkpoints="none")': ours(aca.ACA(checkpoints="none")),
        "torchaca, adjoint": ours("adjoint"),
        "torchdiffeq odeint": lambda: torchdiffeq.odeint(field, y0, SPAN, **TOLERANCES)[-1],
        "torchdiffeq odeint, landing on t1": lambda: torchdiffeq.odeint(
            field, y0, SPAN, method="dopri5", options=landing, **TOLERANCES
        )[-1],
        "torchdiffeq odeint_adjoint": lambda: torchdiffeq.odeint_adjoint(field, y0, SPAN, **TOLERANCES)[-1],
    }


def measure(field: Field, y0: Tensor, rounds: int) -> list[dict[str, object]]:
    """Medians over interleaved rounds, a warm-up round first."""
    runs = contestants(field, y0)
    forward: dict[str, list[float]] = {name: [] for name in runs}
    training: dict[str, list[float]] = {name: [] for name in runs}
    calls: dict[str, tuple[int, int]] = {}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            field.zero_grad()
            field.calls = 0
            start = time.perf_counter()
            y1 = run()
            middle = time.perf_counter()
            before = field.calls
            y1.square().sum().backward()
            training[name].append(time.perf_counter() - start)
            forward[name].append(middle - start)
            calls[name] = (before, field.calls - before)
    rows = []
    for name in runs:
        row: dict[str, object] = {
            "": name,
            "f calls forward": calls[name][0],
            "f calls backward": calls[name][1],
        }
        row["forward, ms"] = 1e3 * statistics.median(forward[name][1:])
        row["forward + backward, ms"] = 1e3 * statistics.median(training[name][1:])
        rows.append(row)
    peer = next(row for row in rows if row[""] == "torchdiffeq odeint")
    for row in rows:
        for column in ("forward", "forward + backward"):
            row[f"{column}, of torchdiffeq's"] = row[f"{column}, ms"] / peer[f"{column}, ms"]
    return rows


def operations_per_trial(field: Field, y0: Tensor) -> tuple[float, float]:
    """aten operations beyond f, and host reads, of one dopri5 trial: the difference of two solves."""
    counts = []
    for end in (1.0, 10.0):
        with torch.no_grad(), OperationCount() as solve:
            solution = aca.solve(field, y0, [0.0, end], **TOLERANCES)
        with torch.no_grad(), OperationCount() as call:
            field(torch.tensor(0.0), y0)
        trials = solution.stats.accepted + solution.stats.rejected
        own = solve.operations - solution.stats.nfe * (call.operations - 1)  # - 1: the time tensor made here
        counts.append((trials, own, solve.reads))
    (a, ops_a, reads_a), (b, ops_b, reads_b) = counts
    return (ops_b - ops_a) / (b - a), (reads_b - reads_a) / (b - a)


def main() -> None:
    options = command_line(__doc__, rounds=15).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    field, y0 = Field(), torch.randn(16, 2, requires_grad=True)
    rows = measure(field, y0, options.rounds)
    operations, reads = operations_per_trial(field, y0)
    text = "\n".join(
        [
            "# Overhead on a small MLP",
            "",
            *(line.strip() for line in (__doc__ or "").strip().splitlines()[4:]),
            "",
            table(rows),
            "",
            f"A dopri5 trial of torchaca takes {operations:.1f} aten operations beyond f and {reads:.2f} host reads.",
            "",
            "## Beside the floor",
            "",
            "The floor is the same number of bare calls of f (forward), and with them the same number of",
            "vector-Jacobian products of f, on graphs kept from the calls or, for aca, of calls made again (forward +",
            "backward). f is as wide as it takes for one call to last 100 us or 1 ms; solves from "
            f"t = {FLOOR_SPAN[0]:g} to {FLOOR_SPAN[1]:g}, one thread, float32, interleaved with their floors, medians.",
            "",
            table(beside_floor(options.rounds)),
            "",
            described(f"python benchmarks/overhead.py --rounds {options.rounds}"),
        ]
    )
    publish(text, options.write)


if __name__ == "__main__":
    main()
