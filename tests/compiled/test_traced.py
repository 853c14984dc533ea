"""Solves inside somebody else's `torch.compile`: part of its graph with fixed steps, else one graph break."""

import pytest
import torch
from compiled_helpers import Net
from torch import nn

import torchaca as aca

SPAN = torch.tensor([0.0, 1.0])


class Model(nn.Module):
    """A solve between two layers."""

    def __init__(self, solve):
        super().__init__()
        self.f, self.solve = Net(), solve

    def forward(self, x):
        return self.solve(self.f, 2 * x).sin()


class Graphs:
    """A compiler that counts the graphs it gets, and runs them as they are."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph


def run(model, x):
    y = model(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), tuple(model.parameters()))


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rk4", "n_steps": 3},
        {"method": "dopri5", "dt": 0.4},
        {"method": "heun_euler", "grid": [0.0, 0.1, 1.0], "gradient": "direct"},
    ],
    ids=lambda options: options["method"],
)
def test_fixed_steps_are_part_of_the_graph(options):
    model = Model(lambda f, x: aca.solve(f, x, [0.0, 0.35, 1.0], **options).ys)
    graphs, x = Graphs(), torch.randn(3, 2, dtype=torch.float64)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(model, x), rtol=1e-12, atol=1e-12)
    run(compiled, x + 1)
    assert graphs.count == 1


def test_a_block_with_fixed_steps_is_part_of_the_graph():
    block = aca.NeuralODE(Net(), method="midpoint", n_steps=2)
    graphs, x = Graphs(), torch.randn(3, 2, dtype=torch.float64)
    compiled = torch.compile(block, backend=graphs, fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(block, x), rtol=1e-12, atol=1e-12)
    assert graphs.count == 1
    assert block.stats.nfe == 4


@pytest.mark.parametrize(
    "solve",
    [
        lambda f, x: aca.solve(f, x, [0.0, 1.0]).ys,
        lambda f, x: aca.odeint(f, x, SPAN),
        lambda f, x: aca.solve(f, x, SPAN, method="rk4", n_steps=2).ys,
    ],
    ids=["adaptive", "odeint", "tensor times"],
)
def test_other_solves_are_one_graph_break(solve):
    model = Model(solve)
    graphs, x = Graphs(), torch.randn(3, 2, dtype=torch.float64)
    compiled = torch.compile(model, backend=graphs)
    torch.testing.assert_close(run(compiled, x), run(model, x), rtol=1e-12, atol=1e-12)
    assert graphs.count == 2  # what comes before the solve, and after it
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compiled loops of its own"):
        torch.compile(model, backend=graphs, fullgraph=True)(x)


def test_bad_times_are_the_errors_that_they_are_outside():
    model = Model(lambda f, x: aca.solve(f, x, [0.0, 0.5, 0.2, 1.0], method="rk4", n_steps=2).ys)
    with pytest.raises(ValueError, match="sort it"):
        torch.compile(model, backend="eager")(torch.randn(3, 2, dtype=torch.float64))
