"""`compile='loops'` with the default gradient: graphs where that is compiled and where they fit, else states."""

import pytest
import torch
from compiled_helpers import assert_equal, both
from torch import nn

from torchaca import ACA, Adaptive
from torchaca.compiled import aca as compiled

pytestmark = pytest.mark.usefixtures("interpreted")

AUTO, STATES, GRAPHS = (ACA(checkpoints=kept) for kept in ("auto", "all", "none"))
T = [0.0, 0.3, 1.7, 2.0]


class Own(nn.Module):
    """An f that is called with one batch size alone: graphs are compiled for no more."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2).double()

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) * torch.cos(t)


def like(gradient, f, y0, t=T, **options):
    """The default does what `gradient` does, and finds the same gradients."""
    auto, other = (both(f, y0, t, list(f.parameters()), gradient=g, **options)[1] for g in (AUTO, gradient))
    assert_equal(other, auto)
    assert (auto[0].stats.nfe_backward == 0) == (gradient == GRAPHS)


def test_graphs_that_fit_are_kept():
    like(GRAPHS, Own(), torch.randn(5, 2, dtype=torch.float64))


def test_graphs_of_the_most_steps_possible_have_to_fit():
    """Decided before the first step, and by a constant."""
    f, y0 = Own(), torch.randn(5, 2, dtype=torch.float64)
    like(STATES, f, y0, control=Adaptive(max_steps=10**7))
    like(GRAPHS, f, y0, control=Adaptive(max_steps=10**3))


def test_a_smaller_budget(monkeypatch):
    monkeypatch.setattr(compiled, "BUDGET", 10**5)
    like(STATES, Own(), torch.randn(5, 2, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"n_steps": 3}, {"method": "dopri8"}, {"jump_ts": [0.7]}], ids=str)
def test_states_are_kept_where_graphs_are_not_compiled(options):
    like(STATES, Own(), torch.randn(5, 2, dtype=torch.float64), **options)


def test_states_are_kept_where_times_are_differentiated():
    like(STATES, Own(), torch.randn(5, 2, dtype=torch.float64), torch.tensor(T, requires_grad=True))
