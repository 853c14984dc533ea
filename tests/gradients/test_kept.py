"""What f hands out or remembers beside its value, and values that lead nowhere: right, or said."""

import functools
import warnings

import pytest
import torch
from covering import pairs
from gradient_cases import DOUBLE, assert_same, gradients_of
from settings import EVERY, options_for
from torch import nn

from torchaca import solve

WITHOUT_GRAPH = {
    name: g for name, g in EVERY.items() if name not in ("direct", "naive", "aca-none", "aca-grad-rtol")
}
"""Gradients whose forward pass evaluates f without a graph."""
every = pytest.mark.parametrize("name", WITHOUT_GRAPH)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 2).to(DOUBLE)

    def forward(self, t, y):
        return torch.tanh(self.net(y))


def said(call):
    """What was warned of, or raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except (RuntimeError, ValueError) as error:
            return str(error)
    return " ".join(str(w.message) for w in caught)


def run(f, name, **options):
    y0 = torch.ones(1, 2, dtype=DOUBLE, requires_grad=True)
    return solve(f, y0, [0.0, 1.0], **{**options_for(EVERY[name], method="midpoint", n_steps=2), **options})


# --- collected ---


def in_a_list(f):
    f.energies = []
    return lambda k, y: f.energies.append(k.square().mean())


def in_a_dict(f):
    f.energies = {}
    return lambda k, y: f.energies.update({len(f.energies): (k.square().mean(), 1)})


def in_an_attribute(f):
    f.energy = 0.0

    def add(k, y):
        f.energy = f.energy + k.square().mean()

    return add


def in_a_new_attribute(f):
    def keep(k, y):
        f.last = k

    return keep


def in_a_closure(f):
    total = 0.0

    def add(k, y):
        nonlocal total
        total = total + k.square().mean()

    return add


def of_the_state_alone(f):
    f.states = []
    return lambda k, y: f.states.append(y)


def of_the_parameters_alone(f):
    def add(k, y):
        f.norm = f.net.weight.square().sum()

    return add


def behind_an_iterator(f):
    def collector():
        held = []
        while True:
            held.append((yield))

    stream = collector()
    next(stream)
    return lambda k, y: stream.send(k)


COLLECTED = {
    c.__name__: c
    for c in (
        *(in_a_list, in_a_dict, in_an_attribute, in_a_new_attribute, in_a_closure),
        *(of_the_state_alone, of_the_parameters_alone, behind_an_iterator),
    )
}


def collecting(place):
    f = Field()
    collect = COLLECTED[place](f)

    def with_penalty(t, y):
        k = f(t, y)
        collect(k, y)
        return k

    return with_penalty


@pytest.mark.parametrize(("name", "place"), pairs(WITHOUT_GRAPH, COLLECTED))
def test_values_that_f_collects_are_named(name, place):
    words = said(lambda: run(collecting(place), name))
    assert "f keeps" in words
    assert "gradient='direct'" in words
    if place != "behind_an_iterator":
        assert any(x in words for x in ("energ", "last", "total", "states", "norm"))


@every
def test_activations_that_a_hook_collects_are_named(name):
    f, activations = Field(), []
    f.net.register_forward_hook(lambda module, args, out: activations.append(out))
    assert "f keeps activations" in said(lambda: run(f, name))


@every
def test_detached_values_and_counters_are_nobodys_business(name):
    f = Field()
    f.seen, f.calls = [], 0

    def logging(t, y):
        k = f(t, y)
        f.calls += 1
        f.seen.append((float(t), y.detach().clone(), k.detach()))
        return k

    run(logging, name).ys.sum().backward()  # a warning is an error in these tests
    assert len(f.seen) == f.calls


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_torch_computes_are_nobodys_business(norm):
    f = Field()
    f.net = norm(f.net)
    run(f, "aca-all").ys.sum().backward()


@pytest.mark.parametrize("place", COLLECTED)
@pytest.mark.parametrize("name", [name for name in EVERY if name not in (*WITHOUT_GRAPH, "aca-grad-rtol")])
def test_gradients_that_keep_the_graph_say_nothing(name, place):
    run(collecting(place), name)


# --- remembered ---


@every
def test_weights_that_f_computes_once_are_right(name):
    """The graph from the weights to what is kept is shared by all steps."""

    def build():
        f = Field()
        f.skew = None

        def once(t, y):
            if f.skew is None:
                f.skew = f.net.weight - f.net.weight.T
            return y @ f.skew + f.net.bias

        return f, once

    def grads(rival):
        f, once = build()
        found = []
        method = "alf" if name == "mali" else "midpoint"
        words = said(lambda: found.append(run(once, rival, method=method)))
        assert ("f.skew" in words) == (rival in WITHOUT_GRAPH)
        return gradients_of(found[0].ys, dict(f.named_parameters()))

    assert_same(grads(name), grads("direct"), 0.05 if name == "adjoint" else 1e-10)


@every
def test_values_that_f_remembers_without_a_graph_are_refused(name):
    f = Field()
    f.embed = nn.Linear(1, 2).to(DOUBLE)

    @functools.cache
    def embedded(t):
        return f.embed(torch.tensor([t], dtype=DOUBLE))

    def words():
        run(lambda t, y: f(t, y) + embedded(float(t)), name).ys.sum().backward()

    told = said(words)
    assert "a cache that was filled without a graph" in told


@every
def test_a_state_that_f_remembers_is_refused(name):
    f = Field()
    f.start = None

    def from_the_start(t, y):
        if f.start is None:
            f.start = y
        return f(t, y) + f.start

    assert "from its first call" in said(lambda: run(from_the_start, name).ys.sum().backward())


# --- lost ---


def energy_without_graph(f):
    def field(t, y):
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return -torch.autograd.grad(f(t, y).square().sum(), y)[0]

    return field


def energy_of_its_own_state(f):
    def field(t, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.requires_grad_()
            return -torch.autograd.grad(f(t, y).square().sum(), y)[0] + 0.0 * y

    return field


def wrapped_anew(f):
    return lambda t, y: torch.tensor(f(t, y).tolist(), dtype=DOUBLE) - 0.1 * y


LOST = {c.__name__: c for c in (energy_without_graph, energy_of_its_own_state, wrapped_anew)}


@pytest.mark.parametrize(("name", "field"), pairs([name for name in EVERY if name != "aca-grad-rtol"], LOST))
def test_a_value_without_a_graph_to_the_parameters_is_said(name, field):
    f = Field()
    y0 = torch.ones(1, 2, dtype=DOUBLE, requires_grad=True)
    options = options_for(EVERY[name], method="midpoint", n_steps=2)
    assert "f.net." in said(lambda: solve(LOST[field](f), y0, [0.0, 1.0], **options))


SWITCHES = {"no-grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize(
    ("name", "switch"), pairs([name for name in EVERY if name != "aca-grad-rtol"], SWITCHES)
)
def test_an_f_that_switches_grad_mode_off_is_said(name, switch):
    f = Field()
    start = torch.ones(1, 2, dtype=DOUBLE)
    options = options_for(EVERY[name], method="midpoint", n_steps=2)

    def off(t, y):
        with SWITCHES[switch]():
            return f(t, y).clone()

    said_of_weights = said(lambda: solve(off, start, [0.0, 1.0], **options))
    assert "f.net." in said_of_weights
    assert "under no_grad" in said_of_weights
    y0 = start.clone().requires_grad_()
    assert "from y under no_grad" in said(lambda: solve(off, y0, [0.0, 1.0], **options))


@pytest.mark.parametrize("name", [name for name in EVERY if name != "aca-grad-rtol"])
def test_a_forcing_looked_up_without_grad_is_no_cause(name):
    data, rate = torch.linspace(0, 1, 5, dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)

    @torch.no_grad()
    def forcing(t, y):
        return data[(4 * t).long()].expand_as(y)

    options = options_for(EVERY[name], method="midpoint", n_steps=2)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    solve(forcing, y0, [0.0, 1.0], **options)
    solve(lambda t, y: forcing(t, y) - rate * y, y0, [0.0, 1.0], **options).ys.sum().backward()
    assert rate.grad is not None


@pytest.mark.parametrize("name", [name for name in EVERY if name != "aca-grad-rtol"])
def test_an_energy_with_its_graph_and_a_late_start_are_no_cause(name):
    f = Field()

    def energy(t, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            return -torch.autograd.grad(f(t, y).square().sum(), y, create_graph=True)[0]

    def later(t, y):
        return f(t, y) if t > 0.6 else torch.zeros_like(y)

    for field in (energy, later):
        run(field, name).ys.sum().backward()


# --- written into ---


def clamps(y):
    y.clamp_(min=0.0)


def assigns(y):
    y[..., 0] = 0.0


def writes_without_grad(y):
    with torch.no_grad():
        y.mul_(0.5)


WRITES = {c.__name__: c for c in (clamps, assigns, writes_without_grad)}
MODES = {"grad": torch.enable_grad, "no-grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", ["direct", "naive", "aca-all", "adjoint"])
def test_f_that_writes_into_y_is_refused_and_y0_is_whole(name, write, mode, nested):
    start = torch.tensor([0.5, -0.25], dtype=DOUBLE)
    y0 = start.clone()

    def f(t, y):
        inner = y["a"] if nested else y
        WRITES[write](inner)
        k = -torch.ones_like(inner)
        return {"a": k} if nested else k

    with MODES[mode](), pytest.raises(ValueError, match=r"f\(t, y\) changes y in place"):
        solve(f, {"a": y0} if nested else y0, [0.0, 1.0], **options_for(EVERY[name], n_steps=2, method="rk4"))
    assert torch.equal(y0, start)


def test_f_that_writes_into_the_time_is_refused():
    def f(t, y):
        t.add_(1.0)
        return -y * t

    with pytest.raises(ValueError, match="changes t in place"):
        solve(f, torch.ones(2), [0.0, 1.0])


def test_f_that_writes_later_is_refused():
    def f(t, y):
        return -y if t < 0.5 else y.mul_(-1.0)

    with pytest.raises(ValueError, match="changes y in place"):
        solve(f, torch.ones(2), [0.0, 1.0], method="rk4", n_steps=4)
