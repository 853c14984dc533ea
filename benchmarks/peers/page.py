"""The page of results: tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .. import machine
from .growth import Curve
from .measure import TURN, Row
from .targets import Tables, Verdict
from .workloads import Workload

NONE = "-"

FIRST = """
Small problems on one thread of a CPU: how long one training step takes (forward and backward pass) at the same
tolerance, with every library. The picture shows one row of each library and gradient, in milliseconds from zero on; the
tables have all of them, with errors, evaluations and memory.
""".strip()

LEGEND = f"""
Every contestant solves the same problem, from the same weights, with the same method at rtol = atol, and differentiates
the mean square of y(t1) by y(0) and by every parameter, in a process of its own with one thread. Only one process
computes at a time, in turns: training steps for {TURN:g} seconds, at least one, of which the median counts. Times are
medians over the turns.

* *error*: of y(t1); *gradient error*: of the gradient, the largest of y(0)'s and the parameters'. Both relative, in the
  Euclidean norm, against dopri8 at 1e-12 in float64.
* *evaluations*: of f in the forward pass + in the backward pass, for the whole batch at once. *steps*: accepted /
  rejected in the forward pass, the mean over the samples where each has its own. Dashes where a library does not count.
* *forward*: the forward pass of a training step; diffrax's is the solve alone, since JAX compiles a training step as a
  whole. *forward + backward*: the training step. *quartiles*: of it.
* *peak*: the growth of the process's resident memory during one training step, after free memory went back to the
  system: the one measure that holds for every library, with the resolution of the allocator, some 100 kB. On a GPU,
  what PyTorch's allocator gave out.
* *first call*: the first training step, compilation included, with empty caches; *warm*: that of a second process,
  which finds PyTorch's disk cache filled.
* *of the floor*: forward + backward over the time of the same number of bare calls in eager PyTorch: one call of f for
  each forward evaluation, one call of f and its vector-Jacobian product for each backward one; where the graph is kept,
  the product alone for each stage of an accepted step. A compiled solve can be below 1.
* *host syncs*, on a GPU: how often a training step makes the host wait, as PyTorch's sync debug mode counts it.
* torchode and the rows with vmap give each sample steps of its own.
""".strip()


def page(
    workloads: Mapping[str, Workload],
    tables: Tables,
    verdicts: Sequence[Verdict],
    curves: Sequence[Curve],
    command: str,
    versions: Mapping[str, str],
) -> str:
    """The whole page; the plots lie beside it."""
    parts = ["# All peers side by side", FIRST, machine.described(command, versions)]
    parts += ["![forward + backward, ms, of some contestants on every workload](peers.png)", LEGEND]
    for name, rows in tables.items():
        parts += [f"## {workloads[name].title[:1].upper()}{workloads[name].title[1:]}", _table(rows)]
        reasons = [f"* {row.contestant.name}: {_line(row.reason)}" for row in rows if row.reason]
        parts += ["\n".join(reasons)] if reasons else []
    if verdicts:
        parts += ["## Targets", machine.table([_verdict(v) for v in verdicts])]
    if curves:
        parts += [
            "## Cost grows linearly",
            "Training steps of three bodies on longer and longer spans, and of the small MLP with more and more "
            "samples. *R^2* is how much of the variance a straight line explains; *exponent* is p of time ~ size^p.",
            machine.table([_curve(c) for c in curves]),
            "![time and evaluations against steps and samples](peers-growth.png)",
        ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    cells = [_cells(row) for row in rows]
    if any(row.syncs is not None for row in rows):
        cells = [
            {**line, "host syncs": NONE if row.syncs is None else row.syncs} for line, row in zip(cells, rows)
        ]
    return machine.table(cells)


def _cells(row: Row) -> dict[str, object]:
    c = row.counts
    evaluations = NONE if c.forward is None else f"{c.forward} + {NONE if c.backward is None else c.backward}"
    steps = NONE if c.accepted is None else f"{c.accepted:.4g} / {c.rejected:.4g}"
    low, high = row.quartiles
    return {
        "": row.contestant.name,
        "error": number(row.error, 2),
        "gradient error": number(row.gradient_error, 2),
        "evaluations": evaluations,
        "steps": steps,
        "forward, ms": number(1e3 * row.forward),
        "forward + backward, ms": number(1e3 * row.total),
        "quartiles, ms": NONE if math.isnan(low) else f"{number(1e3 * low)} to {number(1e3 * high)}",
        "peak, MB": number(None if row.peak is None else row.peak / 1e6),
        "first call, s": number(row.first, 2),
        "warm, s": number(row.warm, 2),
        "of the floor": number(None if row.floor is None else row.total / row.floor),
    }


def number(value: float | None, digits: int = 3) -> str:
    """With some significant digits, without an exponent where that is as short; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    return (
        f"{value:.{digits - 1}e}"
        if 0 < abs(value) < 1e-3
        else f"{value:.{digits}g}"
        if value < 1000
        else f"{value:.0f}"
    )


def _verdict(v: Verdict) -> dict[str, object]:
    return {
        "workload": v.workload,
        "target": v.promise,
        "beside": v.against,
        "limit": f"{'>=' if v.at_least else '<='} {v.limit:.3g}",
        "measured": number(v.measured),
        "": v.outcome,
    }


def _curve(c: Curve) -> dict[str, object]:
    slope, explained = c.line
    return {
        "": c.contestant,
        "against": c.axis,
        "from": f"{c.points[0].size:.0f}",
        "to": f"{c.points[-1].size:.0f}",
        "ms for each further one": number(1e3 * slope),
        "R^2": f"{explained:.4f}",
        "exponent": f"{c.exponent:.2f}",
    }


def _line(reason: str | None) -> str:
    """The first line of a reason, not too long."""
    first = (reason or "").strip().splitlines()[0]
    return first if len(first) < 200 else first[:197] + "..."
