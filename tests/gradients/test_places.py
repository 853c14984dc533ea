"""What f reads is bound to something else before the backward pass: the old value counts, or an error says so."""

import threading

import numpy as np
import pytest
import torch
from covering import pairs
from gradient_cases import DOUBLE, assert_same, gradients_of
from settings import EVERY, options_for
from torch import nn

import torchaca
from torchaca import solve

EVALUATES = {
    name: g for name, g in EVERY.items() if name not in ("direct", "naive", "aca-none", "aca-grad-rtol")
}
"""Gradients that evaluate f again in the backward pass."""
AGAIN = [name for name in EVALUATES if name != "aca-auto"]  # whose graphs fit here
SEGMENTS = (0.5, -0.7, 1.2)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 2).to(DOUBLE)
        self.drop = nn.Dropout(0.0)
        self.u = None
        self.register_buffer("gain", torch.tensor(1.0, dtype=DOUBLE))

    def forward(self, t, y):
        return torch.tanh(self.net(y)) * self.gain + self.control(t)

    def control(self, t):
        return 0.0 if self.u is None else self.u


class Slotted:
    __slots__ = ("u",)


class Shared:
    u = 0.0


def attribute(f):
    def to(value):
        f.u = value

    return f, to


def tensor_attribute(f):
    return f, lambda value: setattr(f, "u", torch.full((2,), value, dtype=DOUBLE))


def trained_attribute(f):
    return f, lambda value: setattr(f, "u", value * f.net.bias)


def buffer(f):
    return f, lambda value: setattr(f, "gain", torch.tensor(value, dtype=DOUBLE))


def entry_of_a_dict(f):
    f.settings = {"u": 0.0}
    return lambda t, y: f(t, y) + f.settings["u"], lambda value: f.settings.update(u=value)


def entry_of_a_list(f):
    f.settings = [0.0]
    return lambda t, y: f(t, y) + f.settings[0], lambda value: f.settings.__setitem__(0, value)


def object_of_its_own(f):
    f.box = Slotted()
    return lambda t, y: f(t, y) + f.box.u, lambda value: setattr(f.box, "u", value)


def attribute_of_a_class(f):
    return lambda t, y: f(t, y) + Shared.u, lambda value: setattr(Shared, "u", value)


def function_attribute(f):
    def to(value):
        f.control = lambda t: value * torch.cos(t)

    return f, to


def closure_variable(f):
    u = 0.0

    def to(value):
        nonlocal u
        u = value

    return lambda t, y: f(t, y) * (1 + u), to


def attribute_by_name(f):
    return lambda t, y: f(t, y) + getattr(f, "u"), lambda value: setattr(f, "u", value)  # noqa: B009


def mode_of_a_module(f):
    return (lambda t, y: f(t, y) * (1.0 if f.training else 0.5)), lambda value: f.train(value > 0)


PLACES = {
    place.__name__: place
    for place in (
        *(attribute, tensor_attribute, trained_attribute, buffer, entry_of_a_dict, entry_of_a_list),
        *(object_of_its_own, attribute_of_a_class, function_attribute, closure_variable),
        *(attribute_by_name, mode_of_a_module),
    )
}


def chained(place, gradient, **options):
    """Solves one after the other, each with another value in the place, and one backward pass through them all."""
    module = Field()
    f, to = PLACES[place](module)
    y = y0 = torch.tensor([[0.3, -0.4]], dtype=DOUBLE, requires_grad=True)
    for value in SEGMENTS:
        to(value)
        y = solve(f, y, [0.0, 0.5], **options_for(gradient, **options)).ys[-1]
    return gradients_of(y, {"y0": y0, **dict(module.net.named_parameters())})


@pytest.mark.parametrize(("name", "place"), pairs(EVALUATES, PLACES))
def test_the_value_of_the_forward_pass_counts(name, place):
    gradient = EVERY[name]
    options = {"rtol": 1e-6, "atol": 1e-8} if name == "adjoint" else {"method": "midpoint", "n_steps": 2}
    got, want = chained(place, gradient, **options), chained(place, EVERY["direct"], **options)
    if gradient.name == "mali":
        want = chained(place, EVERY["direct"], **{**options, "method": "alf"})
    assert_same(got, want, 1e-4 if name == "adjoint" else 1e-10)


@pytest.mark.parametrize("name", EVALUATES)
def test_places_hold_their_new_values_after_the_backward_pass(name):
    f = Field()
    f.u = 1.0
    sol = solve(
        f, torch.ones(1, 2, dtype=DOUBLE), [0.0, 1.0], **options_for(EVERY[name], n_steps=2, method="rk4")
    )
    f.u, f.log = 2.0, []
    f.eval()
    sol.ys.sum().backward()
    assert (f.u, f.log, f.training) == (2.0, [], False)


def lend(f, scale):
    return {name: (scale * p).detach().requires_grad_() for name, p in f.named_parameters()}


def lend_history(f, scale):
    return {name: scale * p + 0.1 * p.square() for name, p in f.named_parameters()}


@pytest.mark.parametrize("lender", [lend, lend_history])
@pytest.mark.parametrize("name", EVALUATES)
def test_weights_lent_by_functional_call(name, lender):
    gradient = EVERY[name]
    order = 1 if gradient.name in ("adjoint", "mali") else 2  # they have no second derivatives, and say so

    def solved(gradient, method):
        f = Field()
        given = lender(f, 2.0)
        options = {**options_for(gradient, n_steps=2), "method": method}
        x = torch.tensor([[0.3, -0.4]], dtype=DOUBLE)
        block = torchaca.nn.NeuralODE(f, **options)
        lent = {f"f.{key}": value for key, value in given.items()}
        out = torch.func.functional_call(block, lent, (x,))
        wrt = dict(f.named_parameters()) if lender is lend_history else given
        if order == 1:
            return gradients_of(out, wrt)
        firsts = torch.autograd.grad(out.square().sum(), list(wrt.values()), create_graph=True)
        return gradients_of(sum(g.square().sum() for g in firsts), wrt)

    method = "alf" if gradient.name == "mali" else "rk4"
    tolerance = 0.05 if gradient.name == "adjoint" else 1e-10
    assert_same(solved(gradient, method), solved(EVERY["direct"], method), tolerance)


@pytest.mark.parametrize("name", EVALUATES)
def test_weights_that_were_loaded_in_the_place_of_others(name):
    f = Field()
    old = dict(f.net.named_parameters())
    options = options_for(EVERY[name], n_steps=2, method="midpoint")
    y0 = torch.tensor([[0.3, -0.4]], dtype=DOUBLE)
    got = solve(f, y0, [0.0, 1.0], **options)
    f.net.load_state_dict({key: 3 * x.detach() for key, x in old.items()}, assign=True)
    got = gradients_of(got.ys, old)
    g = Field()
    want = solve(g, y0, [0.0, 1.0], **{**options, "gradient": "direct"})
    tolerance = 0.1 if EVERY[name].name == "adjoint" else 1e-10
    assert_same(got, gradients_of(want.ys, dict(g.net.named_parameters())), tolerance)


# --- what cannot be put back ---


def changed_in_place(f):
    f.gain.mul_(0.5)


def changed_data(f):
    f.net.weight.data = 2 * f.net.weight.data


def changed_to_nan(f):
    f.gain.fill_(torch.nan)


def bound_globally(f):
    globals()["FACTOR"] = 2.0


CHANGES = {c.__name__: c for c in (changed_in_place, changed_data, changed_to_nan, bound_globally)}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("name", "change"), pairs(AGAIN, CHANGES))
def test_other_changes_are_errors(name, change, steps):
    globals()["FACTOR"] = 1.0
    f = Field()
    sol = solve(
        lambda t, y: f(t, y) * FACTOR,  # noqa: F821
        torch.tensor([[0.3, -0.4]], dtype=DOUBLE, requires_grad=True),
        [0.0, 1.0],
        **options_for(EVERY[name], n_steps=steps, method="rk4"),
    )
    CHANGES[change](f)
    words = (
        "FACTOR" if change == "bound_globally" and EVERY[name].name != "mali" else "changed|off by|not finite"
    )
    with pytest.raises(RuntimeError, match=words):
        sol.ys.sum().backward()


class OwnGenerator:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, t, y):
        return -y * (1 + torch.rand(y.shape, generator=self.generator, dtype=y.dtype))


class NumpysGenerator:
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, t, y):
        return -y * (1 + self.rng.random())


class CallsCounted:
    def __init__(self):
        self.calls = 0

    def __call__(self, t, y):
        self.calls += 1
        return -y * (1 + 0.1 * self.calls)


HIDDEN = {cls.__name__: cls for cls in (OwnGenerator, NumpysGenerator, CallsCounted)}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("name", "kind"), pairs(AGAIN, HIDDEN))
def test_randomness_that_torch_does_not_know_of_is_found(name, kind, steps):
    y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    sol = solve(HIDDEN[kind](), y0, [0.0, 1.0], **options_for(EVERY[name], n_steps=steps, method="rk4"))
    with pytest.raises(RuntimeError, match=r"other values|off by"):
        sol.ys.sum().backward()


@pytest.mark.parametrize("name", [name for name in AGAIN if EVERY[name].name in ("aca", "adjoint")])
def test_a_change_that_does_not_show_at_the_start_is_found(name):
    f = Field()
    y0 = torch.tensor([[0.3, -0.4]], dtype=DOUBLE, requires_grad=True)
    options = options_for(EVERY[name], method="rk4", n_steps=3)
    sol = solve(lambda t, y: torch.tanh(f.net(y)) * (1 + f.gain * t), y0, [0.0, 1.0], **options)
    changed_in_place(f)
    with pytest.raises(RuntimeError, match="changed"):
        sol.ys.sum().backward()


# --- threads ---


@pytest.mark.parametrize("name", AGAIN)
def test_another_thread_that_evaluates_the_same_f_is_named(name):
    """The value cannot be put back under another thread's feet."""
    f, inside, done = Field(), threading.Event(), threading.Event()
    f.u = 1.0
    options = options_for(EVERY[name], n_steps=2, method="rk4")
    sol = solve(f, torch.ones(1, 2, dtype=DOUBLE, requires_grad=True), [0.0, 1.0], **options)
    f.u = 2.0

    def waits(t, y):
        if not inside.is_set() and threading.current_thread() is not threading.main_thread():
            inside.set()
            done.wait(20)
        return f(t, y)

    # Its first evaluation is over when the solve is under way, so the one that waits is a later one.
    calls = iter(range(1000))
    other = threading.Thread(
        target=lambda: solve(
            lambda t, y: waits(t, y) if next(calls) > 1 else f(t, y),
            torch.ones(1, 2, dtype=DOUBLE, requires_grad=True),
            [0.0, 1.0],
            method="rk4",
            n_steps=2,
        )
    )
    other.start()
    assert inside.wait(20)
    with pytest.raises(RuntimeError, match=r"u was bound to another value.*another thread"):
        sol.ys.sum().backward()
    done.set()
    other.join()
    sol.ys.sum().backward() if name != "mali" else None


@pytest.mark.parametrize("name", [name for name in AGAIN if EVERY[name].name == "aca"])
def test_random_numbers_that_another_thread_draws_are_its_fault(name):
    """It draws from the same generator, in the middle of a step that is replayed."""
    backward, done = threading.Event(), threading.Event()  # not a variable, which would be put back

    def f(t, y):
        if backward.is_set():
            other = threading.Thread(target=torch.rand, args=(1,))
            other.start()
            other.join()
        return -nn.functional.dropout(y, 0.5)

    y0 = torch.ones(50, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, [0.0, 1.0], **options_for(EVERY[name], n_steps=2, method="rk4"))
    waiting = threading.Thread(target=done.wait)
    waiting.start()
    backward.set()
    try:
        with pytest.raises(RuntimeError, match="other threads"):
            sol.ys.sum().backward()
    finally:
        done.set()
        waiting.join()


@pytest.mark.parametrize("name", EVALUATES)
def test_hooks_of_a_parameter_run_in_every_thread(name):
    torch.manual_seed(0)
    k = nn.Parameter(torch.tensor(0.3, dtype=DOUBLE))
    k.register_hook(lambda g: torch.full_like(g, 7.0))
    seen = []

    def work():
        for _ in range(4):
            options = options_for(EVERY[name], n_steps=3, method="midpoint")
            sol = solve(lambda t, y: torch.tanh(y) * k, torch.ones(3, dtype=DOUBLE), [0.0, 1.0], **options)
            seen.append(torch.autograd.grad(sol.ys[-1].sum(), k)[0].item())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [7.0] * 12


def test_a_hook_that_is_removed_is_gone():
    k = nn.Parameter(torch.tensor(0.3))
    handle = k.register_hook(lambda g: torch.full_like(g, 7.0))
    for want in (True, False):
        sol = solve(lambda t, y: y * k, torch.ones(2), [0.0, 1.0])
        assert (torch.autograd.grad(sol.ys[-1].sum(), k)[0].item() == 7.0) is want
        handle.remove()
