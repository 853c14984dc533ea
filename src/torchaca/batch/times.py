"""The output times of a batch: of all samples, or of each sample its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Times
from ..errors import shorten
from ..numbers import host_times
from ..times import times_of
from ..transforms import is_differentiated, refuse_lanes


@dataclass(frozen=True)
class SampleTimes:
    """Times of each sample.

    Attributes
    ----------
    values : Tensor
        `(n, B)`, float64 on the CPU; a sample that has fewer repeats its last one.
    real : Tensor
        `(n, B)`, which of them were given.
    given : Tensor or None
        `(n, B)` as they were given, padded with nan; None if all samples share their times.
    shared : Times or None
        Those of all samples.
    moving : Tensor or None
        `values` with derivatives, if somebody differentiates with respect to them.
    """

    values: Tensor
    real: Tensor
    given: Tensor | None = None
    shared: Times | None = None
    moving: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """Which output is the end of each sample, `(B,)`."""
        return self.real.sum(0) - 1


def sample_times(t: Any, batch: int) -> SampleTimes:
    """Times of `batch` samples, from times of all, a tensor `(B, n)` padded with nan, or a list of each sample's.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        Naming the row and the place of a time that is none or out of order.
    """
    refuse_lanes(t, "t")
    given = padded(t) if _is_list_of_rows(t) else t
    if not isinstance(given, Tensor) and getattr(given, "ndim", 1) == 2:
        given = torch.as_tensor(given, device="cpu")
    if not (isinstance(given, Tensor) and given.ndim == 2):
        ts = times_of(given, "t")
        values = torch.tensor(ts.values, dtype=torch.float64, device="cpu")[:, None].expand(-1, batch)
        moving = None if ts.tensor is None else ts.tensor[:, None].expand(-1, batch)
        return SampleTimes(values, torch.ones_like(values, dtype=torch.bool), None, ts, moving)
    if len(given) != batch:
        raise ValueError(
            f"batch sizes differ: y0 has {batch} samples and t has {len(given)} rows (t of shape (B, n) has one "
            "for each)"
        )
    filled, real = _filled(host_times(given))
    moving = filled.T if is_differentiated(given) else None
    return SampleTimes(filled.detach().T.contiguous(), real.T.contiguous(), given.T, moving=moving)


def _is_list_of_rows(t: Any) -> bool:
    return isinstance(t, list | tuple) and any(
        getattr(row, "ndim", 0) or isinstance(row, list | tuple) for row in t
    )


def padded(rows: Sequence[Any]) -> Tensor:
    """One row for each of the sequences of times, padded with nan.

    Raises
    ------
    TypeError, ValueError
        If one is no sequence of times, or empty.
    """
    made = []
    for i, row in enumerate(rows):
        try:
            times = row if isinstance(row, Tensor) else host_times(row)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"t[{i}] must be times of sample {i}, got {shorten(row)}") from error
        if times.ndim != 1 or not len(times):
            raise ValueError(
                f"t[{i}] must be the times of sample {i}, one-dimensional and not empty; got shape {tuple(times.shape)}"
            )
        made.append(times)
    return torch.nn.utils.rnn.pad_sequence(made, batch_first=True, padding_value=torch.nan)


def _filled(values: Tensor) -> tuple[Tensor, Tensor]:
    """Times `(B, n)` with their padding replaced by the last time, and which of them are real."""
    real = ~values.isnan()
    wrong = real & ~real.cumprod(1).bool()
    if wrong.any():
        row, i = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"t[{row}] has nan before t[{row}, {i}] = {values[row, i]:g}: rows are padded with nan at their ends only"
        )
    counts = real.sum(1)
    if not bool(counts.all()):
        raise ValueError(
            f"t[{int((counts == 0).int().argmax())}] holds no time: a sample needs at least its t0"
        )
    if values.isinf().any():
        row, i = values.isinf().nonzero()[0].tolist()
        raise ValueError(f"t[{row}, {i}] is {values[row, i]:g}: times must be finite")
    last = values.gather(1, counts[:, None] - 1)
    filled = torch.where(real, values, last)
    sign = torch.where(last < filled[:, :1], -1.0, 1.0)
    back = sign * filled.diff(dim=1) < 0
    if back.any():
        row, i = back.nonzero()[0].tolist()
        raise ValueError(
            f"each row of t must be increasing or decreasing, but t[{row}, {i + 1}] = {filled[row, i + 1]:g} follows "
            f"t[{row}, {i}] = {filled[row, i]:g}: sort it"
        )
    return filled, real


def common_times(times: SampleTimes) -> Times:
    """Return the times of all samples.

    Raises
    ------
    ValueError
        If samples have times of their own.
    """
    if times.shared is None:
        raise ValueError(
            "steps='joint' makes the same steps for all samples, and t of shape (B, n) gives each its own times: give "
            "one t of shape (n,), or leave out steps="
        )
    return times.shared
