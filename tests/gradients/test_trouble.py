"""What f or the caller must not do between the forward and the backward pass, and the words for it."""

import pytest
import torch
from gradient_cases import DOUBLE
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchaca as aca
from torchaca import GRADIENTS, solve

T = [0.0, 0.25, 0.5]
CASES = {name: {"gradient": name, "method": "alf" if name == "mali" else "dopri5"} for name in GRADIENTS} | {
    "all": {"gradient": aca.ACA(checkpoints="all")},
    "kept": {"gradient": aca.ACA(checkpoints="none")},
    "stagewise": {"gradient": aca.ACA(stagewise=True)},
    "interpolated": {"gradient": aca.Adjoint(state="interpolated", quadrature="gauss")},
    "debug": {"debug": True},
}
IN_THE_CALLERS_GRAPH = {"aca", "direct", "naive", "kept"}


class Field(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.reentrant = reentrant

    def forward(self, t, y):
        return (
            self.net(y) if self.reentrant is None else checkpoint(self.net, y, use_reentrant=self.reentrant)
        )


def loss_of(f, options):
    y0 = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    return solve(f, y0, T, **options).ys[-1].square().sum()


def gradients(f, options):
    loss_of(f, options).backward()
    return [p.grad for p in f.parameters()]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("case", CASES)
def test_checkpoints_inside_f(case):
    right = gradients(Field(), CASES[case])
    for mine, other in zip(gradients(Field(reentrant=False), CASES[case]), right, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)
    if case in IN_THE_CALLERS_GRAPH:
        for mine, other in zip(gradients(Field(reentrant=True), CASES[case]), right, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)
        return
    with pytest.raises(
        RuntimeError, match=r"f uses torch.utils.checkpoint .*use_reentrant=False\), or use gradient"
    ):
        gradients(Field(reentrant=True), CASES[case])


@pytest.mark.parametrize("case", sorted(CASES.keys() - IN_THE_CALLERS_GRAPH))
def test_a_parameter_that_is_frozen_before_backward(case):
    f = Field()
    loss = loss_of(f, CASES[case])
    f.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"requires no gradient any more: .* frozen before backward\(\)"):
        loss.backward()
