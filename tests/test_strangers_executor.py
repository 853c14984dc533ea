"""An executor that is written from docs/adding-an-executor.md alone: registered in the table, it is one of them."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import torchaca
from torchaca import Adaptive, FixedSteps, executors, solve
from torchaca.compiled import CannotCompile
from torchaca.core import Outcome, Problem
from torchaca.executors import EXECUTORS, PREFERRED, Eager
from torchaca.options import Options
from torchaca.solve import problem_of
from torchaca.state import structure_of
from torchaca.times import times_of

DOUBLE = torch.float64
TIMES = [0.0, 0.25, 0.5, 1.0]


class Stranger:
    """Fixed and adaptive steps in loops of its own, differentiated by autograd alone: Euler's sizes, halved at will."""

    seen: Problem | None = None
    reason: str | None = None

    def refusal(self, p: Problem) -> str | None:
        return "it keeps no interpolants: use compile=False" if p.dense else None

    def begin(self, p: Problem) -> Problem:
        return Eager().begin(p)

    def finish(self, p: Problem) -> Outcome:
        Stranger.seen = p
        if Stranger.reason:
            raise CannotCompile(Stranger.reason)
        ys, times = [p.y0], [p.ts.values[0]]
        for t0, t1 in pairwise(p.ts.values):
            y = ys[-1]
            for a, b in pairwise([t0, 0.5 * (t0 + t1), t1]):
                y = p.step(a, b, y).y1
                p.stats.accepted += 1
                times.append(b)
            ys.append(y)
        return Outcome(torch.stack(ys), p.ts, times=times)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(EXECUTORS, "stranger", Stranger)
    monkeypatch.setattr(Stranger, "reason", None)
    monkeypatch.setattr(Stranger, "seen", None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3).to(DOUBLE)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) + torch.sin(t)


HALVED = [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0]


def solved(f, mode, **options):
    y0 = torch.ones(2, 3, dtype=DOUBLE, requires_grad=True)
    options = {"method": "rk4", "grid": HALVED, **options}
    sol = solve(f, y0, TIMES, compile=mode, **options)
    return sol, torch.autograd.grad(sol.ys.square().sum(), [y0, *f.parameters()])


@pytest.mark.parametrize("gradient", ["aca", "direct"])
def test_it_solves_and_is_differentiated(gradient):
    f = Net()
    (want, grads), (sol, own) = (solved(f, mode, gradient=gradient) for mode in (False, "stranger"))
    torch.testing.assert_close(sol.ys, want.ys, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(own, grads, rtol=1e-11, atol=1e-11)
    assert sol.steps == want.steps
    assert sol.stats.accepted == want.stats.accepted
    assert Stranger.seen is not None
    assert isinstance(Stranger.seen.control, FixedSteps)


def test_what_it_refuses_is_an_error_in_its_words():
    with pytest.raises(ValueError, match="it keeps no interpolants: use compile=False"):
        solved(Net(), "stranger", dense=True)
    assert Stranger.seen is None


def test_what_it_cannot_go_on_with_is_solved_in_the_eager_loop():
    Stranger.reason = "the stranger is tired"
    f = Net()
    with pytest.warns(
        UserWarning, match="compile='stranger': the stranger is tired; this solve runs in the eager"
    ):
        sol, grads = solved(f, "stranger")
    want, rival = solved(f, False)
    assert torch.equal(sol.ys, want.ys)
    assert all(map(torch.equal, grads, rival))
    assert sol.stats == want.stats


def test_it_goes_through_the_preamble():
    f = Net().bfloat16()
    with pytest.warns(UserWarning, match=r"f computes in torch.bfloat16"):
        solve(
            lambda t, y: f.linear(y.bfloat16()).float(), torch.ones(3), TIMES, compile="stranger", rtol=1e-6
        )
    assert Stranger.seen is not None
    assert isinstance(Stranger.seen.control, Adaptive)
    assert float(torch.as_tensor(Stranger.seen.control.rtol).max()) > 1e-6
    with pytest.warns(UserWarning, match="step control takes the noise"):
        solve(
            lambda t, y: nn.functional.dropout(-y, 0.1),
            torch.ones(3),
            TIMES,
            compile="stranger",
            rtol=1.0,
            atol=1.0,
        )


def test_true_takes_the_first_that_does_not_refuse(monkeypatch):
    monkeypatch.setattr(executors, "PREFERRED", ["stranger", *PREFERRED])
    solved(Net(), True)
    assert Stranger.seen is not None
    monkeypatch.setattr(Stranger, "refusal", lambda self, p: "never")
    monkeypatch.setattr(executors, "PREFERRED", ["stranger"])
    with pytest.raises(ValueError, match="never"):
        solved(Net(), True)


def test_an_unknown_name_is_told_which_there_are():
    with pytest.raises(
        ValueError,
        match=r"compile is True, False, 'native', 'loops', 'steps', 'cuda-graphs' or 'stranger', got 'strange'",
    ):
        solved(Net(), "strange")


def test_a_block_knows_it_as_well():
    block = torchaca.NeuralODE(Net(), TIMES, method="rk4", grid=HALVED, compile="stranger")
    torch.testing.assert_close(
        block(torch.ones(2, 3, dtype=DOUBLE)), solved(block.f, False)[0].ys, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("batch", [-1, 3, 1.0, "rows"])
def test_the_fact_batch_is_checked(batch):
    y0 = torch.ones(2, 3)
    structure = structure_of(y0)
    asked = Options().request(structure, y0)
    with pytest.raises(ValueError, match=r"batch is how many leading dimensions of y0 .* from 0 to 2, got"):
        problem_of(lambda t, y: -y, y0, structure, times_of([0, 1], "t"), asked, batch=batch)
    assert problem_of(lambda t, y: -y, y0, structure, times_of([0, 1], "t"), asked, batch=2).f.batch == 2
