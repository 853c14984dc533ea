"""The package as its users get it: what a wheel holds, what an import loads, and which way imports point."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

import torchaca

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

LAYERS = (
    "torch_internals",
    "layout",
    "numbers",
    "norms",
    "log",
    "transforms",
    "errors",
    "times",
    "protocols",
    "core",
    "elsewhere",
    "state",
    "methods",
    "field",
    "trace",
    "loops",
    "control",
    "dense",
    "going_on",
    "gradients",
    "events",
    "compiled",
    "native",
    "executors",
    "batch",
    "solution",
    "progress",
    "options",
    "batched",
    "solve",
    "iterate",
    "integrals",
    "explain",
    "report",
    "nn",
    "compat",
    "__init__",
    "lab",
)
"""The places of torchaca: each imports only from those before it. A package is one place; `__init__` is torchaca's."""

NARROWER = {"methods": {"core", "layout", "numbers"}, "torch_ACA": {"compat"}}
"""Places that may import from these alone."""

OURS = {"torchaca", "torch_ACA"}
DEPENDENCIES = {"torch", "numpy", *sys.stdlib_module_names}
OPTIONAL = ("jinja2", "matplotlib", "pytorch_lightning", "rich", "scipy", "torchdiffeq")


@dataclass(frozen=True)
class Import:
    """`module` in full, relative ones resolved; `name` is what is taken from it, if anything is."""

    module: str
    name: str
    line: int
    in_function: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def place(self) -> str:
        """Which place of torchaca this imports from."""
        parts = self.module.split(".")
        inside = parts[1] if len(parts) > 1 else self.name
        return inside if inside in LAYERS else "__init__"


def place_of(path: Path) -> str:
    """The place of a source file: its module or its subpackage in torchaca, or the name of another package."""
    package, *inside = path.relative_to(SRC).with_suffix("").parts
    return inside[0] if package == "torchaca" else package


def imports_of(source: str, package: str) -> Iterator[Import]:
    """All imports of a module in `package` that run: those under `if TYPE_CHECKING:` do not."""
    yield from _imports(ast.parse(source).body, package, in_function=False)


def _imports(nodes: list, package: str, in_function: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            yield from _imports(node.orelse, package, in_function)
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(list(ast.iter_child_nodes(node)), package, inside)


def objections(place: str, source: str, package: str) -> list[str]:
    """What is wrong with the imports of a module that belongs to `place`."""
    if place not in {*LAYERS, "torch_ACA"}:
        return [f"'{place}' has no place in LAYERS of tests/test_package.py: put it where its imports allow"]
    before = LAYERS[: LAYERS.index(place)] if place in LAYERS else ()
    allowed = NARROWER.get(place, set(before)) | {place}
    wrong = []
    for found in imports_of(source, package):
        where = f"line {found.line}: import of {'.'.join(filter(None, (found.module, found.name)))}"
        if found.in_function and place != "lab":
            wrong.append(f"{where} inside a function")
        if found.top == "torchaca" and found.place not in allowed:
            wrong.append(f"{where}: {place} may import from {[n for n in LAYERS if n in allowed]} only")
        elif found.top == "torch_ACA" and place != "torch_ACA":
            wrong.append(f"{where}: torch_ACA is a leaf")
        elif place == "core" and found.top == "numpy":
            wrong.append(f"{where}: core knows torch alone")
        elif place != "lab" and found.top not in OURS | DEPENDENCIES:
            wrong.append(f"{where}: the package depends on torch and numpy alone")
    return wrong


def test_imports_point_one_way():
    for path in sorted(SRC.rglob("*.py")):
        package = ".".join(path.parent.relative_to(SRC).parts)
        assert objections(place_of(path), path.read_text(), package) == [], path


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("state", "from .field.inputs import Inputs"),
        ("state", "from . import field"),
        ("state", "import torchaca.field.inputs"),
        ("state", "from torchaca import field, solve"),
        ("state", "from . import __version__"),
        ("state", "def f():\n    from .core import Step"),
        ("state", "import scipy.linalg"),
        ("state", "import torch_ACA"),
        ("state", "try:\n    import rich\nexcept ImportError:\n    rich = None"),
        ("core", "import numpy"),
        ("core", "if TYPE_CHECKING:\n    pass\nelse:\n    from .state import Structure"),
        ("methods", "from .norms import rms"),
        ("torch_ACA", "from torchaca import solve"),
        ("torch_ACA", "from torchaca.solve import solve"),
        ("__init__", "from .lab import cli"),
        ("utils", "import torch"),
    ],
)
def test_wrong_imports_are_seen(place, source):
    assert objections(place, source, "torchaca")


@pytest.mark.parametrize(
    ("place", "package", "source"),
    [
        ("core", "torchaca", "import math\nfrom torch import Tensor"),
        ("core", "torchaca", "if TYPE_CHECKING:\n    from .errors import SolverError"),
        ("core", "torchaca", "if typing.TYPE_CHECKING:\n    from .errors import SolverError"),
        (
            "methods",
            "torchaca.methods",
            "from ..core import Step\nfrom .runge_kutta import RungeKutta\nfrom . import rk4",
        ),
        ("compat", "torchaca.compat", "from .. import solve\nfrom ..nn import NeuralODE\nimport numpy as np"),
        ("__init__", "torchaca", "from .solve import solve\nfrom . import nn"),
        ("lab", "torchaca.lab", "import torchaca as aca\nimport rich\ndef plot():\n    import matplotlib"),
        (
            "torch_ACA",
            "torch_ACA",
            "from torchaca.compat import torch_aca\nfrom torchaca.compat.torch_aca import odesolve",
        ),
    ],
)
def test_right_imports_pass(place, package, source):
    assert objections(place, source, package) == []


def run(*command: str | Path, **settings) -> str:
    """The output of a command, or a failure that shows what the command said."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_import_loads_no_optional_dependency():
    """The command's own module neither: it names what is missing."""
    packages = "torchaca, torch_ACA, torchaca.lab.cli"
    code = f"import sys, {packages}; print([name for name in {OPTIONAL} if name in sys.modules])"
    path = os.pathsep.join([str(SRC), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert run(sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": path}).strip() == "[]"


def test_wheel_holds_both_packages(tmp_path):
    python, target = sys.executable, tmp_path / "installed"
    run(python, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("torchaca-*.whl")
    in_wheel = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    in_tree = {
        str(path.relative_to(SRC))
        for suffix in ("*.py", "py.typed", "*.html", "*.css")
        for path in SRC.rglob(suffix)
    }
    assert in_wheel >= in_tree > {"torchaca/py.typed", "torch_ACA/py.typed"}

    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", "--target", target, wheel)
    code = "import torchaca, torch_ACA; print(torchaca.__file__, torch_ACA.__file__, torchaca.__version__, sep='\\n')"
    shown = run(python, "-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)}).split("\n")
    assert shown[:2] == [str(target / package / "__init__.py") for package in ("torchaca", "torch_ACA")]
    assert shown[2] == torchaca.__version__


def test_the_extra_of_the_site_is_what_makes_it():
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["optional-dependencies"]["docs"]
    pinned = (ROOT / "docs/requirements.txt").read_text()
    assert all(f"\n{name}==" in pinned for name in wanted)


def test_version_is_the_same_everywhere():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == torchaca.__version__
    assert f"\nversion: {torchaca.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    try:
        installed = importlib.metadata.version("torchaca")
    except importlib.metadata.PackageNotFoundError:
        return
    assert installed == torchaca.__version__
