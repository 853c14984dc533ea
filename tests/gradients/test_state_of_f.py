"""f that keeps state: what it leaves behind is the same under every gradient, and so are the gradients."""

import copy

import pytest
import torch
from covering import pairs
from gradient_cases import DOUBLE, assert_same, gradients_of
from settings import EVERY, options_for
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from torchaca import METHODS, solve

SIZE = 4


class Net(nn.Module):
    """A small field; subclasses keep state of some kind. `function`: it is a function of (t, y) all the same."""

    function = False
    random = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(SIZE, 8), nn.Linear(8, SIZE)

    def forward(self, t, y):
        return self.b(torch.tanh(self.a(y))) + torch.sin(3 * t)


class DropsOut(Net):
    random = True

    def forward(self, t, y):
        return self.b(nn.functional.dropout(torch.tanh(self.a(y)), 0.3))


class ReadsWhatItMoves(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.6))

    def forward(self, t, y):
        scale = self.scale.clone()
        with torch.no_grad():
            self.scale.mul_(0.9).add_(0.05)
        return scale * super().forward(t, y)


class SpectralNorms(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = spectral_norm(self.a), spectral_norm(self.b)


class BatchNorms(Net):
    function = True

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, t, y):
        return self.b(torch.tanh(self.norm(self.a(y))))


class Counts(Net):
    function = True

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, t, y):
        self.calls += 1
        return super().forward(t, y)


class GathersStatistics(Net):
    function = True

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIZE))

    def forward(self, t, y):
        with torch.no_grad():
            self.mean.lerp_(y.mean(0), 0.1)
        return super().forward(t, y)


class DrawsOnce(Net):
    """The noise of Hutchinson's estimate of a trace, drawn by the first call of a solve."""

    function = True

    def __init__(self):
        super().__init__()
        self.noise = None

    def forward(self, t, y):
        if self.noise is None:
            self.noise = torch.randn_like(y)
        return super().forward(t, y) * self.noise.tanh()


class InitialisesItself(Net):
    function = True

    def __init__(self):
        super().__init__()
        self.a = nn.LazyLinear(8)


class StartsFromData(Net):
    """As activation normalisation: the first call sets buffers, later ones read them."""

    function = True

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(SIZE))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, t, y):
        if not self.ready:
            self.shift.copy_(y.detach().mean(0))
            self.ready.fill_(True)
        return super().forward(t, y - self.shift)


KINDS = {cls.__name__: cls for cls in Net.__subclasses__()}
REFUSED = "draws random numbers|reads buffers|changes what it reads"
STEPS = {"fixed": {"n_steps": 3}, "adaptive": {"rtol": 3e-2, "dt0": 1.0}}


def solved(kind, gradient, **options):
    """A solve's outputs, gradients, and what f and the generators are like before and after the backward pass."""
    f = KINDS[kind]().to(DOUBLE)
    torch.manual_seed(1)
    y0 = torch.randn(3, SIZE, dtype=DOUBLE).requires_grad_()
    sol = solve(f, y0, [0.0, 0.37, 1.0], **options_for(gradient, **options))
    after = [*map(torch.clone, f.buffers()), torch.get_rng_state()]
    grads = gradients_of(sol.ys, {"y0": y0, **dict(f.named_parameters())})
    return sol, after, [*f.buffers(), torch.get_rng_state()], grads


def rival_of(kind, gradient, **options):
    method = {"method": "alf"} if gradient.name == "mali" else {}
    return solved(kind, EVERY["direct"], **{**options, **method})


def refuses(kind, gradient):
    """Whether a gradient says that it cannot replay such an f."""
    if gradient.name == "aca" and gradient.grad_rtol is not None:
        return not KINDS[kind].function
    return (gradient.name == "adjoint" and KINDS[kind].random) or (
        gradient.name == "mali" and not KINDS[kind].function
    )


@pytest.mark.filterwarnings("ignore:f draws random numbers")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "kind"), pairs(EVERY, KINDS))
def test_every_gradient_sees_the_same_f(name, kind, steps):
    gradient = EVERY[name]
    if refuses(kind, gradient):
        with pytest.raises(ValueError, match=REFUSED):
            solved(kind, gradient, **STEPS[steps])
        return
    sol, after, at_end, grads = solved(kind, gradient, **STEPS[steps])
    if name == "aca-grad-rtol":  # other steps
        return
    want, want_after, _, want_grads = rival_of(kind, gradient, **STEPS[steps])
    assert (sol.stats.nfe, sol.steps) == (want.stats.nfe, want.steps)
    assert torch.equal(sol.ys, want.ys)
    assert all(map(torch.equal, after, want_after))
    if kind != "Counts":  # a counter counts the evaluations of backward passes as well
        assert all(map(torch.equal, at_end, after))
    if gradient.name in ("adjoint", "naive"):  # other numbers by their nature
        return
    assert_same(grads, want_grads, 1e-9)


@pytest.mark.parametrize(
    ("name", "kind"), pairs([name for name, g in EVERY.items() if g.name == "aca" and not g.grad_rtol], KINDS)
)
def test_second_derivatives(name, kind):
    gradient = EVERY[name]

    def second(gradient):
        f = KINDS[kind]().to(DOUBLE)
        torch.manual_seed(1)
        y0 = torch.randn(3, SIZE, dtype=DOUBLE).requires_grad_()
        ys = solve(f, y0, [0.0, 0.37, 1.0], method="midpoint", n_steps=2, gradient=gradient).ys
        (first,) = torch.autograd.grad(ys.square().sum(), y0, create_graph=True)
        return gradients_of(first.square(), {"y0": y0, **dict(f.named_parameters())})

    assert_same(second(gradient), second(EVERY["direct"]), 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_counter_of_calls_is_right_and_costs_one_evaluation(method):
    adaptive = METHODS[method].adaptive
    options = {"rtol": 1e-5} if adaptive else {"n_steps": 4}
    plain, counts = Net().to(DOUBLE), Counts().to(DOUBLE)
    y0 = torch.ones(3, SIZE, dtype=DOUBLE, requires_grad=True)
    without = solve(plain, y0, [0.0, 1.0], method=method, **options)
    sol = solve(counts, y0, [0.0, 1.0], method=method, **options)
    assert sol.stats.nfe == without.stats.nfe + 1 == counts.calls.item()
    sol.ys.sum().backward()
    assert counts.calls.item() == sol.stats.nfe + sol.stats.nfe_backward


def test_statistics_have_owners_and_not_names():
    """A buffer with a second name, outside of its module, is still batch norm's."""
    for _ in range(2):
        f = BatchNorms().to(DOUBLE)
        globals()["b"] = f.norm.running_mean  # f's code mentions the attribute `b`
        sol = solve(f, torch.randn(5, SIZE, dtype=DOUBLE), [0.0, 1.0], method="rk4", n_steps=3)
        before = [x.clone() for x in f.buffers()]
        sol.ys.sum().backward()
        assert all(map(torch.equal, before, f.buffers()))
        assert sol.stats.nfe == 12
    del globals()["b"]


def test_a_field_that_reads_batch_norms_statistics_is_stateful():
    class ReadsStatistics(BatchNorms):
        def forward(self, t, y):
            return super().forward(t, y) * (1 + self.norm.running_var.clone().mean())

    def solved_with(name):
        f = ReadsStatistics().to(DOUBLE)
        y0 = torch.ones(3, SIZE, dtype=DOUBLE) * torch.arange(3.0)[:, None]
        ys = solve(f, y0.requires_grad_(), [0.0, 1.0], method="rk4", n_steps=3, gradient=name).ys
        return gradients_of(ys, dict(f.named_parameters()))

    assert_same(solved_with("aca"), solved_with("direct"), 1e-10)


def test_a_copy_keeps_its_own_state():
    f = Counts()
    other = copy.deepcopy(f)
    solve(f, torch.ones(2, SIZE), [0.0, 1.0])
    assert other.calls.item() == 0 < f.calls.item()


def test_a_last_layer_that_starts_at_zero_hides_no_state():
    """The value is zero whatever the buffers are; they are read all the same."""

    def gradients(name):
        f = SpectralNorms().to(DOUBLE)
        last = nn.Linear(SIZE, SIZE).to(DOUBLE)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        y0 = torch.ones(3, SIZE, dtype=DOUBLE, requires_grad=True)
        ys = solve(lambda t, y: last(f(t, y)), y0, [0.0, 1.0], method="rk4", n_steps=3, gradient=name).ys
        return gradients_of(ys, dict(last.named_parameters()))

    assert_same(gradients("aca"), gradients("direct"), 1e-12)
