"""README's table "Beside others": each cell is what a program shows of that library, in the version that is pinned."""

import ast
import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
JAX = ROOT / ".venv-jax" / "bin" / "python"
PINS = {
    "torchdiffeq": "constraints.txt",
    "torchode": "benchmarks/requirements.txt",
    "diffrax": "benchmarks/requirements-jax.txt",
}


def table() -> list[list[str]]:
    """The cells of the table, its head first."""
    text = (ROOT / "README.md").read_text().split("## Beside others\n\n")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [lines[0], *lines[2:]]


def pinned(name: str) -> str:
    """The version of a peer that the tests and the benchmarks install."""
    found = re.search(rf"^{name}==(\S+)$", (ROOT / PINS[name]).read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def row_of(name: str) -> str:
    """The first cell of a row without links and indentation: what it is called among the facts."""
    return re.sub(r"\[(.*?)\]\(.*?\)", r"\1", name.removeprefix("&nbsp; "))


HEAD, *ROWS = table()
LIBRARIES = [cell.split()[0] for cell in HEAD[1:]]


def facts(library: str) -> dict:
    """What is checked of a library; those of diffrax import JAX where they run."""
    if library == "torchode":
        pytest.importorskip(library)
    return importlib.import_module(f"facts_{library}").FACTS


def test_the_table_names_the_versions_that_are_installed():
    assert HEAD[1:] == ["torchaca", *(f"{name} {pinned(name)}" for name in PINS)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_cell_is_a_fact(library):
    said = {row_of(row[0]): row[1 + LIBRARIES.index(library)] for row in ROWS}
    assert said == {name: cell for name, (cell, _) in facts(library).items()}


@pytest.mark.parametrize("row", [row_of(row[0]) for row in ROWS])
@pytest.mark.parametrize("library", ["torchaca", "torchdiffeq"])
def test_facts(library, row):
    facts(library)[row][1]()


@pytest.mark.slow
@pytest.mark.parametrize("row", [row_of(row[0]) for row in ROWS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_facts_of_torchode(row):
    facts("torchode")[row][1]()


@pytest.mark.slow
@pytest.mark.skipif(not JAX.exists(), reason="no .venv-jax: make test-slow builds it")
@pytest.mark.parametrize("row", [row_of(row[0]) for row in ROWS])
def test_facts_of_diffrax(row):
    command = [JAX, HERE / "facts_diffrax.py", row]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_others_are_compared_with_is_one_number():
    found = [
        node.value.value
        for name in ("beside_common", "facts_diffrax")
        for node in ast.parse((HERE / f"{name}.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXACT_AT_REST"
    ]
    assert len(found) == 2
    assert found[0] == found[1]
