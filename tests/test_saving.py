"""`save=`: its values in place of the states, their gradients, and memory that grows with the values alone."""

import functools
import math

import pytest
import torch
from gradient_cases import DOUBLE, Everything, assert_same, gradients_of
from gradients.settings import EVERY, options_for
from peak import Peak
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from torchaca import ACA, METHODS, NeuralODE, SolverError, solve

TIMES = [0.0, 0.0, 0.1, 0.15, 0.2, 0.5, 1.1, 1.5]


def f(t, y):
    return torch.stack([y[1], -torch.sin(y[0]) + 0.1 * torch.cos(t)])


Y0 = torch.tensor([1.0, -0.5], dtype=DOUBLE)


def energy(t, y):
    return 0.5 * y[1] ** 2 - torch.cos(y[0]) * (1 + t)


def after(sol, save):
    return torch.stack([save(t, y) for t, y in zip(sol.ts, sol.ys)])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_its_values_stand_in_the_place_of_the_states(compiled):
    sol = solve(f, Y0, TIMES, save=energy, compile=compiled)
    whole = solve(f, Y0, TIMES, compile=compiled)
    assert sol.ys.shape == (len(TIMES),)
    torch.testing.assert_close(sol.ys, after(whole, energy), rtol=1e-14, atol=0)
    assert sol.stats == whole.stats
    assert torch.equal(sol.state.y, whole.ys[-1])


def test_it_is_called_once_at_each_output():
    seen = []

    def save(t, y):
        seen.append((t.item(), y.shape))
        return y[0]

    solve(f, Y0, TIMES, save=save)
    assert seen == [(t, (2,)) for t in TIMES]


def test_nested_states_and_nested_values():
    def slope(t, y):
        return {"a": -y["a"], "b": (y["b"][0] * t,)}

    y0 = {"a": torch.ones(2, 3, dtype=DOUBLE), "b": (torch.ones(1),)}

    def save(t, y):
        return {"mean": y["a"].mean(), "rest": [y["b"][0].half(), torch.stack([t, t])]}

    sol = solve(slope, y0, TIMES, save=save)
    assert sol.ys["mean"].shape == (len(TIMES),)
    assert (sol.ys["rest"][0].shape, sol.ys["rest"][0].dtype) == ((len(TIMES), 1), torch.float16)
    torch.testing.assert_close(sol.ys["rest"][1][:, 0], torch.tensor(TIMES, dtype=DOUBLE))
    torch.testing.assert_close(sol.ys["mean"], solve(slope, y0, TIMES).ys["a"].mean((1, 2)))


@pytest.mark.parametrize("wanted", [True, False], ids=["times-wanted", "times-constant"])
@pytest.mark.parametrize("steps", [{"n_steps": 3}, {"rtol": 1e-2, "atol": 1e-3}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("gradient", EVERY)
def test_gradients_are_those_of_the_same_made_of_the_outputs(gradient, steps, wanted):
    case = Everything(TIMES, wanted)
    decoder = torch.tensor([0.3, -0.7, 0.2], dtype=DOUBLE, requires_grad=True)
    case.inputs["decoder"] = decoder

    def save(t, y, history):
        return torch.cat([(history * y["z"]).sum()[None] * torch.cos(t), y["l"] ** 2 + decoder[:1]])

    options = options_for(EVERY[gradient], **steps)
    settings = options.pop("gradient")
    sol = case.solve(settings, **options)
    ys = [{"z": z, "l": length} for z, length in zip(sol.ys["z"], sol.ys["l"])]
    want = torch.stack([save(t, y, 2 * decoder) for t, y in zip(case.times, ys)])
    got = case.solve(settings, save=functools.partial(save, history=2 * decoder), **options).ys
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert_same(gradients_of(got, case.inputs), gradients_of(want, case.inputs), 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_with_every_method(method):
    case = Everything(TIMES)
    want = after_dict(case.solve("direct", method=method, n_steps=3))
    got = case.solve(ACA(checkpoints="all"), method=method, n_steps=3, save=saved).ys
    assert_same(gradients_of(got, case.inputs), gradients_of(want, case.inputs), 1e-11)


def saved(t, y):
    return y["z"][:2].square() + y["l"]


def after_dict(sol):
    states = zip(sol.ts, sol.ys["z"], sol.ys["l"])
    return torch.stack([saved(t, {"z": z, "l": length}) for t, z, length in states])


def test_substeps_and_second_derivatives():
    case = Everything(TIMES)
    for settings in (ACA(substeps=3), ACA(checkpoints="all")):
        want = after_dict(case.solve(settings, rtol=1e-2))
        got = case.solve(settings, rtol=1e-2, save=saved).ys
        assert_same(gradients_of(got, case.inputs), gradients_of(want, case.inputs), 1e-11)

    def values(y0):
        return solve(f, y0, [0.0, 0.2, 0.5], n_steps=2, gradient=ACA(checkpoints="all"), save=energy).ys

    assert gradcheck(values, Y0.clone().requires_grad_())
    assert gradgradcheck(values, Y0.clone().requires_grad_())


def test_a_value_that_does_not_depend_on_the_state():
    y0 = Y0.clone().requires_grad_()
    sol = solve(f, y0, TIMES, gradient=ACA(checkpoints="all"), save=lambda t, y: torch.stack([y[0], t]))
    sol.ys[:, 1].sum().backward()
    assert y0.grad.tolist() == [0.0, 0.0]
    assert not solve(f, Y0, TIMES, save=lambda t, y: 2 * t).ys.requires_grad


# --- memory ---

SIZE, MANY = 20_000, 100


def peak_of(n, save, gradient):
    weight = torch.ones(SIZE, dtype=DOUBLE, requires_grad=True)
    y0 = torch.linspace(0.5, 1.5, SIZE, dtype=DOUBLE)
    ts = torch.linspace(0, 1, n, dtype=DOUBLE).tolist()
    with Peak([weight, y0]) as peak:
        ys = solve(
            lambda t, y: -weight * y, y0, ts, n_steps=10, method="rk4", save=save, gradient=gradient
        ).ys
        held = peak.now
        ys.sum().backward()
    return peak.peak / SIZE, held / SIZE


@pytest.mark.parametrize("gradient", [ACA(checkpoints="all"), ACA(checkpoints=3)], ids=repr)
def test_memory_grows_with_what_is_saved(gradient):
    few, many, more = (
        peak_of(n, lambda t, y: y.square().mean(), gradient) for n in (11, 11 + MANY, 11 + 2 * MANY)
    )
    # In states. Held between the passes: what the gradient keeps anyway, and the values.
    assert many[1] < few[1] + 1
    assert peak_of(11 + MANY, None, gradient)[1] > many[1] + MANY - 1
    # At its peak a backward pass holds the outputs of one step of ten, not all of them.
    assert more[0] < few[0] + 0.4 * 2 * MANY


def test_a_part_of_a_state_does_not_hold_the_state():
    y0 = torch.linspace(0.5, 1.5, SIZE, dtype=DOUBLE)
    ts = torch.linspace(0, 1, MANY, dtype=DOUBLE).tolist()
    with Peak([y0]) as peak:
        solve(lambda t, y: -y, y0, ts, n_steps=20, method="rk4", save=lambda t, y: y[:2])
    assert peak.peak < 0.4 * MANY * SIZE


# --- with other options ---


def test_dense_output_is_of_the_states():
    sol = solve(f, Y0, TIMES, save=energy, dense=True)
    torch.testing.assert_close(sol(1.5), sol.state.y)


def test_a_failure_ends_the_values():
    def blow_up(t, y):
        return y**2

    y0 = torch.ones(1, dtype=DOUBLE)
    sol = solve(blow_up, y0, [0.0, 0.5, 2.0], save=lambda t, y: y.sum(), on_failure="status")
    assert sol.ys.shape == (2,)
    sol = solve(blow_up, y0, [0.0, 0.5, 2.0], save=lambda t, y: y.sum(), on_failure="nan")
    assert sol.ys.isnan().tolist() == [False, False, True]
    with pytest.raises(SolverError) as caught:
        solve(blow_up, y0, [0.0, 0.5, 2.0], save=lambda t, y: y.sum())
    assert caught.value.partial.ys.shape == (2,)


def test_no_time_no_step():
    assert solve(f, Y0, [0.3, 0.3], save=energy).ys.shape == (2,)


def test_the_state_goes_on():
    y0 = Y0.clone().requires_grad_()
    for gradient in ("direct", ACA(checkpoints="all")):
        state = solve(f, y0, [0.0, 0.7], save=energy, gradient=gradient).state
        ys = solve(f, state, [0.7, 1.5], gradient=gradient).ys
        if gradient == "direct":
            ys.sum().backward()
            assert y0.grad.abs().min() > 0
        else:
            with pytest.raises(NotImplementedError, match="save= has no derivative"):
                ys.sum().backward()


def energies(options, y0):
    return solve(f, y0, TIMES, save=energy, **options).ys


def test_a_block_and_lanes():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, t, y):
            return torch.tanh(self.linear(y))

    block = NeuralODE(Field(), save=lambda t, y: y.sum(-1))
    x = torch.ones(5, 2)
    assert block(x).shape == (5,)
    for options in ({}, {"n_steps": 4}):
        values = functools.partial(energies, options)
        y0 = torch.stack([Y0, 2 * Y0])
        torch.testing.assert_close(torch.func.vmap(values)(y0), torch.stack([values(y) for y in y0]))


# --- refusals ---


def test_what_is_no_value():
    with pytest.raises(TypeError, match=r"save is a function, called as save\(t, y\)"):
        solve(f, Y0, TIMES, save=3)
    for wrong in (lambda t, y: 1.0, lambda t, y: None, lambda t, y: y > 0, lambda t, y: []):
        with pytest.raises(TypeError, match=r"save\(t, y\) returns a real or complex tensor"):
            solve(f, Y0, TIMES, save=wrong)
    with pytest.raises(ValueError, match=r"of shape \(2,\) at first and then a tensor of shape \(1,\)"):
        solve(f, Y0, TIMES, save=lambda t, y: y if t < 0.3 else y[:1])


def test_infinite_times_are_not_outputs():
    with pytest.raises(ValueError, match="must be finite"):
        solve(f, Y0, [0.0, math.inf], save=energy)
