"""`NeuralODE`: a module like any other, with an ODE inside."""

import copy
import io
import pickle

import pytest
import torch
from gradient_cases import ALL, DOUBLE, assert_same, gradients_of
from torch import nn

import torchaca
from torchaca import ACA, METHODS, NeuralODE, Stats, solve


class Field(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, 8), nn.Linear(8, n)

    def forward(self, t, y):
        return self.outer(torch.tanh(self.inner(y))) * torch.cos(t)


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def forward(self, t, y):
        return {"a": -self.rate * y["a"], "b": (y["a"].sum(-1, keepdim=True), -y["b"][1])}


def swapped(t, y):
    return -y * t


def test_the_last_state_or_all():
    f, x = Field(), torch.randn(5, 3)
    block = NeuralODE(f, rtol=1e-5)
    want = solve(f, x, [0.0, 1.0], rtol=1e-5).ys
    assert block(x).shape == (5, 3)
    assert torch.equal(block(x), want[-1])
    times = torch.linspace(0.0, 1.0, 4)
    assert torch.equal(block(x, times), solve(f, x, times, rtol=1e-5).ys)
    assert torch.equal(block(x, [0.0, 0.3]), solve(f, x, [0.0, 0.3], rtol=1e-5).ys[-1])
    assert NeuralODE(f, t=times)(x).shape == (4, 5, 3)
    assert torch.equal(NeuralODE(f, t=(1.0, 0.0))(x), solve(f, x, [1.0, 0.0]).ys[-1])
    assert torch.equal(block(x, [0.5]), x)


def test_nested_states():
    f, y0 = Coupled(), {"a": torch.ones(2, 3), "b": (torch.zeros(2, 1), torch.ones(2, 4))}
    out = NeuralODE(f, rtol=1e-6)(y0)
    assert out["a"].shape == (2, 3)
    assert [x.shape for x in out["b"]] == [(2, 1), (2, 4)]
    torch.testing.assert_close(out["a"], torch.full((2, 3), 0.6065307), rtol=1e-5, atol=0)
    all_times = NeuralODE(f, t=[0.0, 0.5, 1.0])(y0)
    assert all_times["b"][1].shape == (3, 2, 4)


def test_arguments():
    block = NeuralODE(lambda t, y, a, b: -a * y + b["c"], method="rk4", n_steps=4)
    x, a, c = (torch.randn(3, requires_grad=True) for _ in range(3))
    out = block(x, args=(a, {"c": c}))
    want = solve(block.f, x, [0.0, 1.0], args=(a, {"c": c}), method="rk4", n_steps=4).ys[-1]
    assert torch.equal(out, want)
    assert all(g.abs().min() > 0 for g in torch.autograd.grad(out.sum(), (x, a, c)))
    with pytest.raises(TypeError):
        block(x)
    fixed = NeuralODE(lambda t, y, a: -a * y, args=(a,))
    assert torch.equal(fixed(x), solve(fixed.f, x, [0.0, 1.0], args=(a,)).ys[-1])
    assert torch.equal(fixed(x, args=(c,)), solve(fixed.f, x, [0.0, 1.0], args=(c,)).ys[-1])


@pytest.mark.parametrize("gradient", ALL)
def test_gradients_reach_input_and_parameters(gradient):
    f = Field().double()
    options = {"rtol": 1e-9, "atol": 1e-9}
    x = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    inputs = {"x": x, **dict(f.named_parameters())}
    block = NeuralODE(f, gradient=gradient, **options)
    want = gradients_of(solve(f, x, [0.0, 1.0], gradient="direct", **options).ys[-1], inputs)
    assert_same(gradients_of(block(x), inputs), want, 1e-5)
    block.zero_grad()
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize("gradient", ALL)
def test_training_reduces_the_loss(gradient):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(2, 3), NeuralODE(Field(), method="heun2", n_steps=3, gradient=gradient), nn.Linear(3, 1)
    )
    x = torch.randn(64, 2)
    target = (x[:, :1] * x[:, 1:]).sin()
    optimizer = torch.optim.Adam(model.parameters(), 5e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_blocks_in_a_row_and_shared():
    torch.manual_seed(0)
    one, two = (NeuralODE(Field(), n_steps=3, method="rk4").double() for _ in range(2))
    x = torch.randn(2, 3, dtype=DOUBLE)
    for model in (nn.Sequential(one, two), nn.Sequential(one, one)):
        inputs = dict(model.named_parameters())
        got = gradients_of(model(x), inputs)
        for block in model:
            block.options["gradient"] = "direct"
        want = gradients_of(model(x), inputs)
        for block in model:
            block.options.pop("gradient", None)
        assert_same(got, want, 1e-11)


def test_stats_are_those_of_the_last_pass():
    block = NeuralODE(Field(), method="dopri5", n_steps=4, gradient=ACA(checkpoints="all"))
    assert block.stats == Stats()
    out = block(torch.randn(5, 3))
    assert (block.stats.accepted, block.stats.nfe) == (4, 24)
    assert block.stats.nfe_backward == 0
    out.sum().backward()
    assert block.stats.nfe_backward == 24
    block(torch.randn(5, 3))
    assert block.stats.nfe_backward == 0


def test_unknown_options_are_errors_with_a_suggestion():
    with pytest.raises(TypeError, match=r"'rtoll'.*Did you mean 'rtol'"):
        NeuralODE(Field(), rtoll=1e-3)
    with pytest.raises(ValueError, match=r"Did you mean '[dD]opri5'"):
        NeuralODE(Field(), method="dopri55")(torch.ones(1, 3))
    with pytest.raises(ValueError, match="needs its steps"):
        NeuralODE(Field(), method="rk4")(torch.ones(1, 3))


def test_a_failed_solve_is_not_passed_off_as_a_result():
    with pytest.raises(ValueError, match="on_failure='nan'"):
        NeuralODE(lambda t, y: y * y, t=(0.0, 2.0), on_failure="status")


def test_failures_raise_or_fill_with_nan():
    with pytest.raises(torchaca.SolverError):
        NeuralODE(lambda t, y: y * y, t=(0.0, 2.0))(torch.ones(1))
    out = NeuralODE(lambda t, y: y * y, t=(0.0, 2.0), on_failure="nan")(torch.ones(1))
    assert out.isnan().all()


def blocks():
    return {
        "names": NeuralODE(Field(), t=(0.0, 0.5), method="dopri8", rtol=1e-4, gradient="adjoint"),
        "objects": NeuralODE(
            Field(), t=torch.tensor([0.0, 0.2, 0.5]), method=METHODS["bosh3"],
            gradient=torchaca.Adjoint(rtol=1e-4, norm="semi"),
        ),
        "control": NeuralODE(Field(), control=torchaca.Adaptive(rtol=1e-2, pid=torchaca.PI_CONTROL)),
        "fixed": NeuralODE(Field(), method="rk4", grid=[0.0, 0.4, 1.0]),
        "function": NeuralODE(swapped, method="rk4", n_steps=2),
    }  # fmt: skip


def by_torch(block):
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda block: pickle.loads(pickle.dumps(block)),
    "save": by_torch,
}


@pytest.mark.parametrize("kind", blocks())
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_copies_are_equal_and_independent(make, kind, used):
    block, x = blocks()[kind], torch.randn(2, 3)
    if used:
        block(x.requires_grad_()).sum().backward()
    other = make(block)
    want = block(x)
    assert torch.equal(other(x), want)
    assert (other.options.keys(), repr(other)) == (block.options.keys(), repr(block))
    for mine, theirs in zip(other.parameters(), block.parameters(), strict=True):
        assert mine is not theirs
        with torch.no_grad():
            mine.add_(1.0)
    assert torch.equal(block(x), want)
    if kind != "function":
        assert not torch.equal(other(x), want)
    other(x.requires_grad_()).sum().backward()


def test_state_dict_round_trip():
    one, two, x = NeuralODE(Field()), NeuralODE(Field()), torch.randn(2, 3)
    assert not torch.equal(one(x), two(x))
    assert set(one.state_dict()) == {f"f.{name}" for name in one.f.state_dict()}
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))


def test_it_is_a_module():
    block = NeuralODE(Field())
    assert [name for name, _ in block.named_parameters()] == [
        f"f.{name}" for name, _ in block.f.named_parameters()
    ]
    assert block.double()(torch.ones(1, 3, dtype=DOUBLE)).dtype == DOUBLE
    seen = []
    block.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    block(torch.ones(1, 3, dtype=DOUBLE))
    assert seen == [(1, 3)]
    assert not block.eval().f.training
    block.requires_grad_(False)
    assert not block(torch.ones(1, 3, dtype=DOUBLE)).requires_grad
    text = repr(NeuralODE(Field(), t=(0.0, 2.0), method="rk4", n_steps=3))
    assert "t=(0.0, 2.0), method='rk4', n_steps=3" in text
    assert "Linear" in text


def test_times_can_be_learnt():
    block = NeuralODE(lambda t, y: -y * y, t=nn.Parameter(torch.tensor([0.0, 1.0], dtype=DOUBLE)), rtol=1e-8)
    assert [name for name, _ in block.named_parameters()] == ["t"]
    out = block(torch.ones(1, dtype=DOUBLE))
    out.sum().backward()
    torch.testing.assert_close(block.t.grad, torch.tensor([0.25, -0.25], dtype=DOUBLE), rtol=1e-5, atol=0)


def test_without_grad_and_in_inference_mode():
    block, x = NeuralODE(Field()), torch.randn(2, 3)
    want = block(x)
    assert want.requires_grad
    with torch.no_grad():
        assert not block(x).requires_grad
        assert torch.equal(block(x), want)
    with torch.inference_mode():
        assert torch.equal(block(x), want)


def test_under_autocast():
    block, x = NeuralODE(Field(), method="rk4", n_steps=2), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    assert out.dtype == torch.float32
    out.sum().backward()
    torch.testing.assert_close(out, block(x), rtol=0, atol=5e-2)


def test_gradient_checkpointing_around_it():
    block, x = (
        NeuralODE(Field(), n_steps=3, method="rk4").double(),
        torch.randn(2, 3, dtype=DOUBLE, requires_grad=True),
    )
    inputs = {"x": x, **dict(block.named_parameters())}
    want = gradients_of(block(x), inputs)
    got = gradients_of(torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False), inputs)
    assert_same(got, want, 0.0)
