"""What f reads changes between two solves: the second is of f as it is then. No graph is ever stale."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from torchaca import solve
from torchaca.compiled import compiler
from torchaca.native import programs

DOUBLE = torch.float64
ZERO = torch.zeros(2, dtype=DOUBLE)
START = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(3, 2)


def found(f, mode, y0=START):
    y = y0.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = solve(f, y, [0.0, 0.4, 1.0], compile=mode, rtol=1e-4)
    assert sol.stats.executor == (mode or "eager")
    wrt = [y, *(f.parameters() if isinstance(f, nn.Module) else ())]
    grads = torch.autograd.grad(sol.ys.square().sum(), wrt, allow_unused=True)
    return sol.ys, [torch.zeros(()) if g is None else g for g in grads]


def assert_current(f, y0=START, tolerance=1e-12):
    (ys, grads), (want, wanted) = (found(f, mode, y0) for mode in ("native", False))
    torch.testing.assert_close(ys, want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grads, wanted, rtol=10 * tolerance, atol=10 * tolerance)
    return ys


class Model(nn.Module):
    """Reads a number, a list, a dictionary, a string, a flag and its mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).to(DOUBLE)
        self.rate, self.count, self.rates, self.named = 0.5, 2, [1.0, 2.0], {"a": 0.25}
        self.kind, self.flag = "tanh", True

    def forward(self, t, y):
        k = self.net(y)
        k = torch.tanh(k) if self.kind == "tanh" else torch.sin(k)
        k = k * self.rate + self.rates[0] * y - self.rates[1] * self.named["a"]
        for _ in range(self.count):
            k = 0.9 * k
        if self.training:
            k = k - t
        return k if self.flag else -k


def set_to(name, value):
    return lambda f: setattr(f, name, value)


CHANGES = {
    "number": set_to("rate", 0.7),
    "count": set_to("count", 3),
    "list": lambda f: f.rates.__setitem__(1, 5.0),
    "another list": set_to("rates", [0.1, 0.2]),
    "dictionary": lambda f: f.named.__setitem__("a", -1.0),
    "string": set_to("kind", "sin"),
    "flag": set_to("flag", False),
    "mode": lambda f: f.eval(),
    "module": lambda f: setattr(f, "net", nn.Linear(2, 2).to(DOUBLE)),
    "hook of a module": lambda f: f.net[0].register_forward_hook(lambda module, x, y: 2 * y),
    "hook before a module": lambda f: f.net[2].register_forward_pre_hook(lambda module, x: (2 * x[0],)),
    "activation": lambda f: f.net.__setitem__(1, nn.ReLU()),
    "weights": lambda f: f.load_state_dict({k: 2 * v for k, v in f.state_dict().items()}),
    "a weight": lambda f: setattr(f.net[0], "weight", nn.Parameter(3 * f.net[0].weight.detach())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    f = Model()
    before = assert_current(f)
    CHANGES[change](f)
    assert not torch.equal(assert_current(f), before)


def test_another_layout_of_a_weight():
    f = Model()
    assert_current(f)
    f.net[0].weight = nn.Parameter(torch.randn(2, 4, dtype=DOUBLE).t())
    assert not f.net[0].weight.is_contiguous()
    assert_current(f)


def test_frozen_weights_have_no_gradient():
    f = Model()
    assert_current(f)
    f.net[0].requires_grad_(False)
    y = START.clone().requires_grad_()
    ys = solve(f, y, [0.0, 1.0], compile="native").ys
    ys.sum().backward()
    assert f.net[0].weight.grad is None
    assert f.net[2].weight.grad is not None


def test_twelve_changes_in_a_row():
    rate = 0.0

    def f(t, y):
        return -rate * y

    for _ in range(2):
        for i in range(12):
            rate = 0.1 * i
            with torch.no_grad():
                sol = solve(f, START, [0.0, 1.0], compile="native", rtol=1e-8, atol=1e-8)
            assert sol.stats.executor == "native"
            torch.testing.assert_close(sol.ys[-1], START * math.exp(-rate), rtol=1e-6, atol=1e-6)


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate, self.power = 0.5, 3

    def forward(self, t, y):
        return -self.rate * y + torch.sin(t * (self.rate + 2.0)) - y**self.power


def of_a_closure():
    rate = 0.5

    def f(t, y):
        return -rate * y + (1 - rate) * (2 + rate) / 3.0 * t

    def change(x):
        nonlocal rate
        rate = x

    return f, (), change


def of_a_module():
    f = Held()
    return f, (), set_to_value(f)


def set_to_value(f):
    return lambda x: setattr(f, "rate", x)


def of_an_entry():
    held = {"rates": [0.5, 1.0]}
    return (lambda t, y: -held["rates"][0] * y * held["rates"][1]), (), partial(held["rates"].__setitem__, 0)


def of_arguments():
    args = [0.5]
    return (
        (lambda t, y, rate: y.clamp(min=-0.5) * -rate + torch.where(y > rate, y, -y)),
        args,
        partial(args.__setitem__, 0),
    )


HOLDERS = (of_a_closure, of_a_module, of_an_entry, of_arguments)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_number_that_changes_is_compiled_twice(holder, dtype, monkeypatch):
    f, args, change = holder()
    made, tolerance = counted(monkeypatch), {DOUBLE: 1e-12, torch.float32: 1e-5}[dtype]
    counts = []
    for x in (0.5, 0.7, 0.0, -1.0, 1.0, 2.25, 1e-3, 0.5, -0.3):
        change(x)
        found = []
        for mode in ("native", False):
            y = START.to(dtype).requires_grad_()
            ys = solve(f, y, [0.0, 0.4, 1.0], args=tuple(args), compile=mode, n_steps=5).ys
            found.append((ys, *torch.autograd.grad(ys.square().sum(), y)))
        torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
        counts.append(len(made))
    assert 2 <= counts[1] <= 4  # f and its product; PyTorch may know from another test which numbers change
    assert counts[1:] == [counts[1]] * (len(counts) - 1)


def counted(monkeypatch):
    """What was compiled since."""
    made, own = [], programs.compiled
    monkeypatch.setattr(
        programs, "compiled", lambda traced, name, dtype: made.append(name) or own(traced, name, dtype)
    )
    return made


def annealed_choice(rate):
    return lambda t, y: -y if rate > 0.75 else y * rate


def annealed_option(rate):
    return lambda t, y: torch.add(-y, y.sin(), alpha=rate)


def annealed_fill(rate):
    return lambda t, y: -y + torch.full((2,), rate, dtype=y.dtype)


def annealed_function(rate):
    return lambda t, y: -y * math.exp(rate)


def annealed_power(rate):
    return lambda t, y: -y * (1 - rate) ** 2


def annealed_limits(rate):
    return lambda t, y: -y.clamp(min=-0.93 * rate, max=1.5)


def annealed_count(rate):
    n = round(10 * rate)
    return lambda t, y: -y / n + sum(y**i for i in range(n)) / 100


def annealed_dtype(rate):
    return lambda t, y: -y + (torch.arange(2) * rate).to(y.dtype)


@pytest.mark.parametrize("made", [f for name, f in sorted(globals().items()) if name.startswith("annealed_")])
def test_numbers_that_cannot_be_inputs_are_constants(made):
    for rate in (0.5, 0.7, 0.9, 0.8, 0.3):
        assert_current(made(rate))


def test_closures_and_defaults():
    rate, scale = 0.3, [1.0]

    def f(t, y, shift=ZERO):
        return -rate * y * scale[0] + torch.sin(t) + shift

    assert_current(f)
    rate = 0.9
    assert_current(f)
    scale[0] = 2.0
    assert_current(f)
    f.__defaults__ = (torch.ones(2, dtype=DOUBLE),)
    assert_current(f)


def test_dtypes_of_weights():
    weight = [torch.randn(2, 2, dtype=DOUBLE)]

    def f(t, y):
        return (y @ weight[0].to(y.dtype)) * 0.1

    assert_current(f)
    weight[0] = weight[0].float()
    assert_current(f)
    assert_current(f, START.float(), 1e-6)


def test_batch_sizes():
    f = Model()
    for n in (3, 5, 1, 7, 2, 3, 0x21):
        assert_current(f, torch.linspace(-1, 1, 2 * n, dtype=DOUBLE).reshape(n, 2))


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.RNNCell, nn.LSTMCell])
def test_cells_have_one_graph_for_all_batch_sizes(kind, monkeypatch):
    torch.manual_seed(0)
    cell, made, counts = kind(2, 4).to(DOUBLE), counted(monkeypatch), []

    def f(t, y):
        h = (y, y.cos()) if kind is nn.LSTMCell else y
        out = cell(torch.ones_like(y[:, :2]), h)
        return (out[0] + out[1] if kind is nn.LSTMCell else out) - y

    for n in (3, 5, 7, 2):
        assert_current(f, torch.linspace(-1, 1, 4 * n, dtype=DOUBLE).reshape(n, 4))
        counts.append(len(made))
    assert counts[1] in (2, 4)  # PyTorch may know from another cell which sizes change
    assert counts[1:] == [counts[1]] * 3


def test_sizes_that_f_depends_on():
    def f(t, y):
        return -y / len(y) if len(y) > 4 else -y * y.shape[0] + y.mean()

    for n in (2, 3, 6, 7, 5, 4, 1):
        assert_current(f, torch.linspace(-1, 1, 2 * n, dtype=DOUBLE).reshape(n, 2))


def test_batches_of_sequences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).to(DOUBLE)

    def f(t, y):
        return torch.softmax(net(y) @ y.mT, -1) @ y

    for shape in ((2, 5, 4), (3, 5, 4), (4, 6, 4), (1, 2, 4)):
        assert_current(f, torch.randn(shape, dtype=DOUBLE))


def test_f_that_differentiates_inside():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(DOUBLE)

    def hamiltonian(t, y):
        grad = torch.func.vmap(torch.func.grad(lambda x: net(x).sum()))(y)
        return torch.stack([grad[:, 1], -grad[:, 0]], 1)

    def divergence(t, y):
        jac = torch.func.vmap(torch.func.jacrev(lambda x: torch.tanh(x * net(x))))(y)
        return -y * jac.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)

    for f in (hamiltonian, divergence):
        for n in (3, 2, 5):
            assert_current(f, torch.randn(n, 2, dtype=DOUBLE))
        with torch.no_grad():
            ys = [solve(f, START, [0.0, 1.0], compile=mode).ys for mode in ("native", False)]
        torch.testing.assert_close(*ys, rtol=1e-12, atol=1e-12)


class Tagged(torch.Tensor):
    """A subclass, which may hold its numbers anywhere."""


STRANGE = {
    "sparse": lambda w: w.to_sparse(),
    "a subclass": lambda w: w.as_subclass(Tagged),
    "complex": lambda w: torch.complex(w, w),
    "negative view": lambda w: torch.complex(w, -w).conj().imag,
    "expanded": lambda w: w[0].expand(2, 2),
    "empty beside it": lambda w: torch.cat([w, w.new_empty(0, 2)]),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_weights_are_right_or_left_to_others(kind):
    weight = STRANGE[kind](torch.tensor([[0.3, -0.2], [0.1, 0.7]], dtype=DOUBLE))

    def f(t, y):
        return -(weight @ y.T.to(weight.dtype)).T.real.to(y.dtype)

    found = []
    for mode in ("native", False):
        y = START.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ys = solve(f, y, [0.0, 0.5, 1.0], compile=mode).ys
        found.append((ys, *torch.autograd.grad(ys.sum(), y)))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:compile=")
@pytest.mark.parametrize("mode", [False, "native"])
def test_weights_on_meta_are_an_error_as_everywhere(mode):
    net = nn.Linear(2, 2, device="meta", dtype=DOUBLE)
    with pytest.raises((RuntimeError, ValueError, NotImplementedError), match="meta"):
        solve(lambda t, y: net(y), START, [0.0, 1.0], compile=mode)


def test_what_changes_without_end_is_told_of(monkeypatch):
    rate = 0.0

    def f(t, y):
        return torch.add(-rate * y, y, alpha=rate / 2)  # a number

    monkeypatch.setattr(compiler, "SETTINGS", {**compiler.SETTINGS, "recompile_limit": 3})
    monkeypatch.setattr(compiler, "_FREE", {})
    found = []
    for i in range(6):
        rate = 0.1 * i
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            sol = solve(f, START, [0.0, 1.0], compile=True, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(sol.ys[-1], START * math.exp(-rate / 2), rtol=1e-6, atol=1e-6)
        found.append(sol.stats.executor)
    assert found == ["native"] * 4 + ["eager"] * 2  # one graph that it might have been an input of, and three
    assert "hand it over as a tensor" in str(caught[-1].message)
    assert list(sol.stats.passed_over) == [
        "native"
    ]  # the loops, which would take tens of seconds each, are not asked
