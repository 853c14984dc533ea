"""Every public name has an entry in the reference, and no entry leads nowhere; without the site's generator."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import torchaca

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODULES = (
    "",
    ".nn",
    ".control",
    ".gradients",
    ".errors",
    ".compat.torchdiffeq",
    ".compat.torch_aca",
    ".compat.install",
)
READ, WRITTEN = (
    [
        entry
        for path in sorted(DOCS.glob("api/*.md"))
        for entry in re.findall(pattern, path.read_text(), re.MULTILINE)
    ]
    for pattern in (r"^::: (\S+)$", r"^## (torchaca\.\w+)$")
)
"""Entries that the site's generator makes from the sources, and those that stand on the page as they are."""
ENTRIES = [*READ, *WRITTEN]


def found(path: str) -> object:
    """The object at a dotted path: the longest module that imports, and attributes of it."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def bound(module: str) -> set[str]:
    """The names that a reader of a module's source sees: `globals().update(...)` is none of them."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    seen = set()
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            seen.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            seen |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            seen |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return seen


def names(module: str) -> list[str]:
    """The public names of a module of torchaca, but modules."""
    home = importlib.import_module(f"torchaca{module}")
    public = getattr(home, "__all__", None)
    if public is None:  # a module whose functions are all public
        public = [
            n
            for n, x in vars(home).items()
            if n[0] != "_" and getattr(x, "__module__", None) == home.__name__
        ]
    return [f"{home.__name__}.{name}" for name in public if name != "nn"]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_entry(module):
    listed = [id(found(entry)) for entry in ENTRIES]
    missing = [name for name in names(module) if id(found(name)) not in listed]
    assert missing == [], "give them a line `::: NAME` on a page in docs/api/"


def test_no_entry_twice():
    assert len(ENTRIES) == len(set(ENTRIES))


@pytest.mark.parametrize("entry", READ)
def test_the_generator_sees_every_entry(entry):
    """It reads the sources and imports nothing: a name that is made at import stops `make docs`."""
    module, _, name = entry.rpartition(".")
    assert name in bound(module), "write it on the page, or bind it in the source"
    path = Path(torchaca.__file__).parent.joinpath(*entry.split(".")[1:])
    assert not path.with_suffix(".py").exists(), (
        "the generator takes the module of this name: write MODULE.NAME"
    )


def test_every_name_is_documented():
    """Functions and classes have docstrings, and those that are called say what they take."""
    for entry in ENTRIES:
        thing = found(entry)
        if callable(thing):
            assert (thing.__doc__ or "").strip(), f"{entry} has no docstring"


def test_every_page_of_the_site_is_in_its_menu():
    menu = (DOCS.parent / "mkdocs.yml").read_text()
    listed = set(re.findall(r"([\w/-]+\.md)$", menu, re.MULTILINE))
    pages = {str(path.relative_to(DOCS)) for path in (*DOCS.glob("*.md"), *DOCS.glob("api/*.md"))}
    assert listed >= pages
    assert all((DOCS / page).exists() for page in listed)


def test_the_version_of_torchdiffeq_is_the_one_tested():
    requirement = re.search(
        r"^torchdiffeq==(.*)$", (DOCS.parent / "constraints.txt").read_text(), re.MULTILINE
    )
    assert requirement[1] == torchaca.compat.install.VERSION
