"""Write docs/native-operations.md, the table of operations of native solves: `python tools/list_operations.py`."""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path

from torchaca.native.operations import OPERATIONS
from torchaca.native.operations.hints import REASONS
from torchaca.native.operations.table import VARIABLES, Operation

PAGE = Path(__file__).resolve().parents[1] / "docs" / "native-operations.md"
HEAD = """# Operations in native solves

A native solve writes f, and its vector-Jacobian product, as one C function each. It can if each operation in their
graphs is in one of these tables: {n} of PyTorch's `aten`, {own} with code of their own and {composed} that PyTorch
itself defines by those. What `torch.nn`, `einsum`, `matmul` and `torch.func` derivatives do inside of f ends in them.

* An example is an expression that the tests evaluate, differentiate, and compare with PyTorch: in float32 and float64,
  on memory that is not contiguous, on empty tensors, with a size that is symbolic.
* Sizes may be symbolic as long as they do not depend on values. An index beyond the end gives nan instead of an error.
* Dtypes: float32 and float64, integers and booleans beside them. Functions such as `exp` are Sleef's, at most 3.5 units
  in the last place off; products are BLAS's, or loops where they are small.

{variables}
`tools/list_operations.py` writes this page.
"""
TITLES = {
    "pointwise": "Element by element",
    "made": "Made from numbers",
    "views": "Views, without a copy",
    "parts": "Other orders, parts replaced",
    "joining": "Joined",
    "indexing": "By index",
    "products": "Products",
    "reductions": "Over dimensions",
    "composed": "Defined by others",
}


def page() -> str:
    """The page as the table of operations has it."""
    composed = sum(row.write is None for row in OPERATIONS)
    names = "In examples, " + "; ".join(f"`{name}` is {text}" for name, text in VARIABLES.items())
    names = textwrap.fill(f"{names}.", 120)
    head = HEAD.format(n=len(OPERATIONS), own=len(OPERATIONS) - composed, composed=composed, variables=names)
    parts = [part(TITLES[kind], list(rows)) for kind, rows in groupby(OPERATIONS, key=lambda row: row.kind)]
    return "\n".join([head, *parts, missing()])


def part(title: str, rows: list[Operation]) -> str:
    """One kind of operations."""
    lines = [f"## {title}\n", "| `aten` | example |", "|---|---|"]
    lines += [f"| `{row.name}` | {code(row.example)} |" for row in rows]
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """Code in a cell, where a bar would end it."""
    return f"`{text.replace('torch.nn.functional.', 'F.')}`".replace("|", "\\|")


def missing() -> str:
    """What is not covered, and what is said of it."""
    lines = ["## Not covered\n", "An f with one of these is solved by the next executor.\n"]
    lines += ["| operations whose names begin with | |", "|---|---|"]
    lines += [f"| {', '.join(f'`{name}`' for name in names)} | {reason} |" for names, reason in REASONS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
