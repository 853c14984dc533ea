"""Operations that put several tensors into one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .apply import apply
from .sizes import Size, plain
from .table import Call, Operation
from .values import Place, Value

row = partial(Operation, kind="joining")


def put(call: Call, x: Value, whole: Value, shape: Sequence[Size], place: Place, apart: bool) -> None:
    """Write x, of that shape, to a place in the memory of another."""
    code = call.code
    if x.dtype != whole.dtype:
        x = apply(Call(code, x.shape, whole.dtype), "{0}", x, cost=0)
    target = code.placed(place.buffer, shape, whole.dtype, place)
    code.write(code.cheap(x, cost=1 << 30), target, apart=apart)


def cat(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    """One after the other, in memory of their own."""
    whole = call.code.joined(call.shape, call.dtype)
    assert whole.place is not None
    buffer, strides = whole.place.buffer, whole.place.strides
    parts = [
        x for x in tensors if x.shape != (0,) or len(call.shape) == 1
    ]  # an empty vector goes with any shape
    dim %= len(call.shape)
    start = 0
    for x in parts:
        put(call, x, whole, x.shape, Place(buffer, strides, start * strides[dim]), apart=True)
        start = plain(start + x.shape[dim])
    return whole


def stack(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    """One after the other in a dimension of its own."""
    whole = call.code.joined(call.shape, call.dtype)
    assert whole.place is not None
    buffer, strides = whole.place.buffer, whole.place.strides
    dim %= len(call.shape)
    others = tuple(s for d, s in enumerate(strides) if d != dim)
    for i, x in enumerate(tensors):
        put(call, x, whole, x.shape, Place(buffer, others, i * strides[dim]), apart=True)
    return whole


OPERATIONS = (
    row("cat", example="torch.cat([x, 2 * y], 1)", write=cat),
    row("stack", example="torch.stack([x, 2 * y], 1)", write=stack),
)
