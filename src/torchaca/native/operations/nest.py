"""A nest of loops in C: several values of one shape at once, each computed once, as far outside as it can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

LIMIT = 300
"""Locals of one nest; more are spread over several."""


UNROLLED = 64
"""Turns, of a loop and those inside of it, up to which the compiler may write all of them out."""

SHORT = 4
"""Turns of a loop that is not worth vectors."""


class Conflict(Exception):
    """A nest would read from memory, at another place, what it writes itself."""


@dataclass
class Store:
    """What a nest writes: `value` to `buffer[index]`, or `combine` of it and of what is there as {old}.

    `guard` may be the beginning of an if statement.
    """

    buffer: str
    index: str
    value: str
    combine: str = "{value}"
    guard: str = ""


@dataclass
class Sum:
    """What a nest gathers in its inner loops: `name` is `start` first, then `combine` of itself and `value`.

    It is written when they are through, or each time.
    """

    name: str
    ctype: str
    start: str
    value: str
    combine: str
    target: Store
    each: bool = False


@dataclass
class Nest:
    """Loops over `extents` (C expressions), the first `kept` of them outside of what is summed.

    Levels are counted from outside: 0 is before all loops. `lines[d]` is what is computed inside of d loops.
    """

    extents: tuple[str, ...]
    kept: int
    flat: bool = False
    ordered: bool = False  # one after the other
    lines: list[list[str]] = field(default_factory=list)
    levels: dict[str, int] = field(default_factory=dict)
    known: dict[tuple[str, str], str] = field(default_factory=dict)
    memo: dict[tuple[object, object], str] = field(default_factory=dict)
    stores: list[Store] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    stored: dict[str, dict[str, str]] = field(default_factory=dict)
    reads: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = [[] for _ in range(len(self.extents) + 1)]
        self.levels = {f"i{d}": d + 1 for d in range(len(self.extents))}

    @property
    def index(self) -> tuple[str, ...]:
        """The loops' variables."""
        return tuple(f"i{d}" if n != "1" else "0" for d, n in enumerate(self.extents))

    @property
    def key(self) -> tuple[object, ...]:
        """Nests of the same key may be one."""
        return (self.extents, self.kept, self.flat, self.ordered)

    def local(self, ctype: str, text: str) -> str:
        """The name of a constant with the value of an expression, the same for the same expression."""
        if (ctype, text) in self.known:
            return self.known[ctype, text]
        level = max((self.levels.get(x, 0) for x in re.findall(r"[a-z_]\w*", text)), default=0)
        name = f"x{len(self.known)}"
        self.lines[level].append(f"const {ctype} {name} = {text};")
        self.levels[name] = level
        self.known[ctype, text] = name
        return name

    def read(self, ctype: str, buffer: str, index: str) -> str:
        """The name of a constant with what a buffer has at an index."""
        if buffer in self.stored:
            if index not in self.stored[buffer]:
                raise Conflict
            return self.stored[buffer][index]
        self.reads.add(buffer)
        return self.local(ctype, f"{buffer}[{index}]")

    def read_if(self, ctype: str, buffer: str, index: str, condition: str, otherwise: str) -> str:
        """What a buffer has at an index that is computed, where the index is one of its own."""
        if buffer in self.stored:
            raise Conflict
        self.reads.add(buffer)
        return self.local(ctype, f"{condition} ? {buffer}[{index}] : {otherwise}")

    def store(self, buffer: str, index: str, value: str, combine: str = "{value}") -> None:
        """Write a value at an index."""
        self.stores.append(Store(buffer, index, value, combine))
        there = self.stored.setdefault(buffer, {})
        if combine == "{value}":  # else what is there is not complete before the loops are through
            there[index] = value

    def scatter(self, buffer: str, index: str, value: str, combine: str, guard: str) -> None:
        """Write a value at an index that is computed."""
        self.stores.append(Store(buffer, index, value, combine, guard))
        self.stored.setdefault(buffer, {})

    def gather(self, sum_: Sum) -> None:
        """Combine a value over the inner loops, and write the result."""
        self.sums.append(sum_)
        self.stored.setdefault(sum_.target.buffer, {})

    def mark(self) -> tuple[object, ...]:
        """What `back` needs to forget what follows."""
        return (
            [len(x) for x in self.lines],
            dict(self.levels),
            dict(self.known),
            dict(self.memo),
            set(self.reads),
        )

    def back(self, mark: Sequence[object]) -> None:
        """Forget what was computed since the mark."""
        lengths, self.levels, self.known, self.memo, self.reads = mark  # pyright: ignore[reportAttributeAccessIssue]
        self.lines = [x[:n] for x, n in zip(self.lines, lengths, strict=True)]  # pyright: ignore[reportArgumentType]

    @property
    def full(self) -> bool:
        return len(self.known) > LIMIT

    def buffers(self) -> set[str]:
        """All that it reads and writes."""
        return self.reads | self.writes()

    def writes(self) -> set[str]:
        return {x.buffer for x in self.stores} | {x.target.buffer for x in self.sums}

    def prune(self, needed: set[str]) -> None:
        """Leave out what is written to other buffers than these."""
        self.stores = [x for x in self.stores if x.buffer in needed]
        self.sums = [x for x in self.sums if x.target.buffer in needed]

    def text(self) -> list[str]:
        """The nest in C."""
        if not self.stores and not self.sums:
            return []
        return [*noted(self.notes), "{", *_indented(self._level(0)), "}"]

    def _level(self, d: int) -> list[str]:
        inner = self._loop(d) if d < len(self.extents) else []
        before, after = [], []
        if d == self.kept and self.kept < len(self.extents):
            before = [f"{x.ctype} {x.name} = {x.start};" for x in self.sums]
            after = [_written(x.target) for x in self.sums if not x.each]
        if d == len(self.extents):
            after = [f"{x.name} = {x.combine.format(s=x.name, v=x.value)};" for x in self.sums] + after
            after += [_written(x.target) for x in self.sums if x.each]
            after += [_written(x) for x in self.stores]
        return [*self.lines[d], *before, *inner, *after]

    def _loop(self, d: int) -> list[str]:
        n = self.extents[d]
        body = self._level(d + 1)
        if n == "1":
            return ["{", f"    const i64 i{d} = 0; (void)i{d};", *_indented(body), "}"]
        return [self._pragma(d), f"for (i64 i{d} = 0; i{d} < {n}; i{d}++) {{", *_indented(body), "}"]

    def _pragma(self, d: int) -> str:
        """What the compiler is told of a loop: to vectorise an inner one; not to unroll others, which takes time."""
        inner = d == len(self.extents) - 1
        sizes = [int(n) if n.isdigit() else UNROLLED + 1 for n in self.extents[d:]]
        if not inner:
            return "#pragma GCC unroll 1" if prod(sizes) > UNROLLED else ""
        if self.ordered or sizes[0] <= SHORT:
            return ""
        if not self.sums or self.kept == len(self.extents):
            return "#pragma omp simd"
        if all(x.combine == "{s} + {v}" for x in self.sums):
            return f"#pragma omp simd reduction(+ : {', '.join(x.name for x in self.sums)})"
        return ""


def _written(x: Store) -> str:
    place = f"{x.buffer}[{x.index}]"
    return f"{x.guard}{place} = {x.combine.format(value=x.value, old=place)};"


def _indented(lines: list[str]) -> list[str]:
    return [line if line.startswith("#") else f"    {line}" for line in lines if line]


def noted(notes: Sequence[str]) -> list[str]:
    """A comment: which operations of the table something was written for."""
    return [f"/* {', '.join(dict.fromkeys(notes))} */"] if notes else []


@dataclass
class Raw:
    """Lines of C that are no nest."""

    lines: list[str]
    reads: set[str]
    written: set[str]
    notes: list[str] = field(default_factory=list)
    key: None = None

    def writes(self) -> set[str]:
        return self.written

    def buffers(self) -> set[str]:
        return self.reads | self.written

    def prune(self, needed: set[str]) -> None:
        """Leave all of it out if nobody reads what it writes."""
        if not self.written & needed:
            self.lines = []

    def text(self) -> list[str]:
        """The lines."""
        return [*noted(self.notes), *self.lines] if self.lines else []
