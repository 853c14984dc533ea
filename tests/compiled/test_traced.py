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


class Driven(nn.Module):
    """A module whose f has nested arguments."""

    def __init__(self, method):
        super().__init__()
        self.f, self.method, self.gain = Net(), method, nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x):
        args = ({"gain": self.gain, "shift": (2 * x,)}, 0.5)
        options = {"gradient": aca.ACA(), "n_steps": 2, "args": args}
        return aca.solve(self.driven, x, [1.0, 0.0], method=self.method, **options).ys[-1]

    def driven(self, t, y, inputs, rate):
        return self.f(t, y) * inputs["gain"] - rate * inputs["shift"][0]


@pytest.mark.parametrize("method", [aca.METHODS["rk4"], "dopri5"], ids=["an object", "a name"])
def test_methods_by_object_and_nested_arguments(method):
    model, graphs, x = Driven(method), Graphs(), torch.randn(3, 2, dtype=torch.float64)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(model, x), rtol=1e-12, atol=1e-12)
    assert graphs.count == 1


class Classifier(nn.Module):
    """Layers around a block."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.last = (nn.Linear(2, 2).double() for _ in range(2))
        self.block = aca.NeuralODE(Net(), **options)

    def forward(self, x):
        return self.last(self.block(self.first(x)))


@pytest.mark.parametrize(
    ("options", "n_graphs"),
    [({"method": "rk4", "n_steps": 2}, 1), ({"method": "bosh3", "rtol": 1e-3}, 2)],
    ids=["fixed", "adaptive"],
)
def test_training_steps(options, n_graphs):
    x, losses, graphs = torch.randn(3, 2, dtype=torch.float64), [], Graphs()
    for compiled in ("loops", False):
        torch.manual_seed(1)
        model = Classifier(**options)
        step = torch.compile(model, backend=graphs, fullgraph=n_graphs == 1) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = step(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-12)
    assert losses[2] < losses[0]
    assert graphs.count == n_graphs


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


FIXED = {
    "n_steps": {"n_steps": 3},
    "dt": {"dt": 0.3, "gradient": "direct"},
    "grid": {"grid": [0.0, 0.25, 1.0]},
}


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("case", FIXED)
def test_fixed_steps_are_exported(case):
    x = torch.randn(2, 3)
    model = nn.Sequential(
        nn.Linear(3, 2), aca.NeuralODE(Net(dtype=torch.float32), method="rk4", **FIXED[case])
    )
    exported = torch.export.export(model, (x,), strict=False)
    assert torch.equal(exported.module()(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", [{}, {"n_steps": 3, "gradient": "adjoint"}], ids=str)
def test_an_export_of_other_solves_says_what_is_exported(options, strict):
    kind = torch._dynamo.exc.Unsupported if strict else NotImplementedError
    with pytest.raises(kind, match=r"torch\.export takes solve and NeuralODE with fixed steps"):
        torch.export.export(aca.NeuralODE(Net(), **options), (torch.randn(2, 2),), strict=strict)


def test_a_solution_of_the_graph_says_what_it_is():
    @torch.compile(backend=Graphs())
    def solved(y0):
        return aca.solve(lambda t, y: -y, y0, [0.0, 1.0], method=aca.Rk4(), n_steps=2, gradient="direct")

    text = repr(solved(torch.ones(3)))
    assert text.startswith(
        "Solution(rk4, fixed steps, gradient 'direct'; status 'success'; 2 steps; 8 evaluations; "
    )
