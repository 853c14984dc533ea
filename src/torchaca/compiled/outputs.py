"""From the steps of a chunk to outputs at the requested times, and from the outputs' cotangents back to the steps."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from ..core import Problem, Times
from ..loops.outputs import inside
from ..methods.length import fraction
from ..methods.staged import Staged
from ..numbers import Time
from ..torch_internals import mark_dynamic

FEW = 16  # times, up to which that many infinities are no loss
BLOCK = 2**16  # numbers that are interpolated from at a time


@dataclass
class Chunk:
    """`n` accepted steps: their times `T[:n + 1]`, also on the host, and the states `Y[:n]` that they start from.

    `ending` are the outputs at the end of a step, by step; `inside` those strictly inside one. The latter are also
    the rows of the chunk's bases, in this order, which are kept where times are differentiated. `kept` are the
    residuals of the steps, where their graph is kept. `jumps`: f jumps at the end of
    the last one.
    """

    n: int
    T: Tensor
    Y: Tensor
    times: list[float]
    ending: dict[int, list[int]] = field(default_factory=dict)
    inside: dict[int, list[int]] = field(default_factory=dict)
    bases: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)
    jumps: bool = False

    def find_outputs(self, ts: Times, done: int, ends: Sequence[Time]) -> int:
        """Sort the outputs from `done` on to the steps to `ends`; the number of outputs up to the chunk's end."""
        if not self.n:
            return done
        last, after = ts.up_to(self.times[-1]), [ts.sign * t for t in self.times[1:]]
        while done < last:  # a search for every output, of which there are fewer than steps
            n = bisect_left(after, ts.sign * ts.values[done])
            reached = ts.up_to(self.times[n + 1])
            within = inside(ts, ends[n], done, reached)
            ending = [i for i in range(done, reached) if i not in within]
            self.inside.update({n: within} if within else {})
            self.ending.update({n: ending} if ending else {})
            done = reached
        return done


def step_times(p: Problem) -> Sequence[Time]:
    """Return all step times where the control knows them before the solve, else none."""
    return [] if p.control.adaptive else cast(Any, p.control).times(p.ts)


def inner_times(p: Problem) -> list[float]:
    """The times of outputs that may lie on interpolants, increasing in the direction of the solve and after t0.

    None, where there are no others than the first and the last. See `torchaca.loops.outputs.inside`.
    """
    ts = p.ts
    start, end = ts.values[0], ts.values[-1]
    if ts.tensor is None:
        return [ts.sign * t for t in ts.values] if set(ts.values) - {start, end} else []
    ends = step_times(p) or [ts[len(ts) - 1]]
    after = math.nextafter(ts.sign * start, math.inf)
    within = [i for i in range(ts.at_start(), len(ts)) if all(ts[i] is not end for end in ends)]
    return [max(ts.sign * ts.values[i], after) for i in within]


def padded(times: list[float]) -> Tensor:
    """Times with infinities behind them, so that all but no times at all are compiled for at once."""
    if not times:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    made = torch.tensor([*times, *[torch.inf] * max(0, FEW - len(times))], dtype=torch.float64, device="cpu")
    mark_dynamic(made, 0)
    return made


def weights(
    p: Problem, chunk: Chunk, steps: Sequence[int], size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The outputs inside of these steps, so many at a time that `size` numbers for each are few.

    Yields the outputs, which of the steps they are in, and the weights `(outputs, m, ...)` of the step's basis.
    """
    outputs, rows = zip(*((i, k) for k, n in enumerate(steps) for i in chunk.inside[n]), strict=True)
    own = p.method.basis_weights(theta(between(p, chunk, steps))).to(p.y0.dtype)
    tables = torch.tensor(outputs, device="cpu"), torch.tensor(rows, device="cpu")
    each = max(1, BLOCK // max(size, 1))
    yield from zip(
        *(x.split(each) for x in (*tables, own.reshape(*own.shape, *[1] * p.y0.ndim))), strict=True
    )


def between(p: Problem, chunk: Chunk, steps: Sequence[int]) -> Tensor:
    """The times of the outputs inside of these steps, and of their steps' ends: `(outputs, 3)`, float64."""
    times = [[p.ts.values[i], *chunk.times[n : n + 2]] for n in steps for i in chunk.inside[n]]
    return torch.tensor(times, dtype=torch.float64, device="cpu")


def theta(times: Tensor) -> Tensor:
    """Where in their steps these outputs are."""
    t, t0, t1 = times.unbind(1)
    return fraction(t0, t1, t)


def blocks(chunk: Chunk, size: int) -> Iterator[tuple[int, list[int]]]:
    """The steps with outputs inside, several at a time where a basis is of small `size`, and the first's row."""
    steps, length = list(chunk.inside), max(1, BLOCK // max(size, 1))
    for first in range(0, len(steps), length):
        yield first, steps[first : first + length]


def emit(p: Problem, chunk: Chunk, bases: Tensor, y1: Tensor, ys: Tensor) -> None:
    """Write the chunk's outputs into `ys`; `y1` is the state at the chunk's end."""
    for n, outputs in chunk.ending.items():
        for i in outputs:  # mostly one
            ys[i] = chunk.Y[n + 1] if n + 1 < chunk.n else y1
    size = bases[0].numel() if chunk.inside else 0
    for first, steps in blocks(chunk, size):
        for outputs, rows, own in weights(p, chunk, steps, size):
            ys[outputs] = (own * bases[first + rows]).sum(1)


def pulled(p: Problem, chunk: Chunk, steps: Sequence[int], grad_ys: Tensor) -> Tensor:
    """Cotangents `(steps, m, *y.shape)` of the steps' bases."""
    m = cast(Staged, p.method).dense_stages + 1
    sums = grad_ys.new_zeros((len(steps), m, *grad_ys.shape[1:]))
    for outputs, rows, own in weights(p, chunk, steps, sums[0].numel()):
        sums.index_add_(0, rows, own * grad_ys[outputs][:, None])
    return sums


def f1_cotangent(p: Problem, chunk: Chunk, n: int, grad_ys: Tensor) -> Tensor:
    """What the outputs inside of step n put on f(t1, y1), the last row of its basis."""
    return pulled(p, chunk, [n], grad_ys)[0, -1] * (chunk.times[n + 1] - chunk.times[n])


Table: TypeAlias = tuple[Tensor, Tensor]
"""Rows of cotangents, the first one zero, and which row belongs to step n."""


def table_of_ends(chunk: Chunk, room: int, grad_ys: Tensor) -> Table:
    """What the outputs at the ends of steps put on y1."""
    rows = grad_ys.new_empty((room + 1, *grad_ys.shape[1:]))
    rows[0] = 0
    for row, (first, *others) in enumerate(chunk.ending.values(), 1):
        rows[row] = sum((grad_ys[i] for i in others), grad_ys[first])
    return rows, _which({n: row for row, n in enumerate(chunk.ending, 1)}, room)


def tables_of_inner(
    p: Problem, chunk: Chunk, before: Chunk | None, room: int, m: int, carries: bool, grad_ys: Tensor
) -> list[Table]:
    """What the outputs inside of steps put on their bases; and (`carries`) on f0 of the step that follows."""
    shape = grad_ys.shape[1:]
    rows = grad_ys.new_empty((room + 1, m, *shape))
    rows[0] = 0
    for first, steps in blocks(chunk, rows[0].numel()):
        rows[first + 1 : first + 1 + len(steps)] = pulled(p, chunk, steps, grad_ys)
    places = {n: row for row, n in enumerate(chunk.inside, 1)}
    tables = [(rows, _which(places, room))]
    if carries:
        carried, used = grad_ys.new_empty((room + 2, *shape)), len(places)
        carried[0] = 0
        if places:
            h = [chunk.times[n + 1] - chunk.times[n] for n in places]
            lengths = rows.new_tensor(h).reshape(-1, *[1] * len(shape))
            torch.mul(rows[1 : used + 1, -1], lengths, out=carried[1 : used + 1])
        follows = {n + 1: row for n, row in places.items() if n + 1 < chunk.n}
        if before is not None and before.n - 1 in before.inside:
            carried[used + 1] = f1_cotangent(p, before, before.n - 1, grad_ys)
            follows[0] = used + 1
        tables.append((carried, _which(follows, room)))
    return tables


def _which(places: Mapping[int, int], room: int) -> Tensor:
    which = torch.zeros(room, dtype=torch.int64, device="cpu")
    if places:
        which[list(places)] = torch.tensor([*places.values()], device="cpu")
    return which
