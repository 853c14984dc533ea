"""A tensor of the solve that is changed in place before backward(): one sentence, under every gradient."""

import gc
import pickle
import warnings
import weakref

import pytest
import torch
from gradient_cases import DOUBLE
from torch import nn

import torchaca as aca
from torchaca import GRADIENTS, solve
from torchaca.gradients import Facts
from torchaca.solve import find_gradient

T = [0.0, 0.25, 0.5]
SENTENCE = (
    r"was changed in place \(optimizer.*load_state_dict.*\) before its backward pass.*call backward\(\) first"
)
CASES = {name: {"gradient": name, "method": "alf" if name == "mali" else "dopri5"} for name in GRADIENTS} | {
    "kept": {"gradient": aca.ACA(checkpoints="none")},
    "stagewise": {"gradient": aca.ACA(stagewise=True)},
    "two states": {"gradient": aca.ACA(checkpoints=2)},
    "interpolated": {"gradient": aca.Adjoint(state="interpolated")},
    "debug": {"debug": True},
    "debug direct": {"debug": True, "gradient": "direct"},
    "fixed direct": {"n_steps": 2, "gradient": "direct"},
}  # with compile=: tests/compiled/test_compiled_kept.py, test_compiled_loops.py, test_graphs.py

KEEP_THE_GRAPH = {
    name
    for name, options in CASES.items()
    if name != "naive" and Facts.of(find_gradient(options.get("gradient", "aca"))).records is not False
}


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 4).double(), nn.Linear(4, 2).double()

    def forward(self, t, y, a):
        return self.outer(torch.tanh(self.inner(y))) * a


CHANGES = {
    "a weight": lambda f, y0, a: f.inner.weight,
    "the last weight": lambda f, y0, a: f.outer.weight,
    "an argument": lambda f, y0, a: a,
    "y0": lambda f, y0, a: y0,
}


def tampered(options, change):
    torch.manual_seed(0)
    f, a = Field(), torch.ones(2, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True) * 1.0
    loss = solve(f, y0, T, args=(a,), **options).ys[-1].square().sum()
    if change is not None:
        with torch.no_grad():
            CHANGES[change](f, y0, a).mul_(1.5)
    return loss, f


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", CASES)
def test_a_change_in_place(case, change):
    loss, field = tampered(CASES[case], change)
    if change == "y0" and case in KEEP_THE_GRAPH:  # f has seen a copy: nothing needs y0 any more
        right, other = tampered(CASES[case], None)
        mine, want = (
            torch.autograd.grad(x, list(g.parameters())) for x, g in ((loss, field), (right, other))
        )
        assert all(map(torch.equal, mine, want))
        return
    with pytest.raises(RuntimeError, match=SENTENCE):
        loss.backward()


@pytest.mark.parametrize("gradient", ["direct", "naive", aca.ACA(checkpoints="none")], ids=str)
def test_what_the_graph_does_not_need_may_change(gradient):
    """The last bias is in no product: its gradient is right, and no error comes."""
    grads = []
    for changed in (False, True):
        torch.manual_seed(0)
        f, a = Field(), torch.ones(2, dtype=DOUBLE)
        loss = solve(f, torch.ones(3, 2, dtype=DOUBLE), T, args=(a,), gradient=gradient).ys[-1].square().sum()
        with torch.no_grad():
            f.outer.bias.add_(1.0 if changed else 0.0)
        loss.backward()
        grads.append([p.grad for p in f.parameters()])
    for mine, other in zip(*grads, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("gradient", ["direct", "naive"])
def test_the_look_leaves_nothing_behind(gradient):
    f, a = Field(), torch.ones(2, dtype=DOUBLE)
    gc.disable()
    try:
        y0 = torch.ones(3, 2, dtype=DOUBLE) * 1.0
        sol, kept = solve(f, y0, T, args=(a,), gradient=gradient), weakref.ref(y0)
        del y0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pickle.dumps(sol.ys.detach())
            pickle.dumps(sol)
        sol.ys.sum().backward()
        del sol
        assert kept() is None
    finally:
        gc.enable()
