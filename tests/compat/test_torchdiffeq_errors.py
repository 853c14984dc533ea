"""Failures of `odeint`: what torchdiffeq's users catch and look for, and our diagnosis behind it."""

import copy
import functools
import math
import pickle

import pytest
import torch
import torchdiffeq
from torch import nn

import torchaca as aca
from torchaca import SolverError
from torchaca.compiled.search import Bounds, State, may_go_on
from torchaca.loops.pace import Limits

F64 = torch.float64
INTERFACES = ("odeint", "odeint_adjoint")
interfaces = pytest.mark.parametrize("interface", INTERFACES)
T = torch.tensor([0.0, 0.25, 2.0], dtype=F64)


class Field(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.rate = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, t, y):
        return self.function(t, self.rate * y)


def decay(t, y):
    return -y


def nan_after_a_half(t, y):
    return y * torch.where(t < 0.5, 1.0, math.nan)


FAILURES = {
    "too many steps": (lambda t, y: torch.cos(40 * t) * y, 1.0, {"max_num_steps": 5}, "max-steps"),
    "blow-up": (lambda t, y: y**2, 1.0, {}, "blow-up"),
    "blow-up with a smallest step": (lambda t, y: y**2, 1.0, {"min_step": 1e-3}, "blow-up"),
    "nan": (nan_after_a_half, 1.0, {}, "f"),
    "nan with a smallest step": (nan_after_a_half, 1.0, {"min_step": 1e-2}, "f"),
    "nan at the start": (lambda t, y: y / t, 1.0, {}, "f"),
    "nan at the start with a smallest step": (lambda t, y: y / t, 1.0, {"min_step": 1e-2}, "f"),
    "y0": (decay, math.nan, {}, "y0"),
    "y0 with a first step": (decay, math.nan, {"first_step": 0.1}, "y0"),
    "y0 with a smallest step": (decay, math.nan, {"min_step": 0.1}, "y0"),
}

WORDS = ("underflow in dt ", "max_num_steps exceeded (5>=5)", "non-finite values in state `y`: ")


def failure(library, interface, case, nested=False):
    f, start, options, _ = FAILURES[case]
    y0 = torch.full((2,), start, dtype=F64)
    field = Field(f)
    if nested:
        field.forward = lambda t, y: (f(t, field.rate * y[0]), -y[1])
        y0 = (y0, torch.ones(1, dtype=F64))
    with pytest.raises(AssertionError) as caught:
        getattr(library, interface)(field, y0, T, rtol=1e-3, options=options)
    return caught.value


@interfaces
@pytest.mark.parametrize("nested", [False, True], ids=["tensor", "tuple"])
@pytest.mark.parametrize("case", FAILURES)
def test_the_words_begin_as_torchdiffeqs(case, interface, nested):
    ours, theirs = failure(aca, interface, case, nested), failure(torchdiffeq, interface, case, nested)
    assert sum(str(theirs).startswith(words) for words in WORDS) == 1
    for words in WORDS:
        assert str(ours).startswith(words) == str(theirs).startswith(words)
    assert isinstance(ours, SolverError)
    assert ours.kind == FAILURES[case][3]
    assert f"\nSolverError[{ours.kind}] in the forward pass: stopped at t = " in str(ours)
    assert "\n  try: " in str(ours)


@interfaces
def test_the_valid_part_is_there(interface):
    error = failure(aca, interface, "blow-up")
    assert error.partial.ts.tolist() == [0.0, 0.25]
    torch.testing.assert_close(error.partial.ys[1], torch.full((2,), 4 / 3, dtype=F64), rtol=1e-2, atol=0)
    assert error.t == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("case", FAILURES)
def test_copies(case, make):
    for error in (failure(aca, "odeint", case), solver_error(case)):
        other = make(error)
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert (other.kind, other.t, other.dt, other.stats, other.backward) == (
            error.kind, error.t, error.dt, error.stats, error.backward
        )  # fmt: skip
        torch.testing.assert_close(other.partial.ys, error.partial.ys, rtol=0, atol=0, equal_nan=True)
        assert other.partial.steps == error.partial.steps


def solver_error(case):
    """`solve` knows nothing of torchdiffeq."""
    f, start, options, _ = FAILURES[case]
    names = {"max_num_steps": "max_steps", "min_step": "dt_min", "first_step": "dt0"}
    given = {names[name]: value for name, value in options.items()}
    with pytest.raises(SolverError) as caught:
        aca.solve(f, torch.full((2,), start, dtype=F64), T, rtol=1e-5, **given)
    assert not isinstance(caught.value, AssertionError)
    return caught.value


def test_compiled_solves_stop_there_too():
    """A rejection at the smallest step that would be accepted: nan, and the next one is no better."""
    limits = Limits(
        sign=1.0,
        smallest=0.0,
        dt_min=0.1,
        dt_max=1.0,
        max_trials=2**31 - 1,
        most_rejections=86,
        fallback=0.1,
    )
    bounds = Bounds.of(torch.tensor(Bounds(limits, stop=2.0, reach=2.0).packed(), dtype=F64))
    for size, goes_on in ((0.1, False), (0.2, True)):
        numbers = dict.fromkeys(State.__dataclass_fields__, 0.0) | {
            "dt": 0.1,
            "rejections": 1,
            "rejected_size": size,
        }
        state = State(*torch.tensor([*numbers.values()], dtype=F64).unbind())
        assert bool(may_go_on(state, bounds, room=8)) == goes_on


def test_a_lane_that_ends_in_nan_at_the_smallest_step_is_an_error():
    """It went on for max_num_steps trials, by default 2^31."""

    def solved(y0):
        return aca.odeint(nan_after_a_half, y0, T, rtol=1e-3, options={"min_step": 1e-2})

    with pytest.raises(AssertionError, match="non-finite values in state `y`"):
        torch.func.vmap(solved)(torch.ones(3, 2, dtype=F64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_num_steps": 3}, r"max_num_steps exceeded \(3>=3\)"),
        ({"max_step": 0.4, "first_step": 1e-3, "max_num_steps": 4}, r"max_num_steps exceeded \(4>=4\)"),
    ],
)
def test_failures_of_the_backward_pass(options, words):
    f, y0 = Field(lambda t, y: -30 * y), torch.ones(2, dtype=F64)  # grows like exp(30 t) backwards
    errors = []
    for library in (aca, torchdiffeq):
        ys = library.odeint_adjoint(f, y0, torch.tensor([0.0, 1.0], dtype=F64), adjoint_options=options)
        with pytest.raises(AssertionError, match=f"^{words}") as caught:
            ys.sum().backward()
        errors.append(caught.value)
    ours, _ = errors
    assert isinstance(ours, SolverError)
    assert ours.backward
    assert "in the backward pass: " in str(ours)
    assert str(pickle.loads(pickle.dumps(ours))) == str(ours)


REFUSED = {
    "y0": (lambda solve: solve(decay, 1.0, T), TypeError),
    "times in two dimensions": (lambda solve: solve(decay, torch.ones(2), T[None]), ValueError),
    "times that turn": (lambda solve: solve(decay, torch.ones(2), torch.tensor([0.0, 1.0, 0.5])), ValueError),
    "times that are nan": (lambda solve: solve(decay, torch.ones(2), torch.tensor([0.0, math.nan])), ValueError),
    "rtol of a tuple": (lambda solve: solve(decay, (torch.ones(2),), T, rtol=[1e-3, 1e-3]), ValueError),
    "first step": (lambda solve: solve(decay, torch.ones(2), T, options={"first_step": -0.1}), ValueError),
} | {
    f"{name} with a gradient": (
        lambda solve, name=name: solve(decay, torch.ones(2), T, **{name: torch.tensor(1e-3, requires_grad=True)}),
        ValueError,
    )
    for name in ("rtol", "atol")
} | {
    f"grid that {name}": (
        lambda solve, grid=grid: solve(
            decay, torch.ones(2), T, method="rk4", options={"grid_constructor": lambda f, y0, t: torch.tensor(grid)}
        ),
        ValueError,
    )
    for name, grid in (("starts late", [0.1, 2.0]), ("ends early", [0.0, 1.0]))
}  # fmt: skip


@interfaces
@pytest.mark.parametrize("case", REFUSED)
def test_what_torchdiffeq_asserts_about_arguments(case, interface):
    call, ours = REFUSED[case]
    extra = {} if interface == "odeint" else {"adjoint_params": ()}
    for library, also in ((torchdiffeq, Exception), (aca, ours)):
        with pytest.raises(AssertionError) as caught:
            call(functools.partial(getattr(library, interface), **extra))
        assert isinstance(caught.value, also)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), AssertionError)


def test_errors_of_f_stay_what_they_are():
    class OwnError(ValueError):
        pass

    def f(t, y):
        raise OwnError("mine")

    for interface in INTERFACES:
        with pytest.raises(OwnError, match="mine") as caught:
            getattr(aca, interface)(f, torch.ones(1), T)
        assert not isinstance(caught.value, AssertionError)
