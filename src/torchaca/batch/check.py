"""Whether what belongs to samples has a row for each, and whether f keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import warn
from ..norms import each
from ..numbers import Time
from ..torch_internals import pytree
from .times import SampleTimes

NUDGE = 0.1
"""By which part of itself, and by how much, the row is moved that others are not to see."""


def check_options(options: Any, batch: int, times: SampleTimes) -> None:
    """Refuse further arguments that have not one row for each sample, and step times that are not theirs.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        Naming the argument, and both sizes.
    """
    check_sizes(options.rows, batch)
    grid = options.grid if options.control is None else getattr(options.control, "grid", None)
    if grid is not None and times.shared is None:
        raise NotImplementedError(
            "grid= gives step times of all samples, and these have times of their own: use n_steps= or dt="
        )
    own = getattr(grid, "tensor", grid)
    if options.compile and isinstance(own, Tensor) and own.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"derivatives with respect to grid= are those of steps that all samples make together, and with compile="
            f"{options.compile!r} each sample has its own: leave out compile=, or use grid.detach()"
        )


def check_sizes(rows: Sequence[Any], batch: int) -> None:
    """Refuse further arguments that have not one row for each sample.

    Raises
    ------
    ValueError
        Naming the argument, and both sizes.
    """
    for path, x in pytree.tree_flatten_with_path(tuple(rows))[0]:
        name = f"rows{pytree.keystr(path)}"
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} is a {type(x).__name__}, not a tensor with a row for each sample: what all samples share goes "
                "into args="
            )
        if not x.ndim or x.shape[0] != batch:
            have = f"{x.shape[0]} rows" if x.ndim else "no dimension"
            raise ValueError(
                f"batch sizes differ: y0 has {batch} samples and {name}, of shape {tuple(x.shape)}, has {have}. "
                "What all samples share goes into args="
            )


@torch.no_grad()
def check_independence(p: Any, t: Time, y: Tensor) -> None:
    """Warn if f(t, y) at one sample depends on the state of another: two evaluations, which are not counted.

    To be asked beside the start, where samples are not alike, and f is not zero.
    """
    if len(y) < 2 or not y.numel():
        return
    evaluate, row = p.f.call.evaluate, len(y) // 2
    other = y.clone()
    other[row] = y[row] * (1 + NUDGE) + NUDGE
    try:
        with p.undone():
            f0, f1 = evaluate(t, y), evaluate(t, other)
        off = each((f1 - f0).abs(), 1).amax(1)
    except Exception:  # whatever f minds there, it is no answer
        return
    size = each(f0.abs().nan_to_num(0, 0, 0), 1).amax(1)
    seen = off > torch.finfo(off.dtype).eps ** 0.75 * torch.maximum(size, size.amax())
    seen[row] = False
    if bool(seen.any()):
        worst = int(torch.where(seen, off, 0.0).argmax())
        warn(
            f"f mixes the samples of the batch: with sample {row} moved by a tenth, f at sample {worst} changed by "
            f"{off[worst].item():.2g} (BatchNorm in training, a mean over the batch, attention between samples?). "
            "With batch=1 each sample is at a time of its own, and the solution means nothing then: let f act row by "
            "row, or leave out batch=1. check_rows=False silences this"
        )
