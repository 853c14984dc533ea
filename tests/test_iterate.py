"""Steps one by one: the same as those of a solve, left and gone on with anywhere, to the last bit."""

import itertools
import math

import pytest
import torch
from gradient_cases import ADAPTIVE, DOUBLE
from test_going_on import END, MIDDLE, Y0, at_rest, pull, same
from torch import nn

import torchaca as aca
from torchaca import METHODS, SolverError, iterate, solve
from torchaca.iterate import OF_A_SOLVE
from torchaca.options import OPTIONS

RTOL = dict.fromkeys(("heun_euler", "alf", "reversible_heun"), 1e-3)  # of low order: fewer steps


def options_of(method):
    return {
        "method": method,
        **({"rtol": RTOL.get(method, 1e-5), "atol": 1e-6} if method in ADAPTIVE else {"dt": 0.1}),
    }


def assert_same_steps(got, want):
    assert [(s.t0, s.t1) for s in got] == [(s.t0, s.t1) for s in want]
    for a, b in zip(got, want):
        same(a.y1, b.y1)
        same(a.at(0.5 * (a.t0 + a.t1)), b.at(0.5 * (a.t0 + a.t1)))
        assert a.state.dt == b.state.dt


@pytest.mark.parametrize("end", [END, None], ids=["to the end", "without end"])
@pytest.mark.parametrize("method", METHODS)
def test_left_after_any_step_it_goes_on_with_the_same_bits(method, end):
    options = options_of(method)
    whole = [*itertools.islice(iterate(pull, Y0, 0.0, end, **options), 12)]
    assert len(whole) > 4
    for n in (0, 1, 3, len(whole) - 2):
        rest = itertools.islice(iterate(pull, whole[n].state, t1=end, **options), len(whole) - 1 - n)
        assert_same_steps([*rest], whole[n + 1 :])


@pytest.mark.parametrize("steps", [{"n_steps": 9}, {"grid": [0.0, 0.1, 0.5, 0.55, 1.3, 2.0]}], ids=str)
def test_other_fixed_steps_go_on_as_well(steps):
    whole = [*iterate(pull, Y0, 0.0, END, method="rk4", **steps)]
    for n in range(len(whole) - 1):
        rest = {"n_steps": 8 - n} if "n_steps" in steps else {"grid": steps["grid"][n + 1 :]}
        got = [*iterate(pull, whole[n].state, whole[n].t1, END, method="rk4", **rest)]
        assert_same_steps(got, whole[n + 1 :])


def test_at_rest_the_bound_goes_on():
    y0 = torch.ones(3, dtype=DOUBLE)
    for end in (40.0, None):
        whole = [*itertools.islice(iterate(at_rest, y0, 0.0, end), 12)]
        for n in (0, 2, 5):
            rest = itertools.islice(iterate(at_rest, whole[n].state, t1=end), 11 - n)
            assert_same_steps([*rest], whole[n + 1 :])
    assert max(s.t1 - s.t0 for s in whole) < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_the_steps_are_those_of_a_solve(method):
    sol = solve(pull, Y0, [0.0, END], **options_of(method))
    steps = [*iterate(pull, Y0, 0.0, END, **options_of(method))]
    assert (0.0, *(s.t1 for s in steps)) == sol.steps
    same(steps[-1].y1, sol.ys[-1])
    last = steps[-1].state
    assert last.stats == sol.stats
    assert last.dt == sol.state.dt
    t = torch.linspace(steps[2].t0, steps[2].t1, 6, dtype=DOUBLE).reshape(2, 3)
    dense = solve(pull, Y0, [0.0, END], dense=True, **options_of(method))
    torch.testing.assert_close(steps[2].at(t), dense(t), rtol=1e-12, atol=1e-12)


def test_solve_and_iterate_go_on_with_each_other():
    state = solve(pull, Y0, [0.0, MIDDLE], method="alf").state
    (step, *_) = iterate(pull, state, t1=END, method="alf")
    then = solve(pull, step.state, [step.t1, END], method="alf")
    same(then.ys[-1], solve(pull, state, [MIDDLE, END], method="alf").ys[-1])


def test_backwards_without_end():
    steps = [*itertools.islice(iterate(pull, Y0, 0.0, -math.inf), 4)]
    assert all(s.t1 < s.t0 for s in steps)
    jumps = [*itertools.islice(iterate(pull, Y0, 0.0, jump_ts=[0.01, 0.3]), 12)]
    assert {0.01, 0.3} <= {s.t1 for s in jumps}


def test_nothing_has_a_graph_and_grad_mode_is_the_callers():
    net = nn.Linear(3, 3).double()
    y0 = Y0.clone().requires_grad_()
    for step in itertools.islice(iterate(lambda t, y: net(y), y0, 0.0), 3):
        assert torch.is_grad_enabled()
        assert not step.y1.requires_grad
        assert not step.state.y.requires_grad
        assert not step.at(step.t1).requires_grad


def test_nested_states():
    y0 = {"a": Y0, "b": (torch.ones(1),)}
    step = next(iterate(lambda t, y: {"a": -y["a"], "b": (y["b"][0],)}, y0, 0.0))
    assert step.y1["b"][0].dtype == torch.float32
    assert step.at([step.t0, step.t1])["a"].shape == (2, 3)
    same(step.at(step.t0)["a"], Y0)
    assert step.at([])["a"].shape == (0, 3)


def test_costs_are_those_of_the_loop():
    calls = []

    def f(t, y):
        calls.append(t)
        return -y

    steps = iterate(f, Y0, 0.0)
    assert not calls  # nothing is evaluated before the first step is asked for
    next(steps)
    first = len(calls)
    next(steps)
    assert len(calls) == first + 6


def test_errors_come_at_the_door():
    for wrong in ({"rtol": -1.0}, {"method": "rk4"}):
        with pytest.raises(ValueError, match=r"rtol|rk4"):
            iterate(pull, Y0, 0.0, **wrong)
    with pytest.raises(TypeError, match="needs the time"):
        iterate(pull, Y0)
    with pytest.raises(TypeError, match=r"iterate\(\) has no option 'h'"):
        iterate(pull, Y0, 0.0, h=0.1)
    with pytest.raises(ValueError, match="give t1, or dt="):
        iterate(pull, Y0, 0.0, method="rk4", n_steps=3)
    with pytest.raises(ValueError, match="t1 is nan"):
        iterate(pull, Y0, 0.0, math.nan)
    step = next(iterate(pull, Y0, 0.0))
    with pytest.raises(ValueError, match="outside of the step"):
        step.at(step.t1 + 1)


@pytest.mark.parametrize("name", OF_A_SOLVE)
def test_options_without_effect(name):
    assert name in OPTIONS
    given = {"gradient": "direct", "on_failure": "nan", "compile": True}.get(name, True)
    with pytest.raises(ValueError, match=f"{name}= has no effect in iterate"):
        iterate(pull, Y0, 0.0, **{name: given})


def test_what_goes_wrong_raises_as_in_a_solve():
    with pytest.raises(SolverError) as caught:
        for _ in iterate(lambda t, y: y**2, torch.ones(1, dtype=DOUBLE), 0.0):
            pass
    assert caught.value.kind == "blow-up"
    with pytest.raises(SolverError) as caught:
        [*iterate(pull, Y0, 0.0, max_steps=5)]
    assert caught.value.kind == "max-steps"
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.vmap(lambda y: next(iterate(lambda t, y: -y, y, 0.0)).y1)(torch.ones(2, 3))


def test_going_on_counts_trials_anew():
    state, n = None, 0
    for step in iterate(pull, Y0, 0.0, max_steps=8):
        state, n = step.state, n + 1
        if n == 5:
            break
    assert len([*itertools.islice(iterate(pull, state, max_steps=8), 5)]) == 5


def test_the_names_are_public():
    assert aca.iterate is iterate
