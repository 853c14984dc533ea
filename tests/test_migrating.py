"""The programs for other libraries in docs/migrating.md print what their successors print."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tools.pages import Block, agree, blocks

ROOT = Path(__file__).resolve().parents[1]
FOUND = blocks((ROOT / "docs" / "migrating.md").read_text())
PEERS = {"torchdiffeq", "torchcde", "torchdyn", "torchode", "flow_matching", "diffrax"}
JAX = ROOT / ".venv-jax" / "bin" / "python"


def pairs() -> dict[str, tuple[str, str]]:
    """By title: each program for another library, and what it should print."""
    programs = {}
    for i, block in enumerate(FOUND):
        if block.language == "py":
            said = block.printed if block.printed is not None else FOUND[i + 1].printed
            assert said is not None, f"line {block.line} of docs/migrating.md: nothing says what this prints"
            programs["-".join(sorted(imported(block) & (PEERS | {"torchaca"})))] = (block.code, said)
    return programs


def imported(block: Block) -> set[str]:
    nodes = list(ast.walk(ast.parse(block.code)))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in modules}


def test_every_peer_has_a_program():
    assert {peer for title in pairs() for peer in title.split("-")} == PEERS | {"torchaca"}


@pytest.mark.slow
@pytest.mark.parametrize("title", pairs())
def test_before_and_after_print_the_same(title):
    python = str(JAX) if title == "diffrax" else sys.executable
    if title == "diffrax" and not JAX.exists():
        pytest.skip("no .venv-jax: make test-slow builds it")
    missing = [name for name in title.split("-") if title != "diffrax" and not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; make test-slow installs them")
    code, expected = pairs()[title]
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # torchdyn says something of its own first.
    printed = "\n".join(done.stdout.splitlines()[-len(expected.splitlines()) :])
    assert agree(printed, expected, tolerance=0.01), f"{printed}\nbut the page says\n{expected}"
