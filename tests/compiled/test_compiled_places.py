"""Compiled solves under another default device, and of states that are not contiguous; run by Python."""

import pytest
import torch
from compiled_helpers import Net

from torchaca import solve

interpreted = pytest.mark.usefixtures("interpreted")
TIMES = [0.0, 0.3, 0.31, 1.0]
HOW = [
    ("loops", {"compile": "loops"}),
    ("fixed", {"compile": "loops", "n_steps": 3}),
    ("jumps", {"compile": "loops", "jump_ts": [0.5]}),
    ("steps", {"compile": "steps"}),
]


def train(f, y0, times=TIMES, **options):
    y0 = y0.clone().requires_grad_()
    steps = {} if "n_steps" in options else {"rtol": 1e-4}
    solution = solve(f, y0 * 1, times, **steps, **options)
    return solution.ys, torch.autograd.grad(solution.ys.square().sum(), (y0, *f.parameters()))


@interpreted
@pytest.mark.parametrize(("how", "options"), HOW, ids=[how for how, _ in HOW])
def test_under_another_default_device(how, options):
    f, y0 = Net(), torch.randn(3, 2, dtype=torch.float64)

    def trained():
        times = torch.tensor(TIMES, dtype=torch.float64, device="cpu", requires_grad=True)
        ys, grads = train(f, y0, times, **options)
        return ys, grads

    expected = trained()
    torch.set_default_device("meta")
    try:
        ys, grads = trained()
    finally:
        torch.set_default_device(None)
    assert torch.equal(ys, expected[0])
    assert all(map(torch.equal, grads, expected[1]))


@interpreted
@pytest.mark.parametrize(("how", "options"), HOW, ids=[how for how, _ in HOW])
def test_outputs_and_gradients_lie_in_memory_as_y0_does(how, options):
    f, y0 = Net(), torch.randn(2, 3, dtype=torch.float64).T
    z0 = y0.clone().requires_grad_() * 1
    ys = solve(f, z0, TIMES, **options).ys
    (grad,) = torch.autograd.grad(ys.square().sum(), z0)
    assert {y.stride() for y in (*ys, grad)} == {y0.stride()}


def test_unrolled_into_a_graph():
    y0 = torch.randn(2, 3).T

    @torch.compile(backend="eager", fullgraph=True)
    def end(y0):
        return solve(lambda t, y: torch.sin(y) * t, y0, TIMES, n_steps=2).ys

    found, right = end(y0), solve(lambda t, y: torch.sin(y) * t, y0, TIMES, n_steps=2).ys
    assert torch.equal(found, right)
    assert {y.stride() for y in found} == {y0.stride()}
