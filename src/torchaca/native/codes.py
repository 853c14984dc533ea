"""The code of an f, and of its vector-Jacobian product: found by PyTorch's tracer, which says whether it is current."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..compiled import CannotCompile
from ..compiled.capture import Capture, capture, keep_numbers
from ..compiled.inference import normal
from ..field.dynamics import packed
from . import records
from .build import CannotBuild
from .driver import loops_for
from .graphs import Lanes, Wanted, last
from .programs import Called, Code, Programs, loaded

Made = TypeVar("Made")


@dataclass(frozen=True)
class Codes:
    """What was found for an f.

    `given` are the time, the state and the tensors that f reads, contiguous and without a graph; there is a product,
    `pull`, if somebody wants a derivative.
    """

    seen: Capture
    wanted: Wanted
    given: Sequence[Tensor]
    value: Code
    pull: Code | None


def codes_of(f: Any, time: Tensor, y0: Tensor, *, timed: bool) -> Codes:
    """Find the code of f, and of its product if there will be a backward pass, which is `timed` if times have a part.

    Raises
    ------
    CannotCompile
    """
    refuse_autocast()
    found = _captured(f, time, y0, partial(_compiled, timed=timed))
    built(lambda: loops_for(y0.dtype))
    return found


def codes_of_lanes(f: Any, time: Tensor, y0: Tensor, rows_of: Callable[[Sequence[Tensor]], Lanes]) -> Codes:
    """Find the code of an f of several samples for lanes; `rows_of` says which of the tensors that it reads have rows.

    Raises
    ------
    CannotCompile
    """
    refuse_autocast()
    return _captured(f, time, y0, partial(_compiled, timed=False, rows_of=rows_of))


def refuse_autocast() -> None:
    """Refuse to translate while PyTorch changes dtypes."""
    if torch.is_autocast_enabled("cpu"):
        raise CannotCompile("autocast is on, which is not translated to C")


def built(loops: Callable[[], Made]) -> Made:
    """The loops, when they are there.

    Raises
    ------
    CannotCompile
    """
    try:
        return loops()
    except CannotBuild as reason:
        raise CannotCompile(str(reason)) from reason


def scalar_of(g: Any, time: Tensor, y0: Tensor) -> Called:
    """Find the code of a scalar function of time and state, with its inputs.

    Raises
    ------
    CannotCompile
        Also for what is no 0-dim tensor in the dtype of the state.
    """
    return _captured(g, time, y0, _scalar, form=unpacked)


def unpacked(func: Callable[..., Any], structure: Any, fit: Any, t: Tensor, y: Tensor, args: Any) -> Any:
    """One call of a user's function whose value is a number, in the dtype of the state; beside `packed`."""
    value = func(t, y if structure.plain else structure.unpack(y), *args)
    return value.to(y.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _captured(
    f: Any,
    time: Tensor,
    y0: Tensor,
    make: Callable[[Capture, Tensor, Tensor], Made],
    form: Callable[..., Any] = packed,
) -> Made:
    """What is made of a capture; once more where numbers among its inputs stand in the way."""
    seen = capture(f, time, y0, evaluates=False, transforms=True, scalars=True, form=form)
    try:
        return make(seen, time, y0)
    except CannotCompile:
        if not seen.field.scalars:
            raise
        keep_numbers(f)
        again = capture(f, time, y0, evaluates=False, transforms=True, scalars=True, form=form)
        return make(again, time, y0)


def _compiled(
    seen: Capture,
    time: Tensor,
    y0: Tensor,
    timed: bool,
    rows_of: Callable[[Sequence[Tensor]], Lanes] | None = None,
) -> Codes:
    differentiate = torch.is_grad_enabled()
    own = tuple(differentiate and x.requires_grad for x in seen.inputs)
    wanted = Wanted(differentiate and timed, own)
    differentiated = any(own) or wanted.time or (differentiate and y0.requires_grad)
    lanes = None if rows_of is None else rows_of(seen.inputs)
    given = _given(seen, time, y0)
    if lanes is not None:
        given = [given[0], last(given[1]), *lanes.inputs(given[2:])]
    t, y, *inputs = given
    programs = Programs.of(seen.field)
    value = programs.value(t, y, inputs, lanes)
    pull = programs.pull(t, y, inputs, wanted, lanes) if differentiated else None
    for code in (value, pull):
        if code is not None:
            loaded(code)
    return Codes(seen, wanted, given, value, pull)


def _scalar(seen: Capture, time: Tensor, y0: Tensor) -> Called:
    t, y, *inputs = given = _given(seen, time, y0)
    code = Programs.of(seen.field).value(t, y, inputs)
    if code.function.outputs != ((),):
        raise CannotCompile("f is no 0-dim tensor")
    if code.result != y.dtype:
        raise CannotCompile(f"f is of {code.result} where the state is of {y.dtype}")
    return loaded(code).called_with(given, [None])


def _given(seen: Capture, time: Tensor, y0: Tensor) -> list[Tensor]:
    """The time, the state and the tensors that f reads, as code takes them."""
    if any(map(is_elsewhere, seen.inputs)):
        raise CannotCompile(
            "f reads a tensor that is not plain memory of this machine (sparse, on a device?)"
        )
    return list(records.dense((time, y0, *map(normal, seen.inputs))))


def is_elsewhere(x: Tensor) -> bool:
    """Whether the numbers of a tensor are not where its pointer says."""
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return not plain or x.layout != torch.strided or x.device.type != "cpu" or x.is_neg() or x.is_conj()
