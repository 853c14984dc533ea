"""The statements of a function as C: outputs, workspace, and which buffers share memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .code import Buffer, Code
from .function import Argument, Function
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

    def offsets(self) -> list[str]:
        """Where each slot starts; and, last, the size of all."""
        result, total, known = [], [], 0
        for slot in self.slots:
            result.append(" + ".join([str(known), *total]))
            if slot.known is not None:
                known += slot.known
            else:
                total.append(slot.size)
        return [*result, " + ".join([str(known), *total])]


def assembled(
    code: Code, name: str, arguments: Sequence[Argument], heads: Sequence[str], outputs: Sequence[Output]
) -> Function:
    """The C function that runs the statements and leaves the outputs."""
    needed = {buffer for buffer, _ in outputs}
    for statement in reversed(code.statements):
        statement.prune(needed)
        if statement.text():
            needed |= statement.reads
    statements = [x for x in code.statements if x.text()]
    body = [line for x in statements for line in x.text()]
    layout, own, last = Layout(), list(heads), {}
    for i, (buffer, _) in enumerate(outputs):
        ctype = code.ctype(code.buffers[buffer].dtype)
        own.append(f"{ctype} *const {buffer} = ({ctype} *)out[{i}];")
        last[buffer] = -1
    spans: dict[str, tuple[int, int]] = {}
    for i, statement in enumerate(statements):
        for x in statement.buffers() & code.buffers.keys() - last.keys():
            spans[x] = (spans.get(x, (i, i))[0], i)
    for x, (first, end) in sorted(spans.items(), key=lambda item: item[1]):
        buffer = code.buffers[x]
        if isinstance(buffer.numel, int) and buffer.numel <= STACK:
            own.append(f"{code.ctype(buffer.dtype)} {x}[{max(buffer.numel, 1)}];")
        else:
            layout.place(x, _bytes(code, buffer), first, end)
    *starts, total = layout.offsets()
    for x, slot in layout.at.items():
        ctype = code.ctype(code.buffers[x].dtype)
        own.append(f"{ctype} *const {x} = ({ctype} *)((char *)workspace + {starts[slot]});")
    unused = "(void)in; (void)out; (void)sizes; (void)numbers; (void)workspace;"
    lines = [
        f"INTERNAL void {name}({TAKES}) {{",
        *(line if line.startswith("#") else f"    {line}" for line in [unused, *own, *body]),
        "}",
    ]
    return Function(
        "\n".join(lines) + "\n",
        tuple(arguments),
        tuple(tuple(in_sizes(code.c(n)) for n in shape) for _, shape in outputs),
        tuple(code.symbols.taken),
        in_sizes(total),
        frozenset(code.libraries),
    )


def _bytes(code: Code, buffer: Buffer) -> str:
    """The memory that a buffer takes, rounded up so that the next one is aligned."""
    size = buffer.dtype.itemsize
    if isinstance(buffer.numel, int):
        return str(max(-(-buffer.numel * size // ALIGNED), 1) * ALIGNED)
    return f"({code.c(buffer.numel)} * {size} + {ALIGNED - 1}) / {ALIGNED} * {ALIGNED}"
