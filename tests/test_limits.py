"""Limits of the source, read from it: where private PyTorch may be named."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
FILES = sorted(SRC.rglob("*.py"))

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))

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
