"""Error against evaluations, side by side with torchdiffeq on smooth problems with closed forms.

    python benchmarks/work_precision.py [--write docs/results/work_precision.md]

For each problem and method, both libraries solve at rtol = atol = 1e-5 and at neighbouring tolerances; torchdiffeq's
error is read off its own curve (log error against log evaluations) at the number of evaluations that torchaca needed
at 1e-5. A ratio below one: torchaca's error is smaller at equal work. torchdiffeq runs as it does by default, and
landing on the last time (`step_t`), which it has to be asked for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchdiffeq
from machine import command_line, described, publish, table
from torch import Tensor

import torchaca as aca

METHODS = ("bosh3", "dopri5", "dopri8")
TOLERANCES = [10.0**-k for k in np.arange(3, 7.1, 0.5)]


@dataclass(frozen=True)
class Case:
    """A problem with a closed form."""

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    end: float
    exact: Tensor


def cases() -> list[Case]:
    """Smooth problems, autonomous and not, linear and not, all in float64."""
    one = torch.ones(1, dtype=torch.float64)
    spin = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    return [
        Case(
            "y' = -y^2 cos t",
            lambda t, y: -(y**2) * torch.cos(t),
            0.5 * one,
            10.0,
            one / (2 + math.sin(10.0)),
        ),
        Case("logistic", lambda t, y: y * (1 - y), 0.1 * one, 10.0, one / (1 + 9 * math.exp(-10.0))),
        Case("rotation", lambda t, y: spin @ y, start, 10.0, torch.linalg.matrix_exp(10 * spin) @ start),
        Case("y' = y cos t", lambda t, y: y * torch.cos(t), one, 10.0, one * math.exp(math.sin(10.0))),
        Case("y' = -y + t", lambda t, y: t - y, one, 5.0, one * (4.0 + 2 * math.exp(-5.0))),
    ]


def curve(case: Case, solve: Callable[[Any, float], Tensor]) -> list[tuple[int, float]]:
    """(evaluations, error) for every tolerance."""
    points = []
    for tolerance in TOLERANCES:
        calls = [0]

        def f(t: Tensor, y: Tensor, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return case.f(t, y)

        error = (solve(f, tolerance) - case.exact).abs().max().item()
        points.append((calls[0], max(error, 1e-17)))
    return points


def error_at(points: list[tuple[int, float]], evaluations: int) -> float:
    """The error of a work-precision curve at a number of evaluations, by a line in log-log."""
    work = np.log([n for n, _ in points])
    errors = np.log([e for _, e in points])
    slope, offset = np.polyfit(work, errors, 1)
    return float(np.exp(offset + slope * np.log(evaluations)))


def compare(case: Case, method: str) -> dict[str, object]:
    span = torch.tensor([0.0, case.end], dtype=torch.float64)

    def theirs(**options: Any) -> Callable[[Any, float], Tensor]:
        return lambda f, tolerance: torchdiffeq.odeint(
            f, case.y0, span, rtol=tolerance, atol=tolerance, method=method, options=options
        )[-1]

    ours = curve(case, lambda f, tol: aca.solve(f, case.y0, span, rtol=tol, atol=tol, method=method).ys[-1])
    default, landing = curve(case, theirs()), curve(case, theirs(step_t=span[1:]))
    evaluations, _ = min(
        (point for point, tol in zip(ours, TOLERANCES, strict=True) if math.isclose(tol, 1e-5)),
        default=ours[0],
    )
    error = error_at(ours, evaluations)
    return {
        "problem": case.name,
        "method": method,
        "evaluations": evaluations,
        "error": error,
        "of torchdiffeq's": error / error_at(default, evaluations),
        "of torchdiffeq's, landing on t1": error / error_at(landing, evaluations),
    }


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = [compare(case, method) for case in cases() for method in METHODS]
    medians = {
        column: statistics.median(row[column] for row in rows)
        for column in ("of torchdiffeq's", "of torchdiffeq's, landing on t1")
    }
    text = "\n".join(
        [
            "# Work and precision",
            "",
            *(line.strip() for line in (__doc__ or "").strip().splitlines()[4:]),
            "",
            table(rows),
            "",
            "Median ratio: " + ", ".join(f"{value:.3g} {column}" for column, value in medians.items()) + ".",
            "",
            described("python benchmarks/work_precision.py"),
        ]
    )
    publish(text, options.write)


if __name__ == "__main__":
    main()
