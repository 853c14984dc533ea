"""What every contestant is compared with: the true solution, and the time of bare calls of f."""

from __future__ import annotations

import hashlib
import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import torchaca as aca

from .fields_torch import field_of
from .workloads import Counts, Result, Workload

TOLERANCE = 1e-12
STAGES = {"dopri5": 6, "heun_euler": 2}
REPEATS = 15


def reference(w: Workload, folder: Path) -> Result:
    """y(t1) and the gradients in float64, dopri8 at 1e-12, by backpropagation; computed once for each problem."""
    true = w.double(TOLERANCE)
    key = hashlib.sha256(pickle.dumps((true.field, true.parameters, true.y0, true.t1, TOLERANCE))).hexdigest()
    kept = folder / f"{w.name}-{key[:16]}.pickle"
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    field = field_of(true)
    y0 = torch.from_numpy(true.y0).requires_grad_()
    solution = aca.solve(
        field,
        y0,
        [0.0, w.t1],
        method="dopri8",
        rtol=TOLERANCE,
        atol=TOLERANCE,
        gradient="direct",
        max_steps=10**6,
    )
    solution.ys[-1].square().mean().backward()
    named = {"y0": y0, **dict(field.named_parameters())}
    found = Result(solution.ys[-1].detach().numpy(), {name: x.grad.numpy() for name, x in named.items()})
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(pickle.dumps(found))
    return found


@dataclass(frozen=True)
class Floor:
    """Seconds of one evaluation of f without a graph, and of one with its vector-Jacobian product, in eager PyTorch."""

    evaluation: float
    derivative: float
    stages: int

    def seconds(self, counts: Counts) -> float | None:
        """The same number of bare calls.

        A backward pass that evaluates f makes one vector-Jacobian product with each evaluation. Any other makes one
        for each stage of an accepted step, whose evaluation is a part of the forward pass.
        """
        if counts.forward is None or counts.accepted is None:
            return None
        forward = counts.forward * self.evaluation
        if counts.backward:
            return forward + counts.backward * self.derivative
        return forward + self.stages * counts.accepted * (self.derivative - self.evaluation)


def floor_of(w: Workload, device: str) -> Floor:
    """Medians of calls at y0, after a warm-up."""
    torch.set_num_threads(1)
    field = field_of(w, device)
    t = torch.zeros((), dtype=getattr(torch, w.dtype), device=device)
    y = torch.from_numpy(w.y0).to(device).requires_grad_()
    inputs = [y, *field.parameters()]
    direction = torch.ones_like(y)

    def evaluation() -> None:
        with torch.no_grad():
            field(t, y)

    def derivative() -> None:
        torch.autograd.grad(field(t, y), inputs, direction)

    return Floor(_median(evaluation, device), _median(derivative, device), STAGES[w.method])


def _median(call: Callable[[], None], device: str) -> float:
    """Of groups of calls that take about 10 ms together."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None

    def group(calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - start) / calls

    group(2)
    calls = max(1, int(0.01 / group(2)))
    return statistics.median(group(calls) for _ in range(REPEATS))
