"""Irregularly sampled series: values, times, and which of the values were observed; checked at the door."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Series:
    """A batch of series.

    Attributes
    ----------
    values : Tensor
        `(B, T, D)`, 0 where not observed.
    times : Tensor
        `(T,)` or `(B, T)`, in the dtype of the values.
    mask : Tensor
        `(B, T, D)` of bools.
    """

    values: Tensor
    times: Tensor
    mask: Tensor


def series(values: Tensor, times: Tensor, mask: Tensor | None, features: int, name: str = "values") -> Series:
    """The checked series.

    Raises
    ------
    TypeError
        For what are no tensors of floating-point numbers.
    ValueError
        For shapes that do not fit, nan or inf in an observed value, a series without any, and times that decrease.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"{name} has to be a floating-point tensor, not {_kind(values)}")
    if values.dim() != 3 or values.shape[-1] != features or 0 in values.shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}: (batch, times, {features}) is needed")
    times = torch.as_tensor(times, dtype=values.dtype, device=values.device)
    if times.shape not in (values.shape[1:2], values.shape[:2]):
        wanted = f"({values.shape[1]},) or {tuple(values.shape[:2])}"
        raise ValueError(f"the times of {name} have shape {tuple(times.shape)}: {wanted} is needed")
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    elif mask.shape != values.shape:
        raise ValueError(f"the mask of {name} has shape {tuple(mask.shape)}, {name} {tuple(values.shape)}")
    mask = mask.bool()
    _check_values(values, mask, name)
    _check_times(times, name)
    return Series(torch.where(mask, values, 0), times, mask)


def _check_values(values: Tensor, mask: Tensor, name: str) -> None:
    bad = mask & ~values.isfinite()
    if bad.any():
        b, t, d = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{b}, {t}, {d}] is {values[b, t, d].item()} ({int(bad.sum())} such values): "
            "give a mask that is false where nothing was observed"
        )
    if not mask.any():
        raise ValueError(f"the mask of {name} has no observed value")


def _check_times(times: Tensor, name: str) -> None:
    if not times.isfinite().all():
        raise ValueError(
            f"the times of {name} have a nan or inf at {times.isfinite().logical_not().nonzero()[0].tolist()}"
        )
    falls = times.diff(dim=-1) < 0
    if falls.any():
        place = falls.nonzero()[0].tolist()
        raise ValueError(
            f"the times of {name} decrease after index {place if len(place) > 1 else place[0]}: sort them"
        )


def _kind(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
