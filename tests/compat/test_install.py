"""`install_as_torchdiffeq`: a program that imports torchdiffeq deep inside runs on torchaca."""

import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = """
import torch
import torchdiffeq
import torchdiffeq._impl as impl
import torchdiffeq._impl.odeint as as_name
from torchdiffeq import odeint, odeint_adjoint as adjoint, odeint_event
from torchdiffeq._impl.adjoint import odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS, odeint as deep


def end(solve=odeint):
    return solve(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]), rtol=1e-6, atol=1e-8)[-1]
"""
PROGRAM = """
import sys
import torchaca as aca

aca.install_as_torchdiffeq()
aca.install_as_torchdiffeq()
import package.sub.inside as inside
import torchdiffeq

assert inside.odeint is inside.deep is inside.as_name is aca.odeint is torchdiffeq.odeint
assert inside.adjoint is inside.odeint_adjoint is inside.impl.odeint_adjoint is aca.odeint_adjoint
assert inside.torchdiffeq._impl.odeint_event is inside.odeint_event is aca.odeint_event
assert torchdiffeq.__version__ == "0.2.5"
assert {"dopri5", "rk4", "midpoint"} <= set(inside.SOLVERS)
assert abs(float(inside.end()[0]) - 0.36788) < 1e-4 > abs(float(inside.end(inside.odeint_adjoint)[0]) - 0.36788)
"""


@pytest.fixture
def run(tmp_path):
    """Run a program beside a package that imports torchdiffeq; returns what it said."""
    folder = tmp_path / "package" / "sub"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        (path / "__init__.py").touch()
    (folder / "inside.py").write_text(INSIDE)

    def in_process(code: str) -> str:
        import torchaca

        source = str(Path(torchaca.__file__).parents[1])
        code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {source!r}]\n{code}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        return f"{done.stdout}{done.stderr}"

    return in_process


def test_a_program_that_imports_it_deep_inside(run):
    taken_away = """
aca.uninstall_as_torchdiffeq()
aca.uninstall_as_torchdiffeq()
assert not [name for name in sys.modules if name.startswith("torchdiffeq")]
assert inside.end().shape == (2,)  # who has imported it keeps it
import torchdiffeq
assert torchdiffeq.odeint is not aca.odeint
import torchdiffeq._impl.misc
"""
    assert run(PROGRAM + taken_away) == ""


def test_refused_if_torchdiffeq_is_imported_already(run):
    said = run("import package.sub.inside\nimport torchaca\ntorchaca.install_as_torchdiffeq()")
    assert "RuntimeError: torchdiffeq is imported already, by package.sub.inside, " in said
    assert "at the top of the program" in said


def test_what_is_not_there_is_said(run):
    said = run(
        "import torchaca\ntorchaca.install_as_torchdiffeq()\nfrom torchdiffeq._impl.rk_common import rk4_step_func"
    )
    assert (
        "ModuleNotFoundError: no module 'torchdiffeq._impl.rk_common': torchdiffeq is torchaca's here" in said
    )
