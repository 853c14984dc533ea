"""Compiled solves that keep the graph of their steps, against the eager loop, run by Python (see `interpreted`)."""

import pytest
import torch
from compiled_helpers import Net, assert_equal, both
from covering import pairs
from torch import nn

import torchaca
from torchaca import ACA, Direct
from torchaca.compiled import kept, run

pytestmark = pytest.mark.usefixtures("interpreted")

KEPT = {"gradient": ACA(checkpoints="none")}
TIMES = {
    "two": [0.0, 2.0],
    "backwards": [2.0, 0.0],
    "inside": [0.0, 0.3, 0.31, 1.0, 1.7, 2.0],
    "inside, backwards": [2.0, 1.99, 0.5, 0.0],
    "repeated": [0.0, 0.0, 0.4, 0.4, 2.0, 2.0],
}


def assert_kept(f, y0, t, wrt, tolerance=1e-12, **options):
    eager, compiled = both(f, y0, t, wrt, **{**KEPT, **options})
    assert compiled[0].stats.nfe_backward == 0
    assert_equal(eager, compiled, tolerance)


@pytest.mark.parametrize(("method", "times"), pairs(["bosh3", "dopri5", "tsit5"], TIMES))
def test_gradients_are_those_of_the_eager_loop(method, times):
    f = Net()
    y0 = torch.randn(3, 2, dtype=torch.float64)
    assert_kept(f, y0, TIMES[times], tuple(f.parameters()), method=method, rtol=1e-4)


def test_direct_is_the_same():
    f, y0 = Net(), torch.randn(3, 2, dtype=torch.float64)
    assert_kept(f, y0, TIMES["inside"], tuple(f.parameters()), gradient=Direct())


def test_small_chunks_and_rejected_trials(monkeypatch):
    monkeypatch.setattr(run, "KEPT_BYTES", 1)  # one step a chunk
    k = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64)
    options = {"rtol": 1e-3, "dt0": 0.5}
    eager, compiled = both(
        lambda t, y: -k * torch.cos(k * t) * y, y0, TIMES["inside"], (k,), **KEPT, **options
    )
    assert compiled[0].stats.rejected >= 1
    assert_equal(eager, compiled)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.back = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))

    def forward(self, t, y):
        return self.back(nn.functional.gelu(self.norm(self.conv(y)))) * torch.exp(-t)


def test_convolutions_and_parametrizations():
    f = Conv().double()
    assert_kept(f, torch.randn(2, 4, 5, 5, dtype=torch.float64), [0.0, 0.4, 1.0], tuple(f.parameters()))


def test_everything_that_f_may_read():
    captured = torch.randn(2, dtype=torch.float64, requires_grad=True)
    made = captured.exp()  # a tensor with a history, captured beside what it was made from
    frozen = torch.randn(2, dtype=torch.float64)
    scale, unused = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y0 = torch.randn(3, 2, dtype=torch.float64)

    def f(t, y, inputs, shift):
        z = -made * y * inputs["scale"]
        return z.relu_() + captured * frozen * t - shift * y0

    options = {"args": ({"scale": scale, "unused": unused}, 0.3)}
    assert_kept(f, y0, TIMES["inside"], (captured, scale, unused), **options)


def test_nested_states():
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = {"x": torch.ones(2), "v": (torch.randn(3, 2, dtype=torch.float64),)}

    def f(t, y):
        return {"x": -k.float() * y["x"], "v": (y["v"][0] * torch.sin(t) - k,)}

    assert_kept(f, y0, TIMES["inside"], (k,), 1e-6)


def test_under_autocast_backward_outside_of_it():
    f = Net(dtype=torch.float32)
    y0 = torch.randn(3, 2, requires_grad=True)
    found = []
    for compiled in ("loops", False):
        with torch.autocast("cpu", torch.bfloat16):
            ys = torchaca.solve(f, y0, [0.0, 1.0], dt0=0.5, dt_min=0.5, rtol=1e9, compile=compiled, **KEPT).ys
        found.append((ys, torch.autograd.grad(ys.square().sum(), (y0, *f.parameters()))))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


def test_failures_keep_the_prefix():
    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.full((2,), 1.5, dtype=torch.float64)
    t = [0.0, 0.1, 0.2, 2.0]
    eager, compiled = both(lambda t, y: k * y * y, y0, t, (k,), on_failure="status", **KEPT)
    assert compiled[0].status == eager[0].status == "blow-up"
    assert_equal(eager, compiled)


def test_the_graph_can_be_walked_twice_and_weights_may_not_change():
    f, y0 = Net(), torch.randn(3, 2, dtype=torch.float64)
    weights = tuple(f.parameters())
    ys = torchaca.solve(f, y0, TIMES["inside"], compile="loops", **KEPT).ys
    first, second = (torch.autograd.grad(ys.sum(), weights, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        weights[0].add_(1.0)
    with pytest.raises(
        RuntimeError, match=r"changed in place.*call backward\(\) first.*modified by an inplace"
    ):
        torch.autograd.grad(ys.sum(), weights)


def test_no_graph_where_nothing_needs_a_gradient():
    f, y0 = Net().requires_grad_(False), torch.randn(3, 2, dtype=torch.float64)
    ys = torchaca.solve(f, y0, TIMES["inside"], compile="loops", **KEPT).ys
    assert not ys.requires_grad
    torch.testing.assert_close(ys, torchaca.solve(f, y0, TIMES["inside"]).ys, rtol=1e-12, atol=1e-12)


def calls(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def test_backward_evaluates_nothing_again():
    """The residuals are what autograd saves; neither f's operations nor the step's numbers are among them."""
    weight = torch.randn(5, 4, dtype=torch.float64)
    y0 = torch.randn(3, 4, dtype=torch.float64)
    method = torchaca.METHODS["dopri5"]

    def f(t, y, inputs):
        return torch.tanh(y @ inputs[0].T) @ inputs[0] * torch.cos(t)

    p = torchaca.core.Problem(f, y0, torchaca.core.Times((0.0, 1.0)), method, None)
    split = kept.split_stages(f, method, p, (weight,), (True,))
    shapes = sorted(tuple(x.shape) for x in split.like)
    assert shapes == [(3, 4)] * 6 + [(3, 5)] * 6  # of each evaluation the state and tanh
    first, second = (half.__closure__ for half in (split.forward, split.backward))
    graphs = [c.cell_contents for c in (*first, *second) if isinstance(c.cell_contents, torch.fx.GraphModule)]
    assert torch.ops.aten.tanh.default in calls(graphs[0])
    assert torch.ops.aten.tanh.default not in calls(graphs[1])
