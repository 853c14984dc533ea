"""The code in the pages: `python -m tools.pages docs/start.md` runs a page and writes what its blocks print into it.

A block marked `text` right after one marked `python` holds what that one prints. A block marked `py` is a program for
another library, in an environment of its own; the next Python block does the same with torchaca and prints the same.
"""

import io
import math
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(python|py)\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*(?:e[-+]?\d+)?|\binf\b|\bnan\b)")
COUNT = re.compile(r"\b(\d[\d,]*) (?:evaluations|backward|accepted|rejected|\+)|evaluations (\d[\d,]*)")
WIDTH = 110


@dataclass(frozen=True)
class Block:
    """`code` from line `line` of a page on; `printed` is what the page says that it prints, at `span` of its text."""

    language: str
    line: int
    code: str
    printed: str | None
    span: tuple[int, int]


def blocks(text: str) -> list[Block]:
    """The blocks of a page that hold Python."""
    return [Block(m[1], text[: m.start(2)].count("\n"), m[2], m[3], m.span(3)) for m in FENCE.finditer(text)]


def run(page: Path) -> Iterator[tuple[Block, str]]:
    """Run the page's blocks for torchaca in order, in one namespace: each with what it printed."""
    module = ModuleType(f"docs_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # where torch.compile looks for a function's globals
    try:
        for block in blocks(page.read_text()):
            if block.language == "python":
                printed = io.StringIO()
                # Line numbers in a traceback are those of the page.
                code = compile("\n" * block.line + block.code, str(page), "exec")
                with redirect_stdout(printed):
                    exec(code, vars(module))
                yield block, printed.getvalue()
    finally:
        del sys.modules[module.__name__]


def shape(printed: str) -> str:
    """Output without its numbers, units of time and line breaks: what stays the same from machine to machine."""
    return " ".join(re.sub(r"# (ns|us|µs|ms)\b", "# s", NUMBER.sub("#", printed)).split())


def numbers(printed: str) -> list[float]:
    """The numbers in an output."""
    return [float(number.replace(",", "")) for number in NUMBER.findall(printed)]


def counts(printed: str) -> list[int]:
    """The evaluations and steps in an output: they may differ from machine to machine, but by a few."""
    found = COUNT.findall(" ".join(printed.split()))
    return [int((before or after).replace(",", "")) for before, after in found]


def agree(one: str, other: str, tolerance: float) -> bool:
    """Whether two outputs say the same, their numbers up to a relative tolerance."""
    pairs = zip(numbers(one), numbers(other), strict=False)
    return shape(one) == shape(other) and all(
        math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in pairs
    )


def with_outputs(page: Path) -> str:
    """The page's text with what its blocks print now."""
    text = page.read_text()
    for block, printed in reversed(list(run(page))):
        if block.printed is not None:
            start, end = block.span
            text = text[:start] + _wrapped(printed) + text[end:]
    return text


def _wrapped(printed: str) -> str:
    lines = [
        part
        for line in printed.rstrip().splitlines()
        for part in textwrap.wrap(line, WIDTH, subsequent_indent=" " * (len(line) - len(line.lstrip()) + 2))
        or [""]
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> None:
    """Write the outputs into the pages that are named."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("gallery").symlink_to(ROOT / "docs" / "gallery")  # pictures that a page draws
        for page in sys.argv[1:]:
            path = ROOT / page
            path.write_text(with_outputs(path))


if __name__ == "__main__":
    main()
