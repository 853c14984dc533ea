"""The gradients that docs/adding-a-gradient.md writes: every law that holds for a row of GRADIENTS holds for them."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from gradient_cases import DOUBLE
from page_gradients import ROWS, page_classes
from resting import prey
from torch import nn
from torch.func import grad, vmap

from torchaca import NeuralODE, SolverError, check_gradient, solve
from torchaca.errors import GradientWarning
from torchaca.gradients import Facts, look

TESTS = Path(__file__).resolve().parents[1]
CLASSES = {row: page_classes()[name] for row, name in ROWS.items()}
OWN = {
    row: made for row, made in CLASSES.items() if not Facts.of(made()).records and made().name != "my direct"
}
"""Those with a backward pass of their own."""
on_page = pytest.mark.parametrize("row", CLASSES)


def laws(*options):
    """Run the laws over the rows of the page."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "page_gradients",
        "-p",
        "no:cacheprovider",
        *options,
    ]
    paths = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        command,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return int(done.stdout.split(" passed")[0].split()[-1])


@pytest.mark.timeout(900)
def test_the_laws_hold_for_the_page():
    """Each law once, for the gradient with a backward pass of its own; the others in the slow run."""
    assert laws("tests/gradients/test_laws.py", "-k", "page_step_by_step") > 100


@pytest.mark.slow
@pytest.mark.timeout(3000)
@on_page
def test_every_law_holds_for_every_gradient_of_the_page(row):
    assert laws("tests/gradients/test_laws.py", "-k", row, "-m", "slow or not slow") > 200


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def gradients(row, **options):
    net, y0 = mlp(), torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=DOUBLE, requires_grad=True)
    gradient = CLASSES[row]() if row in CLASSES else row
    ys = solve(lambda t, y: net(y), y0, [0.0, 0.4, 1.0], gradient=gradient, **options).ys
    return torch.autograd.grad(ys.square().sum(), (y0, *net.parameters()))


def assert_direct(row, **options):
    for mine, right in zip(gradients(row, **options), gradients("direct"), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"n_steps": 3}, {"rtol": 1e-3}], ids=["fixed", "adaptive"])
@on_page
def test_vmap(row, options):
    """Direct stands in where the facts say that it may; else the solve is refused in words."""
    made, starts = CLASSES[row](), torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=DOUBLE)

    def loss(start, gradient):
        return (
            solve(lambda t, y: -y * y.flip(0), start, [0.0, 1.0], gradient=gradient, **options).ys[-1].sum()
        )

    facts = Facts.of(made)
    if not (facts.replaceable or (facts.records is True and "n_steps" in options)):
        with pytest.raises(NotImplementedError, match=f"gradient='{made.name}'.*use gradient='aca'"):
            vmap(grad(lambda y: loss(y, made)))(starts)
        return
    mine, right = (vmap(grad(lambda y, g=g: loss(y, g)))(starts) for g in (made, "direct"))
    torch.testing.assert_close(mine, right)


@on_page
def test_debug(row):
    made = CLASSES[row]()
    if not Facts.of(made).moves:
        with pytest.raises(ValueError, match=f"debug=True follows.*gradient='{made.name}'"):
            gradients(row, debug=True)
        return
    assert_direct(row, debug=True)
    depth = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: -y - torch.where(t > 0.5, depth.sqrt() * y, 0.0), torch.ones(2, dtype=DOUBLE), [0.0, 0.7],
        n_steps=7, gradient=made, debug=True,
    )  # fmt: skip
    with pytest.raises(SolverError, match="step 7 of 7"):
        sol.ys[-1].sum().backward()


@on_page
def test_check_gradient(row):
    net, made = mlp(), CLASSES[row]()
    report = check_gradient(
        lambda t, y: net(y), torch.ones(2, dtype=DOUBLE), [0.0, 1.0], lambda ys: ys[-1].sum(),
        gradients=["direct", made], repeats=1, reference_rtol=None,
    )  # fmt: skip
    mine = report.rows[1]
    assert mine.failure is None
    assert mine.error_discrete < 1e-12
    assert mine.by_chance == (not Facts.of(made).exact)
    assert (mine.nfe_backward > 0) == (row in OWN)


@on_page
def test_compile_runs_it_or_says_why_not(row):
    made = CLASSES[row]()
    facts = Facts.of(made)
    if facts.replaceable or facts.moves:
        assert_direct(row, compile=True)
    else:
        with pytest.raises(ValueError, match="compiled so far"):
            gradients(row, compile=True)
    if not facts.moves:
        with pytest.raises(ValueError, match=f"gradient='{made.name}'.*not compiled"):
            gradients(row, compile="steps")


@pytest.mark.parametrize("mode", [False, "native"], ids=str)
def test_a_store_s_steps_are_looked_at(mode, monkeypatch):
    monkeypatch.setattr(look, "_TOLD", weakref.WeakKeyDictionary())
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    ys = solve(prey, y0, [0.0, 50.0], gradient=CLASSES["page_halved"](), compile=mode, at_rest="ignore").ys
    with pytest.warns(GradientWarning, match="resolved for y .* but not for its derivative"):
        ys.sum().backward()


@on_page
def test_a_block_takes_it(row):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, t, y):
            return self.net(y)

    block = NeuralODE(Field(), n_steps=2, gradient=CLASSES[row]())
    block(torch.ones(2, dtype=DOUBLE)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize("row", OWN)
def test_dropout_draws_the_same_numbers_again(row):
    net, found = nn.Sequential(mlp(), nn.Dropout(0.5)), []
    for gradient in (CLASSES[row](), "direct"):
        torch.manual_seed(1)
        ys = solve(
            lambda t, y: net(y), torch.ones(3, 2, dtype=DOUBLE), [0.0, 1.0], n_steps=4, gradient=gradient
        ).ys
        found.append(torch.autograd.grad(ys.sum(), list(net.parameters())))
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right)
