"""The body of a C function in the making: buffers, statements that fill them, and what is fused with what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from .function import Uncovered
from .matrices import multiply
from .nest import Conflict, Nest, Raw, Store, Sum
from .sizes import Size, Symbols, dense, plain, product
from .values import Index, Place, Value, is_dense, used

CTYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "i64",
    torch.int32: "int",
    torch.bool: "u8",
    torch.uint8: "u8",
}
"""The dtypes that are translated, and their C types. Those of the graph's own dtype are called T."""


@dataclass(frozen=True)
class Buffer:
    """Memory for `numel` numbers."""

    name: str
    numel: Size
    dtype: torch.dtype


@dataclass
class Code:
    """Statements in their order, and the buffers that they fill; each buffer is complete before others read it."""

    dtype: torch.dtype
    symbols: Symbols
    statements: list[Nest | Raw] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)  # the last statement that writes to a buffer
    libraries: set[str] = field(default_factory=set)
    doing: str = ""  # the operation that is written
    samples_last: bool = False  # in the inputs and outputs; they are the first dimension inside
    barrier: int = 0  # statements before this one are those of another function
    laid: dict[Value, Value] = field(default_factory=dict)  # what `real` has made

    def ctype(self, dtype: torch.dtype) -> str:
        """The C type of a dtype."""
        if dtype == self.dtype:
            return "T"
        if dtype not in CTYPES:
            raise Uncovered(f"{str(dtype).removeprefix('torch.')} numbers: use {self.name} ones")
        return CTYPES[dtype]

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def c(self, size: Size) -> str:
        """A size in C."""
        return self.symbols.c(size)

    # Values

    def at(self, nest: Nest, value: Value, index: Index) -> str:
        """The name of one of a value's numbers in a nest."""
        key = (value, index)
        if key not in nest.memo:
            nest.memo[key] = value.load(nest, index)
        return nest.memo[key]

    def seen(self, nest: Nest, value: Value, index: Index, shape: Sequence[Size]) -> str:
        """The same at an index into a shape that the value is broadcast to."""
        return self.at(nest, value, used(index, shape, value.shape))

    def constant(self, text: str, dtype: torch.dtype, shape: Sequence[Size] = ()) -> Value:
        """A value that is the same everywhere, by its C expression."""
        return Value(tuple(shape), dtype, lambda nest, index: text, flat=True)

    def placed(
        self, buffer: str, shape: Sequence[Size], dtype: torch.dtype, place: Place | None = None
    ) -> Value:
        """What lies in a buffer, contiguous if nothing else is said."""
        shape = tuple(shape)
        place = place or Place(buffer, dense(shape))
        ctype, offset = self.ctype(dtype), self.c(place.offset)

        def load(nest: Nest, index: Index) -> str:
            terms = [] if offset == "0" else [offset]
            if isinstance(index, str):
                terms.append(index)
            else:
                terms += self._terms(index, place.strides)
            return nest.read(ctype, place.buffer, " + ".join(terms) or "0")

        flat = is_dense(shape, place.strides)
        return Value(shape, dtype, load, frozenset([place.buffer]), flat=flat, place=place)

    def _terms(self, index: Sequence[str], strides: Sequence[Size]) -> list[str]:
        pairs = [(i, self.c(s)) for i, s in zip(index, strides, strict=True) if i != "0" and s != 0]
        return [i if s == "1" else f"({i}) * {s}" if " " in i else f"{i} * {s}" for i, s in pairs]

    def offset(self, place: Place, index: Sequence[str]) -> str:
        """Where an index of a place is in its buffer."""
        first = [] if place.offset == 0 else [self.c(place.offset)]
        return " + ".join([*first, *self._terms(index, place.strides)]) or "0"

    # Buffers

    def new(self, shape: Sequence[Size], dtype: torch.dtype) -> Value:
        """Memory for a value of that shape."""
        buffer = Buffer(f"b{len(self.buffers)}", product(shape), dtype)
        self.buffers[buffer.name] = buffer
        self.filled[buffer.name] = -1
        return self.placed(buffer.name, shape, dtype)

    def joined(self, shape: Sequence[Size], dtype: torch.dtype) -> Value:
        """Memory for a value that others are put into: where samples come last, all those of a number side by side."""
        value = self.new(shape, dtype)
        if not self.samples_last or len(shape) < 2:
            return value
        assert value.place is not None
        strides = (1, *(product((s, shape[0])) for s in dense(shape[1:])))
        return self.placed(value.place.buffer, shape, dtype, Place(value.place.buffer, strides))

    def real(self, value: Value) -> Value:
        """The same value, with a place."""
        return self._laid(value) if value.place is None else value

    def packed(self, value: Value) -> Value:
        """The same value, with a place in which it is contiguous."""
        value = self.real(value)
        return value if value.flat else self._laid(value)

    def _laid(self, value: Value) -> Value:
        """The same value in a contiguous place of its own, where it is written once."""
        if value not in self.laid:
            target = self.new(value.shape, value.dtype)
            self.write(value, target)
            self.laid[value] = target
        return self.laid[value]

    def cheap(self, value: Value, cost: int = 0) -> Value:
        """The same value, with a place if it costs more than that to compute a number of it."""
        return self.real(value) if value.product is not None or value.cost > cost else value

    def pointer(self, value: Value) -> str:
        """Where a value with a place starts."""
        assert value.place is not None
        return (
            f"{value.place.buffer} + {self.c(value.place.offset)}"
            if value.place.offset != 0
            else value.place.buffer
        )

    # Statements

    def add(self, lines: list[str], reads: Sequence[Value], writes: Value) -> None:
        """Add lines of C that read values with a place and write to another."""
        assert writes.place is not None
        names = {x.place.buffer for x in reads if x.place is not None}
        self.append(Raw(lines, names, {writes.place.buffer}), writes.place.buffer)

    def write(self, value: Value, target: Value, combine: str = "{value}", apart: bool = False) -> None:
        """Compute a value into memory of its shape, fused with what has the same loops.

        `apart` if no other number of the buffer is written where these are.
        """
        place = target.place
        assert place is not None
        if value.product is not None:
            if target.flat and combine == "{value}":
                return multiply(self, value.product, target)
            value = self.real(value)
        flat = value.flat and target.flat and len(value.shape) > 1
        extents = [product(value.shape)] if flat else list(value.shape)

        def fill(nest: Nest) -> None:
            index: Index = nest.index[0] if flat else nest.index
            number = self.at(nest, value, index)
            ends = self._flat(place, index) if isinstance(index, str) else self.offset(place, index)
            nest.store(place.buffer, ends, number, combine)

        first = 0 if apart else self.filled[place.buffer] + 1
        self._fuse(extents, len(extents), flat, value.reads, first, place.buffer, fill)

    def _flat(self, place: Place, index: str) -> str:
        return index if place.offset == 0 else f"{self.c(place.offset)} + {index}"

    def gather(self, value: Value, dims: Sequence[int], start: str, combine: str, target: Value) -> None:
        """Combine a value over some of its dimensions into memory of the shape of the others.

        `start` and `combine`, with {s} for what there is and {v} for what comes, are C.
        """
        kept = [d for d in range(len(value.shape)) if d not in dims]
        place, ctype = target.place, self.ctype(target.dtype)
        assert place is not None
        inside = bool(kept) and max(kept) > max(dims) and value.shape[max(kept)] != 1
        order = [*dims, *kept] if inside else [*kept, *dims]
        extents = [value.shape[d] for d in order]

        def fill(nest: Nest) -> None:
            index = tuple(nest.index[order.index(d)] for d in range(len(order)))
            number = self.at(nest, value, index)
            ends = self.offset(place, [index[d] for d in kept])
            if inside:
                nest.store(place.buffer, ends, number, combine.format(s="{old}", v="{value}"))
            else:
                name = f"s{len(nest.sums)}"
                nest.gather(Sum(name, ctype, start, number, combine, Store(place.buffer, ends, name)))

        if inside:  # whole rows are combined: the inner loop runs over what is kept
            self.write(self.constant(start, target.dtype, target.shape), target)
        levels = len(order) if inside else len(kept)
        self._fuse(extents, levels, inside, value.reads, self.filled[place.buffer] + 1, place.buffer, fill)

    def scan(self, value: Value, dim: int, start: str, combine: str, target: Value) -> None:
        """Combine a value along a dimension, and write what there is each time."""
        place, ctype = target.place, self.ctype(target.dtype)
        assert place is not None
        order = [*(d for d in range(len(value.shape)) if d != dim), dim]
        nest = Nest(tuple(self.c(value.shape[d]) for d in order), len(order) - 1, ordered=True)
        index = tuple(nest.index[order.index(d)] for d in range(len(order)))
        number, ends = self.at(nest, value, index), self.offset(place, index)
        nest.gather(Sum("s0", ctype, start, number, combine, Store(place.buffer, ends, "s0"), each=True))
        self.append(nest, place.buffer)

    def append(self, statement: Nest | Raw, buffer: str) -> None:
        """Add a statement that writes to a buffer, after all others."""
        statement.notes.append(self.doing)
        self.statements.append(statement)
        self.filled[buffer] = len(self.statements) - 1

    def _fuse(
        self,
        extents: Sequence[Size],
        kept: int,
        flat: bool,
        reads: Iterable[str],
        first: int,
        buffer: str,
        fill: Callable[[Nest], None],
    ) -> None:
        """Let `fill` write to a nest that there is, not before all is complete that it reads; or to a new one."""
        nest = Nest(tuple(self.c(plain(n)) for n in extents), kept, flat)
        ready = max((self.filled.get(x, -1) for x in reads), default=-1)
        for i in range(max(ready, first, self.barrier), len(self.statements)):
            there = self.statements[i]
            if isinstance(there, Nest) and there.key == nest.key and not there.full:
                mark = there.mark()
                try:
                    fill(there)
                except Conflict:
                    there.back(mark)
                    continue
                there.notes.append(self.doing)
                self.filled[buffer] = max(self.filled[buffer], i)
                return
        fill(nest)
        self.append(nest, buffer)
