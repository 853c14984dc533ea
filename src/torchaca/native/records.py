"""What is handed to the loops in C: the structures of driver/types.c, which says what their fields are."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from enum import IntEnum

import torch
from torch import Tensor

WHOLE, REAL, PLACE, FLAG = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p, ctypes.c_int8


def _fields(**names: type) -> list[tuple[str, type]]:
    """Fields in order: under each key, with underscores for spaces, those of one type."""
    return [(name, kind) for joined, kind in names.items() for name in joined.split("__")]


class Graph(ctypes.Structure):
    """A graph as code, and what it is called with."""

    _fields_ = _fields(code__inputs__outputs__sizes__numbers__workspace=PLACE)


class Method(ctypes.Structure):
    """The numbers of a method."""

    _fields_ = _fields(stages__all__fsal__order__f1__degree=WHOLE, c__a__b__e__p=PLACE)


class Tolerance(ctypes.Structure):
    """How an error is measured."""

    _fields_ = _fields(
        norm__rtol_stride__atol_stride__parts=WHOLE, rtol__atol__ends=PLACE, relative__least=REAL
    )


class Pace(ctypes.Structure):
    """The limits and the rule of a search."""

    _fields_ = [
        *_fields(smallest__dt_min__dt_max__fallback__reach__safety__low__high__calm__room=REAL),
        ("powers", REAL * 3),
        *_fields(max_trials__most_rejections__at_least_dt_min=WHOLE),
    ]


class Watch(ctypes.Structure):
    """The events of a problem."""

    _fields_ = _fields(n=WHOLE, graphs__directions__sides__values=PLACE)


class Solve(ctypes.Structure):
    """One problem."""

    _fields_ = [
        *_fields(method__tolerance__pace__value__pull=PLACE, n__n_ts__n_stops__n_jumps__dense=WHOLE),
        *_fields(sign=REAL, ts__stops__jumps__exact__ys__work__watch=PLACE),
    ]


class State(ctypes.Structure):
    """Where a forward pass is."""

    _fields_ = [
        *_fields(t__dt__ratio__older__rejected_size__largest__shortest__start=REAL),
        *_fields(ratios__known__trials__calls__rejections__rejected=WHOLE),
        *_fields(accepted__outputs__stop__slow__next_look__reason__seen=WHOLE),
    ]


class Chunk(ctypes.Structure):
    """The steps between two returns to Python."""

    _fields_ = _fields(room__steps__kept__rows=WHOLE, times__Y__K__B=PLACE)


class Back(ctypes.Structure):
    """Where a backward pass is."""

    _fields_ = [
        *_fields(step__outputs__first__follows__earlier__calls__totals__lead__timed=WHOLE),
        *_fields(before__drift__allowed=REAL, lam__f1__work__sums__counts__ends__moved__bases=PLACE),
    ]


class Rows(ctypes.Structure):
    """Independent problems, several side by side."""

    _fields_ = [
        *_fields(row__last__alone__inputs__most_stops__most_calls__looks__room=WHOLE),
        *_fields(tolerance__pace__rtol__atol__y0=PLACE),
        *_fields(
            ts__stops__signs__reach__fallback__spans__least__n_stops__places__counts__sizes__laid__bases=PLACE
        ),
        *_fields(states__lanes__of__slots__steps__before__ends__befores__steepness=PLACE),
        *_fields(ys__directions__lam__work__t__own__sums__totals=PLACE),
        *_fields(theta__good__total__fading__near__nearest__still__rounding=REAL),
    ]


class Lane(ctypes.Structure):
    """One of those side by side."""

    _fields_ = [
        *_fields(row__segments__used__begun__open__steps__step__outputs__first__follows__calls=WHOLE),
        *_fields(since__before=REAL),
    ]


LAYOUT = (Graph, Method, Tolerance, Pace, Solve, State, Chunk, Back, Rows, Watch, Lane)
"""In the order of `layout` in driver/types.c."""


class Status(IntEnum):
    """Why a loop returned."""

    REACHED, FULL, PAUSED, LOOK, HOPELESS, REFUSED, RESTS, SEEN = range(8)


REASONS = ("step-size", "underflow", "max-steps", "dt-min", "rejections")
"""Of a search that is refused another trial, as `torchaca.loops.pace.refusals` calls them."""


def doubles(xs: Sequence[float]) -> ctypes.Array[ctypes.c_double]:
    """Numbers as an array in C, which holds one at least."""
    return (REAL * max(1, len(xs)))(*xs)


def places(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """Where tensors lie."""
    return (PLACE * max(1, len(tensors)))(*[None if x is None else x.data_ptr() for x in tensors])


address = ctypes.addressof
"""Where a structure or an array lies; whoever hands it on keeps it alive."""


def dense(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors, contiguous and without a graph."""
    return (x.detach().contiguous() for x in tensors)


def epsilon(dtype: torch.dtype) -> float:
    """How far a replayed state may be off, relative to its size; see `torchaca.gradients.drift`."""
    return torch.finfo(dtype).eps ** 0.5
