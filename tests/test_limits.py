"""Limits of the source, read from it.

Private PyTorch has one file; functions and files are of a size to read in one sitting; nobody asks which row of a table
it has before it; names with an underscore stay in their file; classes are abstract or final.
"""

import ast
import builtins
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from torchaca import control
from torchaca.executors import EXECUTORS
from torchaca.gradients import GRADIENTS
from torchaca.methods import METHODS

SRC = Path(__file__).resolve().parents[1] / "src"
FILES = sorted(SRC.rglob("*.py"))


def every_file(check):
    """One test that asks each file, and names those that fail: a test for each would take longer than the question."""

    def test():
        failures = {}
        for path in FILES:
            try:
                check(path)
            except AssertionError as error:
                failures[str(path.relative_to(SRC))] = str(error)
        assert failures == {}

    return test


INTERNALS = SRC / "torchaca" / "torch_internals.py"
DOCUMENTED = {"_version", "_replace", "_asdict", "_fields", "_make", "_getframe"}
"""Attributes that are public for all their underscore: of tensors, of named tuples, of `sys`."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name != "_"


def own_names(module: ast.Module) -> Iterator[str]:
    """Names that a module gives to something: functions, classes, variables, attributes, slots."""
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                yield from (x.value for x in ast.walk(value) if isinstance(x, ast.Constant))
            case ast.Call(
                args=[ast.Name(id="self"), ast.Constant(value=str(name)), _]
            ):  # setattr of frozen classes
                yield name


@cache
def names_of_ours() -> frozenset[str]:
    return frozenset(name for path in FILES if path != INTERNALS for name in own_names(tree(path)))


def private_torch(module: ast.Module, ours: frozenset[str] = frozenset()) -> Iterator[str]:
    """Where a module names what is private to PyTorch, beside the names of `ours`.

    An attribute with an underscore that nobody here has made is somebody else's, whatever object it is of.
    """
    from_torch = {"torch"}
    for node in ast.walk(module):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(name), names=names, level=0):
                modules = [f"{name}.{alias.name}" for alias in names]
                if name.split(".")[0] == "torch":
                    from_torch |= {alias.asname or alias.name for alias in names}
            case ast.Constant(value=str(text)) if re.fullmatch(r"torch(\.\w+)+", text):
                modules = [text]
            case _:
                continue
        for name in modules:
            if name.split(".")[0] == "torch" and any(map(is_private, name.split("."))):
                yield f"line {node.lineno}: {name}"
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            of_torch = isinstance(root, ast.Name) and root.id in from_torch
            if node.attr not in DOCUMENTED and (of_torch or node.attr not in ours):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@every_file
def test_private_torch_is_in_one_file(path):
    assert path == INTERNALS or list(private_torch(tree(path), names_of_ours())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "import torch.utils._pytree as pytree",
        "from torch.utils import _pytree as pytree",
        "from torch._C._functorch import get_unwrapped",
        "from torch import _dynamo",
        "torch._foreach_add_(a, b)",
        "torch.nn.modules.batchnorm._NormBase",
        "from torch import nn\nnn.modules.batchnorm._NormBase",
        "from torch.autograd import forward_ad as ad\nad._current_level",
        "def f(x):\n    return x._backward_hooks",
        "importlib.import_module('torch._dynamo')",
    ],
)
def test_private_torch_is_seen(source):
    assert list(private_torch(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import torch.utils.hooks",
        "from torch import Tensor\nTensor.__torch_function__",
        "x._version",
        "class A:\n    def f(self):\n        self._own = torch.ones(3)\n        return self._own",
        "'torch.ops.higher_order.while_loop'",
    ],
)
def test_public_torch_is_not(source):
    module = ast.parse(source)
    assert list(private_torch(module, frozenset(own_names(module)))) == []


def test_import_does_not_load_the_compiler_of_torch():
    compiler = ("torch._dynamo", "torch._inductor")
    code = f"import sys, torchaca, torch_ACA; print([name for name in {compiler} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


FILE_LINES = 300
BODY_LINES = 50


@every_file
def test_files_are_read_in_one_sitting(path):
    n = len(path.read_text().splitlines())
    assert n <= FILE_LINES


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions but those of compiled loops: what calls `while_loop`, and what is inside of that."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            calls = (x.func for x in ast.walk(child) if isinstance(x, ast.Call))
            if any(ast.unparse(called).split(".")[-1] == "while_loop" for called in calls):
                continue
            yield child
        yield from functions(child)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first line of the first statement behind the docstring to the last line, blank ones and comments too."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@every_file
def test_functions_fit_on_a_screen(path):
    long = {f.name: body_lines(f) for f in functions(tree(path)) if body_lines(f) > BODY_LINES}
    assert long == {}


def test_lines_of_functions_are_counted():
    lines = ["def plain():", "    'A docstring.'", "    x = 1", "", "    # A comment.", "    return x"]
    loop = [
        "def loop():",
        "    def trial():",
        "        pass",
        "    return compiler.while_loop(goes_on, trial)",
    ]
    assert {f.name: body_lines(f) for f in functions(ast.parse("\n".join(lines + loop)))} == {"plain": 4}


def place_of(module: str) -> str:
    """The module or the subpackage of torchaca."""
    return [*module.split("."), "__init__"][1]


@cache
def rows() -> dict[str, str]:
    """The places that may ask for a row of a table, by what code calls it: its class, its value, its quoted name.

    A class of several rows is a family, and no row.
    """
    tables = {"methods": METHODS, "gradients": GRADIENTS, "executors": EXECUTORS}
    controls = [x for x in vars(control).values() if hasattr(x, "boundaries") and x is not control.Control]
    tables["loops"] = {x: x for x in controls}
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "torchaca"]
    found = {}
    for place, table in tables.items():
        kinds = [x if inspect.isclass(x) or inspect.isfunction(x) else type(x) for x in table.values()]
        known = [*table.values(), *(kind for kind in kinds if kinds.count(kind) == 1)]
        named = [(name, value) for module in modules for name, value in vars(module).items()]
        found |= {name: place for name, value in named if any(value is row for row in known)}
        found |= {repr(key): place for key in table if isinstance(key, str)}
    return found


def asks_for_rows(module: ast.Module, place: str) -> Iterator[str]:
    """Where a module asks which row of a table something is: isinstance, a comparison, a pattern.

    An experiment may ask for a row by its name: it is about certain rows, and the user has named them.
    """
    asked = {name for name, home in rows().items() if home != place}
    if place == "lab":
        asked = {name for name in asked if name.isidentifier()}
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kind]):
                parts = [kind]
            case ast.Compare(left=left, comparators=others):
                parts = [left, *others]
            case ast.MatchClass(cls=part) | ast.MatchValue(value=part):
                parts = [part]
            case _:
                continue
        if any(not named_by(part).isdisjoint(asked) for part in parts):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def named_by(part: ast.AST) -> set[str]:
    """What an expression is called, or those among its elements, or what it calls; strings with their quotes."""
    match part:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return {name}
        case ast.Constant(value=str(name)):
            return {repr(name)}
        case ast.Call(func=called):
            return named_by(called)
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return set().union(*map(named_by, parts))
        case ast.BinOp(left=left, right=right):
            return named_by(left) | named_by(right)
        case _:
            return set()


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(gradient, aca.ACA)",
        "isinstance(control, Adaptive | FixedSteps)",
        "gradient == ACA()",
        "gradient in (ACA(checkpoints='none'), Direct())",
        "gradient.name == 'mali'",
        "method is DOPRI5",
        "match gradient:\n    case Direct():\n        pass",
        "p.method == aca.methods.METHODS['alf'] or isinstance(p.method, ALF)",
    ],
)
def test_questions_for_rows_are_seen(source):
    assert list(asks_for_rows(ast.parse(source), "solve"))


@pytest.mark.parametrize(
    "source", ["isinstance(control, Control)", "ACA() if quick else Direct()", "gradient.exact"]
)
def test_facts_of_rows_are_not_questions_for_rows(source):
    assert list(asks_for_rows(ast.parse(source), "solve")) == []


@every_file
def test_nobody_asks_which_row_it_is(path):
    module = ".".join(path.relative_to(SRC).with_suffix("").parts)
    assert list(asks_for_rows(tree(path), place_of(module))) == []


def foreign_privates(module: ast.Module) -> Iterator[str]:
    """Names with an underscore that a module takes from another file of this package."""
    ours = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (
            node.level or str(node.module).split(".")[0] in ("torchaca", "torch_ACA")
        ):
            ours |= {alias.asname or alias.name for alias in node.names}
            names = [*str(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (f"line {node.lineno}: import of {name}" for name in names if is_private(name))
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_private(node.attr):
            taken = node.value.id in ours and node.attr not in DOCUMENTED
            yield from [f"line {node.lineno}: {ast.unparse(node)}"] if taken else []


@every_file
def test_names_with_an_underscore_stay_in_their_file(path):
    assert list(foreign_privates(tree(path))) == []


@cache
def bases() -> dict[str, list[str]]:
    """The last names of the bases of each class of the package."""
    classes = [node for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    return {node.name: [last_name(base) for base in node.bases] for node in classes}


THEIRS = ("torch.", "ctypes.")
"""Bases that a module names in full."""


def last_name(base: ast.expr) -> str:
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base).split(".")[-1]


def may_be_a_base(name: str) -> bool:
    """Whether others may derive from it: a protocol, what has abstract methods, an exception, a module, or not ours."""
    if name not in bases():
        return True
    own = set(bases()[name])
    if own & {"Protocol", "ABC", "Module", "LightningModule", "Function"}:
        return True
    exceptions = {
        x
        for x, value in vars(builtins).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    return bool(own & exceptions) or any(base in bases() and may_be_a_base(base) for base in own)


@every_file
def test_classes_are_abstract_or_final(path):
    classes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    wrong = [
        f"{node.name}({base})"
        for node in classes
        for base in map(last_name, node.bases)
        if not may_be_a_base(base) and not any(ast.unparse(x).startswith(THEIRS) for x in node.bases)
    ]
    assert wrong == []
