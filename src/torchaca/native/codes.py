"""The code of an f, and of its vector-Jacobian product: found by PyTorch's tracer, which says whether it is current."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compiled import CannotCompile
from ..compiled.capture import Capture, capture, keep_numbers
from ..compiled.inference import normal
from . import records
from .build import CannotBuild
from .driver import loops_for
from .graphs import Wanted
from .programs import Code, Programs, loaded


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
    if torch.is_autocast_enabled("cpu"):
        raise CannotCompile("autocast is on, which is not translated to C")
    seen = _captured(f, time, y0)
    try:
        return _compiled(seen, time, y0, timed)
    except CannotCompile:
        if not seen.field.scalars:
            raise
        keep_numbers(f)
        return _compiled(_captured(f, time, y0), time, y0, timed)


def _captured(f: Any, time: Tensor, y0: Tensor) -> Capture:
    return capture(f, time, y0, evaluates=False, transforms=True, scalars=True)


def _compiled(seen: Capture, time: Tensor, y0: Tensor, timed: bool) -> Codes:
    differentiate = torch.is_grad_enabled()
    own = tuple(differentiate and x.requires_grad for x in seen.inputs)
    wanted = Wanted(differentiate and timed, own)
    differentiated = any(own) or wanted.time or (differentiate and y0.requires_grad)
    if any(map(is_elsewhere, seen.inputs)):
        raise CannotCompile(
            "f reads a tensor that is not plain memory of this machine (sparse, on a device?)"
        )
    given = list(records.dense((time, y0, *map(normal, seen.inputs))))
    t, y, *inputs = given
    programs = Programs.of(seen.field)
    value = programs.value(t, y, inputs)
    pull = programs.pull(t, y, inputs, wanted) if differentiated else None
    for code in (value, pull):
        if code is not None:
            loaded(code)
    try:
        loops_for(y.dtype)
    except CannotBuild as reason:
        raise CannotCompile(str(reason)) from reason
    return Codes(seen, wanted, given, value, pull)


def is_elsewhere(x: Tensor) -> bool:
    """Whether the numbers of a tensor are not where its pointer says."""
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return not plain or x.layout != torch.strided or x.device.type != "cpu" or x.is_neg() or x.is_conj()
