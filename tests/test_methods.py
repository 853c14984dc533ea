"""The laws of a method, for every row of METHODS: order conditions, measured order, purity, domain."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from covering import covering
from problems import COSINE, DOUBLE, SPIRAL, ClosedForm
from rooted_trees import dense_residuals, largest, residuals, rooted_trees, rooted_trees_up_to
from stubs import Counted

import torchaca
from tools import list_methods
from torchaca import METHODS, RungeKutta, solve
from torchaca.core import Carrying
from torchaca.methods import ALIASES, BOSH3, CONSTRUCTORS, DOPRI5, FEHLBERG5, HEUN_EULER, RK4

NAMES = list(METHODS)
TABLEAUS = [name for name, method in METHODS.items() if isinstance(method, RungeKutta)]
EMBEDDED = [name for name in TABLEAUS if METHODS[name].adaptive]

# Orders as published, written once more: (order, of the embedded method, of the interpolant, stages, FSAL).
PUBLISHED = {
    "euler": (1, 0, 1, 1, False),
    "midpoint": (2, 0, 2, 2, False),
    "heun2": (2, 0, 2, 2, False),
    "heun3": (3, 0, 2, 3, False),
    "ralston": (2, 0, 2, 2, False),
    "fehlberg2": (2, 1, 2, 3, False),
    "rk4": (4, 0, 3, 4, False),
    "rk4_38": (4, 0, 3, 4, False),
    "heun_euler": (2, 1, 2, 2, False),
    "bosh3": (3, 2, 3, 4, True),
    "fehlberg5": (5, 4, 4, 6, False),
    "dopri5": (5, 4, 4, 7, True),
    "tsit5": (5, 4, 4, 7, True),
    "dopri8": (8, 7, 7, 13, False),
}
WITH_F1 = [name for name in TABLEAUS if METHODS[name].f1_index is not None]
"""Methods one of whose stages is f(t1, y1)."""
ROUNDED = {"tsit5": Fraction(1, 10**29), "dopri8": Fraction(2, 10**17)}
"""Coefficients that their authors rounded; those of all other methods are exact."""

DENSE_ROUNDED = {"tsit5": Fraction(1, 10**27), "dopri8": Fraction(2, 10**15)}


def test_every_method_is_listed():
    assert set(TABLEAUS) >= set(PUBLISHED)
    carrying = {name for name, method in METHODS.items() if isinstance(method, Carrying)}
    assert set(NAMES) - set(TABLEAUS) == carrying  # test_reversible_methods.py
    assert all(METHODS[name].name == name for name in NAMES)
    assert all(method in METHODS.values() for method in ALIASES.values())


def test_which_methods_evaluate_f_at_their_end():
    known = {"bosh3", "dopri5", "tsit5", "fehlberg5", "dopri8"}
    assert set(WITH_F1) & set(PUBLISHED) == known


def test_names_follow_from_the_table():
    """`torchaca.Dopri5()`, and the page of all methods."""
    assert list(METHODS.values()) == [getattr(torchaca, name)() for name in CONSTRUCTORS]
    assert CONSTRUCTORS.keys() <= set(torchaca.__all__)
    assert {"Rk4_38", "HeunEuler", "ReversibleHeun", "ALF", "Dopri8"} <= CONSTRUCTORS.keys()
    assert list_methods.PAGE.read_text() == list_methods.page(), "run `python tools/list_methods.py`"
    assert list_methods.REFERENCE.read_text() == list_methods.reference(), (
        "run `python tools/list_methods.py`"
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_declared_as_published(name):
    method = METHODS[name]
    declared = (method.order, method.embedded_order, method.dense_order, method.stages, method.fsal)
    assert declared == PUBLISHED[name]
    assert method.adaptive == (method.embedded_order > 0)


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_conditions(name):
    method, close = METHODS[name], ROUNDED.get(name, 0)
    assert largest(residuals(method, method.weights, rooted_trees_up_to(method.order))) <= close


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_is_not_higher(name):
    method = METHODS[name]
    assert largest(residuals(method, method.weights, rooted_trees(method.order + 1))) > 1e-6


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_order_conditions(name):
    method, close = METHODS[name], ROUNDED.get(name, 0)
    assert largest(residuals(method, method.embedded, rooted_trees_up_to(method.embedded_order))) <= close
    assert largest(residuals(method, method.embedded, rooted_trees(method.embedded_order + 1))) > 1e-6


@pytest.mark.parametrize("name", TABLEAUS)
def test_dense_order_conditions(name):
    method, close = METHODS[name], DENSE_ROUNDED.get(name, 0)
    assert largest(dense_residuals(method, rooted_trees_up_to(method.dense_order))) <= close
    assert largest(dense_residuals(method, rooted_trees(method.dense_order + 1))) > 1e-6


@pytest.mark.parametrize("name", TABLEAUS)
def test_nodes_are_row_sums(name):
    method, close = METHODS[name], ROUNDED.get(name, 0)
    for c, row in zip(method.nodes, method.matrix, strict=True):
        assert abs(sum(row, Fraction(0)) - c) <= close
        assert 0 <= c <= 1


def one_step(method, problem=SPIRAL, t0=0.3, t1=0.55, dtype=None, **given):
    f = Counted(problem.f)
    y0 = problem.at(t0) if dtype is None else problem.at(t0).to(dtype)
    return method.step(f, t0, t1, y0, **given), f


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("t0", "t1"), [(0.3, 0.55), (0.55, 0.3), (0.1, 0.1 + 0.7)])
def test_f1_is_f_at_the_end(name, t0, t1):
    """The value that the next step starts with is f(t1, y1), bit for bit."""
    method = METHODS[name]
    step, f = one_step(method, t0=t0, t1=t1)
    early = step.hint
    step.at([t0 + 0.4 * (t1 - t0)])
    if method.adaptive:
        assert step.error.shape == step.y0.shape
    late = step.hint
    assert early is None
    assert (late is not None) == (name in WITH_F1)
    if late is not None:
        assert torch.equal(late, f.f(torch.tensor(t1, dtype=DOUBLE), step.y1))
        assert f.times[method.f1_index] == t1
        assert torch.equal(f.states[method.f1_index], step.y1)


@pytest.mark.parametrize("name", TABLEAUS)
def test_evaluates_what_is_asked_for(name):
    method = METHODS[name]
    step, f = one_step(method)
    assert f.nfe == method.stages - method.fsal
    if method.adaptive:
        assert step.error is not None
        assert f.nfe == method.stages
    step.at([0.4])
    step.at([0.5])
    step.basis()
    assert f.nfe == len(method.nodes)


@pytest.mark.parametrize("name", NAMES)
def test_a_hint_saves_an_evaluation_and_changes_no_bit(name):
    method = METHODS[name]
    alone, f = one_step(method)
    given, g = one_step(method, hint=SPIRAL.f(torch.tensor(0.3, dtype=DOUBLE), SPIRAL.at(0.3)))
    assert results_equal(alone, given)
    assert g.nfe == f.nfe - 1
    assert 0.3 not in g.times


def results_equal(one, other):
    same = torch.equal(one.y1, other.y1) and torch.equal(one.f0, other.f0)
    same &= torch.equal(one.at([0.35, 0.5]), other.at([0.35, 0.5])) and torch.equal(
        one.basis(), other.basis()
    )
    return same and (not one.method.adaptive or torch.equal(one.error, other.error))


@pytest.mark.parametrize("name", NAMES)
def test_step_is_pure(name):
    """Same inputs, same bits, in any order of the questions; nothing that went in has changed."""
    method = METHODS[name]
    y0 = SPIRAL.at(0.3)
    f0 = SPIRAL.f(torch.tensor(0.3, dtype=DOUBLE), y0)
    before = y0.clone(), f0.clone()
    first = method.step(Counted(SPIRAL.f), 0.3, 0.55, y0, f0)
    second = method.step(Counted(SPIRAL.f), 0.3, 0.55, y0, f0)
    second.basis()
    second.at([0.4])
    assert results_equal(first, second)
    assert results_equal(first, second)
    assert torch.equal(y0, before[0])
    assert torch.equal(f0, before[1])
    assert torch.equal(first.y0, y0)


@pytest.mark.parametrize("name", NAMES)
def test_stays_inside_the_step(name):
    method, generator = METHODS[name], torch.Generator().manual_seed(1)
    draws = torch.rand(300, 2, dtype=DOUBLE, generator=generator) * 10 - 5
    for t0, t1 in [*draws.tolist(), (0.1, 0.1 + 1e-13), (-1.0, -1.0 - 1e-13), (0.0, 1e-300)]:
        f = Counted(lambda t, y: -y)
        step = method.step(f, t0, t1, torch.ones(1, dtype=DOUBLE))
        step.basis()
        if method.adaptive:
            assert step.error is not None
        assert min(t0, t1) <= min(f.times) <= max(f.times) <= max(t0, t1)
        assert f.times[0] == t0


@pytest.mark.parametrize("name", NAMES)
def test_interpolant_meets_both_ends(name):
    method = METHODS[name]
    step, _ = one_step(method)
    ends = step.at([0.3, 0.55])
    close = 1e-13 if name == "dopri8" else 1e-15  # its polynomials have coefficients of 600
    torch.testing.assert_close(ends, torch.stack([step.y0, step.y1]), rtol=0, atol=close)
    weights = method.basis_weights(torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE))
    times = [0.3, 0.3 + 0.4 * (0.55 - 0.3), 0.55]
    torch.testing.assert_close(torch.tensordot(weights, step.basis(), 1), step.at(times), rtol=0, atol=close)


@pytest.mark.parametrize("name", NAMES)
def test_f1_weights_are_the_derivative_by_f1(name):
    method, times = METHODS[name], [0.35, 0.5]
    weights = method.f1_weights(0.3, 0.55, times)
    if name not in WITH_F1 or method.f1_index + 1 < len(method.nodes):
        assert weights is None
        return
    calls, shift = [0], torch.tensor([1.0, -2.0], dtype=DOUBLE)

    def with_other_f1(t, y):
        calls[0] += 1
        return SPIRAL.f(t, y) + (shift if calls[0] == method.f1_index + 1 else 0)

    plain, _ = one_step(method)
    moved, _ = one_step(method, replace(SPIRAL, f=with_other_f1))
    difference = moved.at(times) - plain.at(times)
    torch.testing.assert_close(difference, weights[:, None] * shift, rtol=0, atol=1e-14)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in WITH_F1 if not METHODS[name].fsal])
def test_given_f1_saves_an_evaluation_and_changes_no_bit(name):
    method = METHODS[name]
    alone, f = one_step(method)
    given, g = one_step(method)
    given.hint = SPIRAL.f(torch.tensor(0.55, dtype=DOUBLE), given.y1)
    assert results_equal(alone, given)
    assert g.nfe == f.nfe - 1


@pytest.mark.parametrize("name", NAMES)
def test_float32(name):
    method = METHODS[name]
    exact, _ = one_step(method)
    single, f = one_step(method, dtype=torch.float32)
    pairs = [(exact.y1, single.y1), (exact.at([0.4]), single.at([0.4])), (exact.basis(), single.basis())]
    if method.adaptive:
        pairs.append((exact.error, single.error))
    for wide, narrow in pairs:
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), wide, rtol=2e-6, atol=2e-6)
    assert {y.dtype for y in f.states} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.complex128, 1e-14), (torch.complex64, 3e-6)])
def test_complex_states_are_pairs_of_real_ones(name, dtype, close):
    method = METHODS[name]

    def rotating(t, y):
        return torch.stack([-y[1], y[0]]) * (1 + t)

    real = method.step(Counted(rotating), 0.3, 0.8, torch.tensor([1.0, 0.5], dtype=DOUBLE))
    y0 = torch.tensor(1.0 + 0.5j, dtype=dtype)
    step = method.step(Counted(lambda t, y: 1j * y * (1 + t)), 0.3, 0.8, y0)
    pairs = [(real.y1, step.y1), (real.at([0.4])[0], step.at([0.4])[0])]
    if method.adaptive:
        pairs.append((real.error, step.error))
    for xy, z in pairs:
        assert z.dtype == dtype
        torch.testing.assert_close(torch.view_as_complex(xy), z.to(torch.complex128), rtol=0, atol=close)


# Measured order: the slope of log(error) against log(number of steps), from n to more steps.

LOW, MIDDLE = replace(COSINE, span=(-1.0, 1.0)), replace(SPIRAL, span=(0.0, 1.5))
MEASURED = {  # the error has to be far from rounding, and its leading term far ahead of the next
    "cosine": {
        1: (LOW, 256, 512),
        **dict.fromkeys((2, 3, 4), (LOW, 128, 256)),
        5: (replace(COSINE, span=(0.0, 6.0)), 256, 512),
        8: (replace(COSINE, span=(-0.5, 4.5)), 48, 64),
    },
    "spiral": {
        1: (MIDDLE, 512, 1024),
        **dict.fromkeys((2, 3, 4, 5), (MIDDLE, 128, 256)),
        8: (SPIRAL, 64, 96),
    },
}
INSIDE = (0.3, 0.7)


def grid_of(span, n, uneven):
    """`n` steps, equal ones or alternately longer and shorter by a fifth."""
    steps = torch.arange(n + 1, dtype=DOUBLE)
    if uneven:
        steps = steps + (torch.arange(n + 1) % 2) / 5
    grid = span[0] + (span[1] - span[0]) * steps / n
    return torch.cat([grid[:-1], torch.tensor(span[1:], dtype=DOUBLE)])


def solved(method, problem: ClosedForm, grid, times):
    with torch.no_grad():
        solution = solve(problem.f, problem.y0, times, method=method, grid=grid)
    assert solution.stats.accepted == len(grid) - 1
    return solution.ys - problem.exact(times)


def errors_between(method, problem: ClosedForm, n):
    """Errors of y(T), and of outputs between equal steps (RMS)."""
    grid = grid_of(problem.span, n, uneven=False)
    between = torch.stack([grid[:-1] + theta * grid.diff() for theta in INSIDE], 1)
    off = solved(method, problem, grid, torch.cat([grid[:1], between.reshape(-1), grid[-1:]]))
    return torch.linalg.vector_norm(off[-1]).item(), off[1:-1].pow(2).mean().sqrt().item()


def errors_uneven(method, problem: ClosedForm, n):
    """The error of y(T) on a grid of unequal steps."""
    grid = grid_of(problem.span, n, uneven=True)
    return (torch.linalg.vector_norm(solved(method, problem, grid, grid[[0, -1]])[-1]).item(),)


@pytest.mark.parametrize(
    ("name", "equation", "errors", "direction"),
    covering(NAMES, MEASURED, [errors_between, errors_uneven], ["forwards", "backwards"], strength=2),
)
def test_measured_order(name, equation, errors, direction):
    """y(T), and outputs off the grid, converge with the method's order."""
    method = METHODS[name]
    problem, *ns = MEASURED[equation][method.order]
    if direction == "backwards":
        problem = problem.backwards()
    coarse, fine = (errors(method, problem, n) for n in ns)
    slopes = [math.log(a / b) / math.log(ns[1] / ns[0]) for a, b in zip(coarse, fine, strict=True)]
    assert slopes == pytest.approx([method.order] * len(slopes), abs=0.15), f"errors {coarse}, {fine}"


# Self checks: a tableau with an error in it does not come to life.


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (RK4, {"c": "0 1/2 1/3 1"}, r"rk4: row 3 of a must have 2 entries that add up to c = 1/3"),
        (RK4, {"a": "1/2\n0 1/2\n0 1"}, r"rk4: row 4 of a must have 3 entries"),
        (RK4, {"a": "1/2\n0 1/2\n0 0 0.9"}, r"rk4: row 4 of a"),
        (RK4, {"b": "1/6 1/3 1/3 1/3"}, r"rk4: b must add up to 1"),
        (DOPRI5, {"b_hat": "1 0"}, r"dopri5: b_hat must have 7 entries that add up to 1"),
        (HEUN_EULER, {"b_hat": "1 1/2"}, r"heun_euler: b_hat must have 2 entries that add up to 1"),
        (BOSH3, {"dense": "1 -4/3 5/9\n0 1 -2/3\n0 4/3 -8/9"}, r"bosh3: dense needs 4 rows, one a stage"),
        (
            BOSH3,
            {"dense": "1 -4/3 5/9\n0 1 -2/3\n0 4/3 -8/9\n0 -1 1/2"},
            r"stage 4 at theta = 1 must equal b_4 = 0, got -1/2",
        ),
        (
            FEHLBERG5,
            {"dense_a": "16/135 0 6656/12825 28561/56430 -9/50 1/55"},
            r"fehlberg5: row 7 of a must have 6 entries that add up to c = 1",
        ),
        (RK4, {"c": "0 1/2 1/2"}, r"rk4"),
        (BOSH3, {"dense": "1 -4/3 5/9\n0 1 -2/3\n0 4/3 -8/9\n0 0"}, r"bosh3"),
    ],
)
def test_broken_tableaus_are_refused(method, change, message):
    with pytest.raises(ValueError, match=message):
        replace(method, **change)


def test_methods_are_values():
    assert replace(RK4) == RK4
    assert hash(replace(RK4)) == hash(RK4)
    assert replace(RK4, name="other") != RK4
    assert repr(DOPRI5) == "<dopri5: explicit Runge-Kutta, order 5, 7 stages>"
