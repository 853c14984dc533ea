"""The statements of a function as C: outputs, workspace, and which buffers share memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .code import Buffer, Code
from .function import Argument, CFunction
from .sizes import Size, in_sizes

STACK = 64
"""Numbers of a buffer of known size up to which it is a local array."""

ALIGNED = 64
"""Bytes that the beginning of a buffer is a multiple of."""

TAKES = "const void *const *in, void *const *out, const i64 *sizes, const double *numbers, T *workspace"
"""What each function takes."""

Output = tuple[str, tuple[Size, ...]]


@dataclass
class Slot:
    """Memory for one buffer after the other, each `size` (C, in bytes) or, where known, at most that."""

    size: str
    known: int | None
    free_from: int = -1


@dataclass
class Layout:
    """Where buffers lie in the workspace."""

    slots: list[Slot] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)

    def place(self, name: str, size: str, first: int, last: int) -> None:
        """Give memory to a buffer that is in use from one statement to another."""
        known = int(size) if size.isdigit() else None
        free = [i for i, slot in enumerate(self.slots) if slot.free_from < first and slot.size == size]
        if not free and known is not None:
            free = [i for i, x in enumerate(self.slots) if x.free_from < first and x.known is not None]
            free = sorted(free, key=lambda i: abs((self.slots[i].known or 0) - known))[:1]
        if not free:
            self.slots.append(Slot(size, known))
            free = [len(self.slots) - 1]
        slot = self.slots[free[0]]
        if known is not None and slot.known is not None and known > slot.known:
            slot.size, slot.known = size, known
        slot.free_from = last
        self.at[name] = free[0]

    def lines(self) -> list[str]:
        """Names in C for where each slot starts."""
        sizes = ["0", *(slot.size for slot in self.slots)]
        last = ["(char *)workspace", *(f"w{i}" for i in range(len(self.slots)))]
        starts = zip(last, sizes, range(len(self.slots)), strict=False)
        return [f"char *const w{i} = {before} + {size}; (void)w{i};" for before, size, i in starts]

    def total(self) -> str:
        """The bytes of all slots, in C."""
        known = sum(slot.known for slot in self.slots if slot.known is not None)
        return " + ".join([str(known), *(slot.size for slot in self.slots if slot.known is None)])


@dataclass(frozen=True)
class Part:
    """A function: its name, and the buffers that are its outputs, with their shapes."""

    name: str
    outputs: Sequence[Output]


def assembled(
    code: Code, arguments: Sequence[Argument], heads: Sequence[str], parts: Sequence[Part]
) -> list[CFunction]:
    """The C functions that run the statements, those of a second from `code.barrier` on, and leave the outputs."""
    needed = {buffer for part in parts for buffer, _ in part.outputs}
    for statement in reversed(code.statements):
        statement.prune(needed)
        if statement.text():
            needed |= statement.reads
    pieces = [code.statements] if len(parts) == 1 else halves(code.statements, code.barrier)
    pieces = [[x for x in piece if x.text()] for piece in pieces]
    out = {buffer for part in parts for buffer, _ in part.outputs}
    layout, small = _laid_out(code, pieces, out)
    functions = []
    for part, piece in zip(parts, pieces, strict=True):
        used = set().union(*(x.buffers() for x in piece)) & code.buffers.keys()
        lines = [*heads, *layout.lines()]
        for i, (buffer, _) in enumerate(part.outputs):
            lines.append(_pointer(code, buffer, f"out[{i}]"))
        for x in sorted(used - out):
            if x in small:
                lines.append(f"{code.ctype(code.buffers[x].dtype)} {x}[{max(code.buffers[x].numel, 1)}];")
            else:
                lines.append(_pointer(code, x, f"w{layout.at[x]}"))
        body = [line for x in piece for line in x.text()]
        shapes = tuple(tuple(in_sizes(code.c(n)) for n in shape) for _, shape in part.outputs)
        text = _function(part.name, [*lines, *body])
        taken, libraries = tuple(code.symbols.taken), frozenset(code.libraries)
        functions.append(
            CFunction(text, tuple(arguments), shapes, taken, in_sizes(layout.total()), libraries)
        )
    return functions


def halves(statements: Sequence[Any], at: int) -> list[list[Any]]:
    """Those before, and those from there on."""
    return [list(statements[:at]), list(statements[at:])]


def _laid_out(code: Code, pieces: Sequence[Sequence[Any]], out: set[str]) -> tuple[Layout, set[str]]:
    """Where buffers lie in the workspace, and which are local arrays: small ones that one function alone uses."""
    spans: dict[str, tuple[int, int]] = {}
    homes: dict[str, set[int]] = {}
    numbered = [(home, x) for home, piece in enumerate(pieces) for x in piece]
    for i, (home, statement) in enumerate(numbered):
        for x in (statement.buffers() & code.buffers.keys()) - out:
            spans[x] = (spans.get(x, (i, i))[0], i)
            homes.setdefault(x, set()).add(home)
    layout, small = Layout(), set()
    for x, (first, end) in sorted(spans.items(), key=lambda item: (item[1], item[0])):
        buffer = code.buffers[x]
        if isinstance(buffer.numel, int) and buffer.numel <= STACK and len(homes[x]) == 1:
            small.add(x)
        else:
            layout.place(x, _bytes(code, buffer), first, end)
    return layout, small


def _pointer(code: Code, buffer: str, to: str) -> str:
    ctype = code.ctype(code.buffers[buffer].dtype)
    return f"{ctype} *const {buffer} = ({ctype} *){to};"


def _function(name: str, lines: Sequence[str]) -> str:
    unused = "(void)in; (void)out; (void)sizes; (void)numbers; (void)workspace;"
    inside = [line if line.startswith("#") else f"    {line}" for line in [unused, *lines]]
    return "\n".join([f"INTERNAL void {name}({TAKES}) {{", *inside, "}"]) + "\n"


def _bytes(code: Code, buffer: Buffer) -> str:
    """The memory that a buffer takes, rounded up so that the next one is aligned."""
    size = buffer.dtype.itemsize
    if isinstance(buffer.numel, int):
        return str(max(-(-buffer.numel * size // ALIGNED), 1) * ALIGNED)
    return f"({code.c(buffer.numel)} * {size} + {ALIGNED - 1}) / {ALIGNED} * {ALIGNED}"
