"""`progress=True`: a bar of tqdm over time, and what there is without tqdm."""

import sys
import types

import pytest
import torch
from gradient_cases import DOUBLE

import torchaca
from torchaca import Event, NeuralODE, SolverError, explain, solve

Y0 = torch.tensor([1.0, -0.5], dtype=DOUBLE)


def f(t, y):
    return -y * torch.cos(t)


class Bars:
    """tqdm's part: bars that keep what they are told."""

    def __init__(self):
        self.made = []

    def tqdm(self, **given):
        self.made.append(self)
        self.given, self.postfix, self.n, self.shown, self.closed = given, given["postfix"], 0.0, [], False
        return self

    def update(self, amount):
        self.n += amount
        self.shown.append((self.n, *self.postfix))

    def refresh(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    made = Bars()
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=made.tqdm))
    return made


@pytest.mark.parametrize("t", [[1.0, 2.0, 4.0], [4.0, 1.0]], ids=["forwards", "backwards"])
@pytest.mark.parametrize("steps", [{}, {"n_steps": 5}], ids=["adaptive", "fixed"])
def test_the_bar_goes_over_time(bars, steps, t):
    sol = solve(f, Y0, t, progress=True, **steps)
    assert len(bars.made) == 1
    assert bars.given["total"] == 3.0
    assert bars.closed
    n, at, end, words = bars.shown[-1]
    assert (n, at, end) == (pytest.approx(3.0), t[-1], t[-1])
    assert f"{sol.stats.nfe} evaluations" in words
    assert len(bars.shown) == sol.stats.accepted + sol.stats.rejected + 1
    assert "evaluations, dt " in bars.shown[1][-1]


def test_it_changes_nothing(bars):
    assert torch.equal(solve(f, Y0, [0.0, 3.0], progress=True).ys, solve(f, Y0, [0.0, 3.0]).ys)


def test_a_failure_closes_the_bar_where_it_stopped(bars):
    with pytest.raises(SolverError) as caught:
        solve(lambda t, y: y**2, torch.ones(1, dtype=DOUBLE), [0.0, 2.0], progress=True)
    assert bars.closed
    assert bars.n == pytest.approx(caught.value.t, rel=1e-6)


def test_backward_passes_show_nothing(bars):
    y0 = Y0.clone().requires_grad_()
    for gradient in ("adjoint", torchaca.ACA(checkpoints=2)):
        ys = solve(f, y0, [0.0, 3.0], gradient=gradient, progress=True).ys
        shown = len(bars.shown)
        ys.sum().backward()
        assert len(bars.shown) == shown


def test_blocks_take_it(bars):
    block = NeuralODE(f, progress=True)
    assert not bars.made
    block(Y0)
    assert bars.closed


def test_native_steps_show_it(bars):
    y0 = Y0.clone().requires_grad_()
    sol = solve(f, y0, [0.0, 3.0], progress=True, compile=True)
    assert sol.stats.executor == "native"
    assert len(bars.shown) == sol.stats.accepted + sol.stats.rejected + 1
    other = solve(f, y0, [0.0, 3.0])
    torch.testing.assert_close(sol.ys, other.ys, rtol=0, atol=1e-13)
    grads = (torch.autograd.grad(x.ys[-1].sum(), y0)[0] for x in (sol, other))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [False, True])
def test_a_solve_with_events_has_one_bar(bars, mode):
    kick = Event(lambda t, y: y[0] - 0.7, direction=-1, apply=lambda t, y: y + 0.1)
    sol = solve(f, Y0, [0.0, 3.0], progress=True, events=kick, compile=mode)
    assert len(sol.events[0].t) > 1
    assert len(bars.made) == 1
    assert bars.shown[-1][:2] == (pytest.approx(3.0), 3.0)


def test_compiled_loops_refuse_it():
    with pytest.raises(ValueError, match=r"progress=True, are not compiled"):
        solve(f, Y0, [0.0, 1.0], progress=True, compile="loops")
    said = explain(f, Y0, [0.0, 1.0], progress=True)
    assert said.executor == "native"
    assert "in the loop in Python: somebody is told of each trial" in str(said)


def test_the_real_one(capsys):
    solve(f, Y0, [0.0, 3.0], progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "t = 3 of 3" in shown
    assert "evaluations, dt" in shown


def test_without_tqdm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    for door in (lambda: solve(f, Y0, [0.0, 1.0], progress=True), lambda: NeuralODE(f, progress=True)):
        with pytest.raises(ImportError, match=r"pip install 'torchaca\[progress\]'"):
            door()
