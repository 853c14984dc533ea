"""What solve says when it is given what it cannot solve, and when the numbers go wrong."""

import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import COSINE, DOUBLE
from stubs import ScriptedMethod
from torch import nn

import torchaca as aca
from torchaca import GRADIENTS, METHODS, SolverError, solve
from torchaca.errors import KINDS, did_you_mean, shorten

T = [0.0, 1.0]
NESTED = {"x": torch.ones(2), "v": (torch.ones(3),)}


def decay(t, y):
    return -y


def decay_nested(t, y):
    return {"x": -y["x"], "v": (-y["v"][0],)}


Y0 = torch.ones(2)


def refused(kind, *parts, f=decay, y0=Y0, t=T, **options):
    """solve refuses with an error of that kind, whose message has all parts in it."""
    with pytest.raises(kind) as caught:
        solve(f, y0, t, **options)
    assert not isinstance(caught.value, SolverError)
    message = str(caught.value)
    for part in parts:
        assert part in message, f"no {part!r} in {message!r}"
    return message


# What f returns.


class Field(nn.Module):
    def forward(self, y, t):
        return -y


class Swapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x, t):
        return self.net(x)


@pytest.mark.parametrize(
    ("f", "kind", "parts"),
    [
        (lambda t, y: -y[:1], ValueError, ["returned shape (1,)", "state has (2,)", "f(t, y)"]),
        (lambda t, y: y.sum(), ValueError, ["returned shape ()", "state has (2,)"]),
        (lambda t, y: -y.double(), TypeError, ["torch.float64", "torch.float32", "y0.to(", "model.to("]),
        (lambda t, y: (-y).to(torch.complex64), TypeError, ["torch.complex64", "torch.float32"]),
        (lambda t, y: y.long(), TypeError, ["torch.int64", "torch.float32"]),
        (lambda t, y: (-y, -y), TypeError, ["structure of y0"]),
        (lambda t, y: [-y], TypeError, ["structure of y0"]),
        (lambda t, y: None, TypeError, ["NoneType", "not a tensor"]),
        (lambda t, y: 1.0, TypeError, ["float", "not a tensor"]),
        (lambda t, y: np.ones(2), TypeError, ["ndarray", "not a tensor"]),
        (lambda y, t: -y, ValueError, ["yours is f(y, t)", "lambda t, y: f(y, t)", "returned shape ()"]),
        (Field(), ValueError, ["yours is f(y, t)", "lambda t, y: f(y, t)"]),
    ],
)
def test_wrong_results_of_f(f, kind, parts):
    refused(kind, *parts, f=f)


def test_an_error_of_f_itself_says_how_f_was_called():
    def fails(t, y):
        return y[:, :, 0]

    with pytest.raises(IndexError) as caught:
        solve(fails, torch.ones(3, 2), T)
    assert "torchaca called f(t, y) with t = 0.0 and y of shape (3, 2)" in "\n".join(caught.value.__notes__)


def test_an_error_of_an_f_that_takes_the_state_first_says_so():
    with pytest.raises(TypeError, match=r"yours is f\(x, t\): pass lambda t, y: f\(y, t\)"):
        solve(Swapped(), torch.ones(3, 2), T)


def test_a_later_error_of_f_comes_through_as_it_is():
    def f(t, y):
        if t > 0.5:
            raise KeyError("mine")
        return -y

    with pytest.raises(KeyError, match="mine") as caught:
        solve(f, torch.ones(2), T)
    assert not hasattr(caught.value, "__notes__")


def test_wrong_results_of_f_in_a_nested_state_name_the_place():
    refused(
        ValueError,
        "returned shape (1,) for y['v'][0] where the state has (3,)",
        f=lambda t, y: {"x": -y["x"], "v": (-y["v"][0][:1],)},
        y0=NESTED,
    )
    refused(
        TypeError,
        "torch.float64 for y['x']",
        f=lambda t, y: {"x": -y["x"].double(), "v": (-y["v"][0],)},
        y0=NESTED,
    )
    refused(TypeError, "structure of y0", f=lambda t, y: {"x": -y["x"]}, y0=NESTED)


def test_half_precision_of_autocast_is_widened():
    sol = solve(lambda t, y: (-y).bfloat16(), torch.ones(2), T, rtol=1e-2, atol=1e-2)
    assert sol.ys.dtype == torch.float32
    assert sol.ys[-1, 0].item() == pytest.approx(math.exp(-1), abs=0.01)


# The initial state.


@pytest.mark.parametrize(
    ("y0", "kind", "parts"),
    [
        (torch.ones(2, dtype=torch.int64), TypeError, ["y0", "torch.int64", "y0.float()"]),
        (torch.ones(2, dtype=torch.bool), TypeError, ["y0", "torch.bool", "y0.float()"]),
        (1.0, TypeError, ["y0 is a float", "torch.as_tensor(y0"]),
        (3, TypeError, ["y0 is an int", "torch.as_tensor(y0"]),
        (None, TypeError, ["y0", "NoneType"]),
        ("y", TypeError, ["y0 is a str"]),
        ([1.0, 2.0], TypeError, ["y0[0] is a float", "torch.as_tensor(y0[0]"]),
        (np.ones(2), TypeError, ["y0 is a ndarray", "torch.as_tensor(y0"]),
        ((), ValueError, ["y0 holds no tensor"]),
        ({"x": ()}, ValueError, ["y0 holds no tensor"]),
        ({"x": torch.ones(2), "v": torch.ones(2).int()}, TypeError, ["y0['v']", "torch.int32"]),
        ((torch.ones(2), torch.ones(2, device="meta")), ValueError, ["several devices", "cpu", "meta"]),
    ],
)
def test_wrong_initial_states(y0, kind, parts):
    refused(kind, *parts, y0=y0)


# Times.


@pytest.mark.parametrize(
    ("t", "kind", "parts"),
    [
        ([], ValueError, ["t is empty", "[t0, t1]"]),
        (torch.empty(0), ValueError, ["t is empty"]),
        ([0.0, 1.0, 0.5], ValueError, ["t[2] = 0.5 follows t[1] = 1", "sort it"]),
        ([1.0, 0.5, 0.7, 0.0], ValueError, ["t[2] = 0.7 follows t[1] = 0.5", "increasing or decreasing"]),
        ([0.0, 0.5, 0.2, 0.1, 1.0], ValueError, ["t[2] = 0.2 follows t[1] = 0.5"]),
        ([0.0, 1.0, 0.0], ValueError, ["t[2] = 0 follows t[1] = 1"]),
        ([0.0, math.nan], ValueError, ["t[1] is nan", "finite"]),
        ([math.inf, 1.0], ValueError, ["t[0] is inf", "finite"]),
        ([0.0, 1.0, -math.inf], ValueError, ["t[2] is -inf"]),
        (torch.zeros(2, 3), ValueError, ["t must be one-dimensional, got shape (2, 3)", "batch=1"]),
        (1.0, ValueError, ["t must be one-dimensional, got shape ()"]),
        (torch.zeros(1, 2, 3), ValueError, ["t must be one-dimensional, got shape (1, 2, 3)"]),
        (None, TypeError, ["t must be a list, an array or a tensor of real numbers, got None"]),
        ("soon", TypeError, ["t must be a list, an array or a tensor of real numbers, got 'soon'"]),
        ({0.0, 1.0}, TypeError, ["t must be a list, an array or a tensor of real numbers"]),
        ([[0.0], [1.0, 2.0]], TypeError, ["t must be a list, an array or a tensor of real numbers"]),
        ([0.0, 1j], TypeError, ["t must", "numbers"]),
        (torch.tensor([0.0, 1j]), TypeError, ["t must", "real numbers", "1.j"]),
        (torch.tensor([False, True]), TypeError, ["t must", "real numbers", "True"]),
    ],
)
def test_wrong_times(t, kind, parts):
    refused(kind, *parts, t=t)


# Names and options.


@pytest.mark.parametrize(
    ("options", "kind", "parts"),
    [
        ({"rtoll": 1e-3}, TypeError, ["'rtoll'", "Did you mean 'rtol'?"]),
        ({"step_size": 0.1}, TypeError, ["'step_size'", "no option"]),
        ({"options": {}}, TypeError, ["'options'"]),
        ({"first_step": 0.1}, TypeError, ["'first_step'"]),
        ({"max_step": 10}, TypeError, ["'max_step'", "dt_max="]),
        ({"method": "dopri"}, ValueError, ["unknown method 'dopri'", "Did you mean 'dopri"]),
        ({"method": "DOPRI5"}, ValueError, ["unknown method 'DOPRI5'", "Did you mean 'Dopri5'?"]),
        ({"method": "magic"}, ValueError, ["unknown method 'magic'", "Known:", "dopri5", "rk4"]),
        ({"method": None}, TypeError, ["method must be a name or a method", "None"]),
        ({"method": 5}, TypeError, ["method must be a name or a method", "5"]),
        ({"gradient": "acca"}, ValueError, ["unknown gradient 'acca'", "Did you mean 'aca'?"]),
        ({"gradient": "backprop"}, ValueError, ["unknown gradient 'backprop'", "Known:", "direct"]),
        (
            {"gradient": aca.ACA},
            TypeError,
            ["gradient=ACA is a class: write gradient=ACA(), or gradient='aca'"],
        ),
        ({"gradient": None}, TypeError, ["gradient must be a name or an object", "None"]),
        ({"on_failure": "ignore"}, ValueError, ["on_failure", "'ignore'", "'raise', 'status', 'nan'"]),
        ({"args": [1.0]}, TypeError, ["args is a tuple", "args=([1.0],)"]),
        ({"args": torch.ones(2)}, TypeError, ["args is a tuple"]),
        ({"args": 3.0}, TypeError, ["args is a tuple", "args=(3.0,)"]),
        ({"norm": "l2"}, ValueError, ["unknown norm 'l2'", "'rms', 'max'"]),
        ({"norm": 2}, TypeError, ["norm", "2"]),
        ({"control": "PI"}, TypeError, ["control", "'PI'"]),
        ({"control": aca.PI_CONTROL}, TypeError, ["control"]),
        ({"control": aca.Adaptive(), "rtol": 1e-3}, ValueError, ["rtol= has no effect beside control="]),
        ({"control": aca.FixedSteps(dt=0.1), "dt": 0.1}, ValueError, ["dt= has no effect beside control="]),
    ],
)
def test_wrong_names_and_options(options, kind, parts):
    refused(kind, *parts, **options)


def test_f_must_be_callable():
    refused(TypeError, "f must be callable as f(t, y)", "tensor", f=torch.ones(2))


@pytest.mark.parametrize(
    ("options", "kind", "parts"),
    [
        ({}, ValueError, ["rk4 has no error estimate", "dt=, n_steps= or grid=", "dopri5"]),
        ({"rtol": 1e-3}, ValueError, ["rtol= has no effect", "rk4 has no error estimate", "n_steps="]),
        ({"max_steps": 5}, ValueError, ["max_steps= has no effect", "rk4"]),
        ({"control": aca.Adaptive()}, ValueError, ["rk4", "adaptive"]),
        ({"dt": 0.1, "n_steps": 3}, ValueError, ["only one of dt, n_steps"]),
        ({"dt": 0.1, "rtol": 1e-3}, ValueError, ["rtol= has no effect with fixed steps (dt=)"]),
        ({"n_steps": 3, "jump_ts": [0.5]}, ValueError, ["jump_ts= has no effect with fixed steps"]),
        ({"n_steps": 3, "dt0": 0.5}, ValueError, ["dt0= has no effect with fixed steps"]),
        ({"n_steps": 3, "dt_max": 0.5}, ValueError, ["dt_max= has no effect with fixed steps"]),
        ({"n_steps": 3, "norm": "max"}, ValueError, ["norm= has no effect with fixed steps"]),
        ({"dt": 0.0}, ValueError, ["dt is the size of a step, a positive number; got 0.0"]),
        ({"dt": -0.1}, ValueError, ["dt is the size of a step, a positive number; got -0.1"]),
        ({"dt": math.nan}, ValueError, ["dt is the size of a step", "nan"]),
        ({"dt": math.inf}, ValueError, ["dt is the size of a step", "inf"]),
        ({"n_steps": 0}, ValueError, ["n_steps is a whole number of at least 1, got 0"]),
        ({"n_steps": -3}, ValueError, ["n_steps", "got -3"]),
        ({"n_steps": 2.5}, ValueError, ["n_steps is a whole number", "got 2.5"]),
        ({"n_steps": math.inf}, ValueError, ["n_steps is a whole number", "got inf"]),
        ({"n_steps": math.nan}, ValueError, ["n_steps is a whole number", "got nan"]),
        ({"n_steps": "3"}, ValueError, ["n_steps is a whole number", "got '3'"]),
        ({"grid": [0.0, 0.5]}, ValueError, ["grid must end where t does: 0.5 is not 1"]),
        ({"grid": [0.1, 1.0]}, ValueError, ["grid must start where t does: 0.1 is not 0"]),
        ({"grid": [1.0, 0.0]}, ValueError, ["grid must start where t does"]),
        ({"grid": [0.0, 0.5, 0.5, 1.0]}, ValueError, ["grid[2] repeats 0.5"]),
        ({"grid": [0.0, 0.7, 0.5, 1.0]}, ValueError, ["grid[2] = 0.5 follows grid[1] = 0.7"]),
        ({"grid": [0.0, math.nan, 1.0]}, ValueError, ["grid[1] is nan"]),
        ({"grid": "fine"}, TypeError, ["grid must be a list", "'fine'"]),
        ({"grid": []}, ValueError, ["grid is empty"]),
    ],
)
def test_wrong_fixed_steps(options, kind, parts):
    refused(kind, *parts, method="rk4", **options)


def test_a_whole_number_of_steps_may_be_a_float():
    assert len(solve(decay, torch.ones(2), T, method="rk4", n_steps=4.0).steps) == 5


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.adaptive])
def test_never_a_single_silent_step(name):
    """rk4 over [0, 1] without a step size: an error, not one step of 1."""
    refused(ValueError, name, "has no error estimate", "dt=", method=name)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"rtol": -1e-3}, ["rtol must not be negative, got -0.001"]),
        ({"atol": -1e-3}, ["atol must not be negative, got -0.001"]),
        ({"rtol": math.nan}, ["rtol"]),
        ({"atol": torch.tensor([1.0, math.nan])}, ["atol"]),
        ({"rtol": 0.0, "atol": 0.0}, ["rtol and atol cannot both be zero"]),
        ({"rtol": torch.ones(3)}, ["rtol of shape (3,)", "y0 of shape (2,)"]),
        ({"atol": torch.ones(5, 2)}, ["atol of shape (5, 2)", "y0 of shape (2,)"]),
        ({"dt0": -1.0}, ["dt0", "-1.0"]),
        ({"dt_min": 1.0, "dt_max": 0.5}, ["dt_min <= dt_max", "1.0", "0.5"]),
        ({"max_steps": 0}, ["max_steps", "0"]),
        ({"jump_ts": [math.nan]}, ["jump_ts", "nan"]),
    ],
)
def test_wrong_adaptive_settings(options, parts):
    refused(ValueError, *parts, **options)


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_wrong_tolerances_of_a_nested_state(name):
    loose = {"f": decay_nested, "y0": NESTED}
    refused(ValueError, f"{name} has 3 entries", "2 tensors", **loose, **{name: (1.0, 1.0, 1.0)})
    refused(ValueError, name, "(5,)", **loose, **{name: {"x": torch.ones(5), "v": (torch.ones(3),)}})


@pytest.mark.parametrize("name", ["rtol", "atol", "dt", "dt0", "dt_min", "dt_max", "max_steps", "jump_ts"])
def test_words_where_numbers_belong(name):
    refused((TypeError, ValueError), name, "many", **{name: "many"})


def test_gradients_of_every_name_work():
    for name in GRADIENTS:
        method = "alf" if name == "mali" else "dopri5"
        assert solve(decay, torch.ones(2), T, method=method, gradient=name).status == "success"


def test_did_you_mean():
    assert did_you_mean("rtoll", ["rtol", "atol"]) == " Did you mean 'rtol'?"
    assert did_you_mean("RK4", ["rk4", "euler"]) == " Did you mean 'rk4'?"
    assert did_you_mean("dopri", ["dopri8", "Dopri5", "dopri5"]) == " Did you mean 'dopri5'?"
    assert did_you_mean("DOPRI5", ["dopri8", "Dopri5", "dopri5"]) == " Did you mean 'Dopri5'?"
    assert did_you_mean("xyz", ["b", "a"]) == " Known: a, b."
    assert did_you_mean("xyz", []) == " Known: ."
    assert did_you_mean("zzz", ["b", "a"]) == " Known: a, b."
    assert shorten("x" * 100) == "'" + "x" * 56 + "..."
    assert shorten([1]) == "[1]"


# What goes wrong in the numbers.


def with_nan_weight():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0, 1] = math.nan
    return lambda t, y: net(y)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, t, y):
        return -self.dropout(y)


def noisy(t, y):
    return -y + torch.randn_like(y)


def stiff(t, y):
    return -1e5 * (y - torch.cos(t))


def jumping(t, y):
    return torch.where(t < 0.5, 0.0, 1e6).to(y.dtype).expand(y.shape)


ONES = torch.ones(2, dtype=DOUBLE)

FAILURES = {
    "y0": (decay, torch.tensor([[1.0, 2.0], [math.nan, 1.0]]), T, {}),
    "y0 infinite": (decay, torch.tensor(math.inf), T, {}),
    "parameter": (with_nan_weight(), torch.ones(3, 2), T, {}),
    "f": (lambda t, y: -y * torch.sqrt(1 - t), ONES, [0.0, 0.5, 0.9, 1.5, 2.0], {}),
    "f at the start": (lambda t, y: y / t, ONES, T, {}),
    "blow-up": (lambda t, y: y**2, ONES, [0.0, 0.5, 2.0], {}),
    "blow-up float32": (lambda t, y: y**2, torch.ones(2), [0.0, 0.5, 2.0], {"rtol": 1e-6}),
    "blow-up backwards": (lambda t, y: -(y**2), ONES, [0.0, -0.5, -2.0], {"rtol": 1e-9, "atol": 1e-9}),
    "random": (noisy, torch.ones(50), T, {"max_steps": 200}),
    "random dropout": (Dropping(), torch.ones(50), T, {"max_steps": 60}),
    "stiff": (stiff, ONES, [0.0, 1e-3, 10.0], {"max_steps": 200}),
    "tolerance": (
        lambda t, y: torch.cos(5 * t) + y,
        torch.zeros(2),
        T,
        {"rtol": 1e-12, "atol": 1e-13, "max_steps": 300},
    ),
    "jump": (jumping, torch.zeros(2, dtype=DOUBLE), T, {"rtol": 1e-12, "atol": 1e-12}),
    "dt-min": (lambda t, y: -50 * y, ONES, T, {"dt_min": 0.5}),
    "max-steps": (lambda t, y: torch.cos(t) * y, ONES, [0.0, 1.0, 40.0], {"max_steps": 10, "rtol": 1e-8}),
    "step-size": (
        decay,
        ONES,
        T,
        {"method": ScriptedMethod((0.5, 2.0)), "rtol": 0.0, "atol": 1.0, "dt0": 0.25},
    ),
}
WARNS = pytest.mark.filterwarnings("ignore:f draws random numbers")


def kind_of(case):
    return next(kind for kind in sorted(KINDS, key=len, reverse=True) if case.startswith(kind))


def failure(case, **options):
    f, y0, t, given = FAILURES[case]
    if "method" in given:
        given = given | {"method": ScriptedMethod(given["method"].errors)}
    with pytest.raises(SolverError) as caught:
        solve(f, y0, t, **given, **options)
    return caught.value


def test_every_kind_is_shown():
    shown_elsewhere = {
        "gradient",
        "reconstruction",
        "gradient-error",
        "event",
        "grazing",
        "zeno",
    }  # test_trace, test_mali, test_grad_rtol, events/
    assert {kind_of(case) for case in FAILURES} == set(KINDS) - shown_elsewhere


@WARNS
@pytest.mark.parametrize("case", FAILURES)
def test_kind_place_and_words(case):
    t = FAILURES[case][2]
    error = failure(case)
    assert error.kind == kind_of(case)
    assert min(t) <= error.t <= max(t)
    assert 0 <= error.dt < math.inf
    assert not error.backward
    first, second, third, fourth = str(error).split("\n")
    assert first.startswith(
        f"SolverError[{error.kind}] in the forward pass: stopped at t = {error.t:.10g} of ["
    )
    assert f"[{t[0]:g}, {t[-1]:g}]" in first
    assert f"{error.stats.accepted} accepted and {error.stats.rejected} rejected steps" in first
    assert re.fullmatch(r"  step size \S+; .+", second)
    assert third.startswith("  ")
    assert re.fullmatch(r"  try: .+", fourth)


WORDS = {
    "y0": ["y0 is not finite: component (1, 0) is nan"],
    "y0 infinite": ["y0 is not finite: component () is inf"],
    "parameter": ["net", "weight holds nan or inf", "optimizer"],
    "f": ["f is not finite at t = 1", "for a finite y", "component (0,) is nan", "clamp"],
    "f at the start": ["f is not finite at t = 0", "component (0,) is inf"],
    "blow-up": ["component (0,)", "f stayed finite", "leaves to infinity", "weight decay"],
    "random": ["two evaluations of f at the same (t, y) differ", "model.eval()"],
    "stiff": ["stability, not accuracy", "max_steps = 200"],
    "tolerance": ["below the rounding of torch.float32", "rtol >= ", "float64"],
    "jump": ["f changes", "jump_ts=[0.5]"],
    "dt-min": ["too large at dt_min = 0.5"],
    "max-steps": ["max_steps = 10 trials are used up", "max_steps"],
    "step-size": ["lost in the rounding of t"],
}


@WARNS
@pytest.mark.parametrize("case", WORDS)
def test_words(case):
    message = str(failure(case))
    for part in WORDS[case]:
        assert part in message, f"no {part!r} in {message!r}"


REACHED = {"f": 3, "blow-up": 2, "blow-up float32": 2, "blow-up backwards": 2, "stiff": 2, "max-steps": 2}


@WARNS
@pytest.mark.parametrize("case", FAILURES)
def test_partial_solution_is_the_valid_prefix(case):
    _, y0, t, _ = FAILURES[case]
    error = failure(case)
    partial, n = error.partial, REACHED.get(case, 1)
    assert partial.ts.tolist() == pytest.approx(t[:n])
    assert partial.ys.shape == (n, *y0.shape)
    assert torch.equal(partial.ys[0], y0) or not torch.isfinite(y0).all()
    assert torch.isfinite(partial.ys[1:]).all()
    assert partial.stats is error.stats
    assert partial.status == error.kind
    assert partial.steps[0] == t[0]
    assert partial.steps[-1] == error.t
    assert len(partial.steps) == error.stats.accepted + 1
    assert not partial.ys.requires_grad


EXACT = {
    "f": lambda t: torch.exp(2 / 3 * ((1 - t) ** 1.5 - 1)),
    "blow-up": lambda t: 1 / (1 - t),
    "blow-up backwards": lambda t: 1 / (1 + t),
    "max-steps": lambda t: torch.exp(torch.sin(t)),
}


@pytest.mark.parametrize("case", EXACT)
def test_partial_solution_is_right(case):
    partial = failure(case).partial
    exact = EXACT[case](partial.ts.double())
    torch.testing.assert_close(partial.ys[:, 0].double(), exact, rtol=5e-3, atol=0)


def test_where_it_stopped():
    assert failure("f").t == pytest.approx(1.0, abs=1e-6)
    assert failure("blow-up").t == pytest.approx(1.0, abs=1e-3)
    assert failure("blow-up backwards").t == pytest.approx(-1.0, abs=1e-6)
    assert failure("jump").t == pytest.approx(0.5, abs=1e-12)
    assert failure("y0").t == 0.0
    assert failure("dt-min").dt == pytest.approx(0.5)


def test_costs_of_a_failure():
    """A broken start is seen at once."""
    for case in ("y0", "y0 infinite", "parameter", "f at the start"):
        assert failure(case).stats.nfe <= 5
        assert failure(case).stats.rejected == 0
    stats = failure("max-steps").stats
    assert stats.accepted + stats.rejected == 10


def test_a_nan_argument_is_no_fault_of_f():
    with pytest.raises(SolverError) as caught:
        solve(lambda t, y, a: -a * y, torch.ones(2), T, args=(torch.tensor(math.nan),))
    assert caught.value.kind == "parameter"
    assert "args[0]" in str(caught.value)


def test_the_place_in_a_nested_state():
    def f(t, y):
        return {"x": -y["x"], "v": (y["v"][0] * torch.tensor([1.0, math.nan, 1.0]),)}

    with pytest.raises(SolverError, match=r"component \(1,\) of y\['v'\]\[0\] is nan"):
        solve(f, NESTED, T)
    broken = {"x": torch.tensor([1.0, math.inf]), "v": (torch.ones(3),)}
    with pytest.raises(SolverError, match=r"y0 is not finite: component \(1,\) of y\['x'\] is inf"):
        solve(decay_nested, broken, T)


def test_leaving_the_range_of_half_precision_is_not_called_stiff():
    """float16 ends at 65504; the solver's own state does not."""
    with pytest.raises(SolverError) as caught:
        solve(lambda t, y: y, torch.full((2,), 1e4, dtype=torch.float16), [0.0, 1.0, 5.0], max_steps=500)
    assert caught.value.kind != "stiff"
    assert "float16" in str(caught.value)


def test_dropout_is_warned_of():
    dropout = nn.Dropout(0.5)
    with pytest.warns(UserWarning, match=r"random numbers.*model\.eval\(\)"):
        solve(lambda t, y: -dropout(y), torch.ones(50), [0.0, 0.1])


def test_errors_can_be_pickled():
    error = failure("blow-up")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.kind, copy.t, copy.dt, copy.backward) == (error.kind, error.t, error.dt, error.backward)
    assert copy.stats == error.stats


# On request, a failure is a result.


@pytest.mark.parametrize("on_failure", ["status", "nan"])
@WARNS
@pytest.mark.parametrize("case", [case for case in FAILURES if case != "step-size"])
def test_status_instead_of_an_exception(case, on_failure):
    f, y0, t, given = FAILURES[case]
    sol = solve(f, y0, t, **given, on_failure=on_failure)
    n = REACHED.get(case, 1)
    assert sol.status == kind_of(case)
    assert isinstance(sol.failure, SolverError)
    rows = n if on_failure == "status" else len(t)
    assert sol.ts.tolist() == pytest.approx(t[:rows])
    assert sol.ys.shape == (rows, *y0.shape)
    assert torch.isfinite(sol.ys[1:n]).all()
    assert torch.isnan(sol.ys[n:]).all()


def test_nan_fills_every_leaf_of_a_nested_state():
    def f(t, y):
        return {"x": y["x"] ** 2, "v": (-y["v"][0],)}

    sol = solve(f, NESTED, [0.0, 0.5, 2.0], on_failure="nan")
    assert sol.ys["x"].shape == (3, 2)
    assert sol.ys["v"][0].shape == (3, 3)
    assert torch.isfinite(sol.ys["x"][:2]).all()
    assert torch.isnan(sol.ys["x"][2]).all()
    assert torch.isnan(sol.ys["v"][0][2]).all()


@pytest.mark.parametrize("on_failure", ["status", "nan"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_valid_prefix_can_be_differentiated(gradient, on_failure):
    """y' = k y until t = 1, nan from there on: d y(0.9) / dk = 0.9 exp(0.9 k)."""
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return k * y if t <= 1 else y * math.nan

    method, tolerance = ("alf", 1e-6) if gradient == "mali" else ("dopri5", 1e-8)
    sol = solve(
        f, y0, [0.0, 0.5, 0.9, 1.5], gradient=gradient, on_failure=on_failure, method=method, rtol=tolerance,
        atol=tolerance,
    )  # fmt: skip
    assert sol.status == "f"
    grad_k, grad_y0 = torch.autograd.grad(sol.ys[2, 0], [k, y0])
    assert grad_k.item() == pytest.approx(0.9 * math.exp(0.63), rel=1e-5)
    assert grad_y0.item() == pytest.approx(math.exp(0.63), rel=1e-5)


def test_fixed_steps_into_nan_end_with_a_status():
    sol = solve(lambda t, y: -y * torch.sqrt(1 - t), ONES, [0.0, 0.5, 2.0], method="rk4", n_steps=4)
    assert sol.status == "non-finite"
    assert torch.isfinite(sol.ys[:2]).all()
    assert torch.isnan(sol.ys[2]).all()
    assert solve(decay, ONES, T, method="rk4", n_steps=4).status == "success"


def test_success_has_no_failure():
    sol = solve(COSINE.f, COSINE.y0, COSINE.times(3), on_failure="status")
    assert sol.status == "success"
    assert sol.failure is None
    assert len(sol.ts) == 3


OPTIMISED = """
import math, warnings
import torch
import test_solve_errors as cases
from torchaca import solve, SolverError

warnings.simplefilter("ignore")
torch.manual_seed(0)
for case, (f, y0, t, options) in cases.FAILURES.items():
    try:
        solve(f, y0, t, **options)
    except SolverError as error:
        print(f"{case}: {error.kind}")
for bad in ({"rtoll": 1}, {"method": "dopri"}, {"method": "rk4"}, {"rtol": -1.0}, {"n_steps": 0}):
    try:
        solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], **bad)
    except (TypeError, ValueError) as error:
        print(type(error).__name__)
print("debug", __debug__)
"""


def test_the_same_under_python_O():
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(Path(aca.__file__).parents[1]), str(here)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-O", "-c", OPTIMISED],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "debug False"
    assert lines[: len(FAILURES)] == [f"{case}: {kind_of(case)}" for case in FAILURES]
    assert lines[len(FAILURES) :] == ["TypeError", *["ValueError"] * 4]
