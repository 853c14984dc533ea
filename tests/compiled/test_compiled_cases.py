"""States, modules and contexts that users have, compiled against the eager loop, run by Python (see `interpreted`)."""

import gc
import weakref

import pytest
import torch
from compiled_helpers import Conv, Net, assert_equal, both, loss_of
from covering import covering
from torch import nn

import torchaca
from torchaca import ACA, SolverError, solve

pytestmark = pytest.mark.usefixtures("interpreted")

DOUBLE = torch.float64
GRADIENTS = pytest.mark.parametrize("gradient", [ACA(), ACA(checkpoints="none")], ids=["replay", "kept"])
SCALE = torch.tensor([0.5, -0.3], dtype=DOUBLE, requires_grad=True)  # a global that f captures


def assert_same(f, y0, wrt=(), t=(0.0, 0.4, 1.0), tolerance=1e-12, **options):
    assert_equal(*both(f, y0, list(t), wrt, **{"method": "bosh3", "rtol": 1e-4, **options}), tolerance)


STATES = {
    "a number": torch.tensor(1.3, dtype=DOUBLE),
    "one entry": torch.tensor([1.3], dtype=DOUBLE),
    "transposed": torch.randn(2, 5, dtype=DOUBLE).T,
    "channels last": torch.randn(2, 3, 4, 4, dtype=DOUBLE).to(memory_format=torch.channels_last),
    "expanded": torch.randn(1, 3, dtype=DOUBLE).expand(4, 3),
    "a slice": torch.randn(6, 4, dtype=DOUBLE)[::2, 1:],
}


@pytest.mark.parametrize("state", STATES)
def test_states_of_any_shape_and_layout(state):
    k = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    assert_same(lambda t, y: torch.sin(y * k) - t, STATES[state], (k,))


@GRADIENTS
def test_empty_states(gradient):
    y0 = torch.zeros((0, 2), dtype=DOUBLE, requires_grad=True)
    k = torch.ones((), dtype=DOUBLE, requires_grad=True)
    for compiled in (False, "loops"):
        sol = solve(lambda t, y: -k * y, y0, [0.0, 0.5, 1.0], gradient=gradient, compile=compiled)
        assert sol.ys.shape == (3, 0, 2)
        grad_y, grad_k = torch.autograd.grad(sol.ys.sum(), (y0, k))
        assert grad_y.shape == (0, 2)
        assert grad_k == 0


@GRADIENTS
def test_convolutions_with_buffers_and_parametrizations(gradient):
    f = Conv().double().eval()
    assert_same(f, STATES["channels last"], tuple(f.parameters()), gradient=gradient)


def test_two_modules_of_one_class_keep_their_weights():
    first, second = Net(), Net(hidden=5)
    third = Net()
    third.scale = -0.5  # a plain number
    for f in (first, second, third, first):
        assert_same(f, torch.randn(3, 2, dtype=DOUBLE), tuple(f.parameters()))


class Tied(nn.Module):
    """One matrix twice; a frozen one; a tensor that is no parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=DOUBLE))
        self.again = self.weight
        self.frozen = nn.Parameter(torch.randn(2, 2, dtype=DOUBLE), requires_grad=False)
        self.plain = torch.randn(2, dtype=DOUBLE)

    def forward(self, t, y):
        return torch.tanh(y @ self.weight) @ self.again.T @ self.frozen + self.plain * SCALE * t


@GRADIENTS
def test_shared_frozen_and_global_tensors(gradient):
    f = Tied()
    assert_same(f, torch.randn(3, 2, dtype=DOUBLE), (f.weight, SCALE), gradient=gradient)
    assert f.frozen.grad is None


def test_closures_and_bound_methods():
    weight = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)

    class Owner:
        def slope(self, t, y, rate, rest):
            return torch.tanh(y @ weight) * rate + rest["shift"][0] * t

    rate, shift = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (0.7, 0.2))
    args = (rate, {"shift": [shift, 3]})
    assert_same(Owner().slope, torch.randn(3, 2, dtype=DOUBLE), (weight, rate, shift), args=args)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    f, y0 = Net(), torch.randn(3, 2, dtype=DOUBLE)
    for gradient in ("aca", "direct"):
        with context():
            eager, compiled = (
                solve(f, y0, [0.0, 0.5, 1.0], gradient=gradient, compile=flag) for flag in (False, "loops")
            )
        assert not compiled.ys.requires_grad
        assert compiled.stats == eager.stats
        torch.testing.assert_close(compiled.ys, eager.ys, rtol=1e-12, atol=1e-12)


@GRADIENTS
def test_an_optimizer_step(gradient):
    """Parameters get their .grad, hooks run once, and the next solve sees the new values."""
    losses = []
    for compiled in (False, "loops"):
        torch.manual_seed(3)
        f, seen = Net(), []
        next(f.parameters()).register_hook(lambda g, seen=seen: seen.append(g))
        optimizer = torch.optim.SGD(f.parameters(), 0.05)
        y0 = torch.ones(3, 2, dtype=DOUBLE)
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(solve(f, y0, [0.0, 1.0], gradient=gradient, compile=compiled).ys)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert len(seen) == 3
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-11)


@pytest.mark.parametrize(
    ("f", "options"),
    [
        (lambda t, y: SCALE * y, {"max_steps": 6, "rtol": 1e-10, "dt0": 0.01}),
        (lambda t, y: y * y * SCALE.exp(), {}),
        (lambda t, y: torch.log(0.4 - t) * y, {}),
    ],
    ids=["max-steps", "blow-up", "nan"],
)
def test_failures_are_those_of_the_eager_loop(f, options):
    y0 = torch.full((3, 2), 1.5, dtype=DOUBLE)
    t = [0.0, 0.02, 0.1, 2.0]
    raised = []
    for compiled in (False, "loops"):
        with pytest.raises(SolverError) as error:
            solve(f, y0, t, compile=compiled, **options)
        raised.append(error.value)
    eager, compiled = raised
    assert compiled.kind == eager.kind
    if (
        eager.kind != "f"
    ):  # the last steps before the edge are as small as the rounding of t: a few more or less
        assert compiled.partial.stats == eager.partial.stats
    torch.testing.assert_close(compiled.partial.ys, eager.partial.ys, rtol=1e-11, atol=0)
    filled = [solve(f, y0, t, compile=c, on_failure="nan", **options).ys for c in (False, "loops")]
    torch.testing.assert_close(*filled, rtol=1e-11, atol=0, equal_nan=True)


@GRADIENTS
def test_nothing_holds_the_solve_when_its_outputs_are_gone(gradient):
    f, y0 = Net(), torch.randn(3, 2, dtype=DOUBLE)
    ys = torchaca.solve(f, y0, [0.0, 1.0], gradient=gradient, compile="loops").ys
    alive = weakref.ref(ys.grad_fn)
    del ys
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("moving", "method", "t"),
    covering(
        [False, True],
        ["dopri5", "heun_euler", "fehlberg5", "dopri8"],
        [(0.0, 2.0), (0.0, 0.3, 0.95, 1.0, 1.7, 2.0), (2.0, 1.2, 0.97, 0.5, 0.0)],
        strength=2,
    ),
    ids=str,
)
def test_jumps(method, t, moving):
    """f jumps at 0, 0.5 and 1: evaluated at them, it would be that of the wrong side."""
    f = Net()
    gain = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)

    def jumping(t, y):
        return f(t, y) + gain * torch.where(t <= 0.5, 1.0, torch.where(t < 1.0, -2.0, 3.0)) * torch.where(
            t <= 0, 9.0, t
        )

    times = torch.tensor(t, dtype=DOUBLE, requires_grad=True) if moving else list(t)
    wrt = (gain, *f.parameters(), *([times] if moving else []))
    options = {"method": method, "rtol": 1e-3, "jump_ts": [0.0, 0.5, 1.0]}
    eager, compiled = both(jumping, torch.randn(3, 2, dtype=DOUBLE), times, wrt, **options)
    if moving:
        compiled[0].stats.nfe = eager[0].stats.nfe  # outputs that land on steps' ends, see docs/compile.md
    assert_equal(eager, compiled, 1e-10)
