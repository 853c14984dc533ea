"""A method that is known by its Butcher table alone keeps every promise; its interpolant is Hermite's cubic."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from butcher_tables import BARE, KUTTA3, OWN, RALSTON3
from covering import pairs
from gradient_cases import Everything, assert_same, differences, gradients_of
from gradients.settings import EVERY
from problems import DOUBLE, SPIRAL
from rooted_trees import dense_residuals, largest, residuals, rooted_trees, rooted_trees_up_to
from stubs import Counted

from torchaca import METHODS, Direct, RungeKutta, solve
from torchaca.methods import ALIASES, BOSH3, RK4

NAMES = list(BARE)
ROUNDED = {"tsit5": Fraction(1, 10**29), "dopri8": Fraction(2, 10**17)}
"""Coefficients that their authors rounded; those of all other methods are exact."""


def test_nothing_is_registered():
    assert not OWN.keys() & {*METHODS, *ALIASES}


# --- the order, in exact numbers ---


@pytest.mark.parametrize("name", NAMES)
def test_order_conditions(name):
    method, close = BARE[name], ROUNDED.get(name, 0)
    assert largest(residuals(method, method.weights, rooted_trees_up_to(method.order))) <= close
    assert largest(residuals(method, method.weights, rooted_trees(method.order + 1))) > 1e-6
    if method.adaptive:
        lower = method.embedded_order
        assert largest(residuals(method, method.embedded, rooted_trees_up_to(lower))) <= close
        assert largest(residuals(method, method.embedded, rooted_trees(lower + 1))) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_cubic_is_of_the_method_s_order_up_to_three(name):
    method, close = BARE[name], ROUNDED.get(name, 0)
    assert method.dense_order == min(method.order, 3)
    assert largest(dense_residuals(method, rooted_trees_up_to(method.dense_order))) <= 10 * close
    assert largest(dense_residuals(method, rooted_trees(method.dense_order + 1))) > 1e-6


# --- the cubic ---


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_through_both_states_with_both_slopes(name):
    method, t0, t1 = BARE[name], 0.3, 0.55
    f = Counted(SPIRAL.f)
    step = method.step(f, t0, t1, SPIRAL.at(t0))
    ends = torch.tensor([t0, t1], dtype=DOUBLE)
    states, slopes = torch.func.jvp(lambda ts: step.at(list(ts)), (ends,), (torch.ones_like(ends),))
    torch.testing.assert_close(states, torch.stack([step.y0, step.y1]), rtol=0, atol=1e-14)
    found = torch.stack([SPIRAL.f(*at) for at in zip(ends, (step.y0, step.y1))])
    torch.testing.assert_close(slopes, found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_f1_is_the_last_stage_or_one_of_its_own_that_only_outputs_need(name):
    method, f = BARE[name], Counted(SPIRAL.f)
    assert len(method.nodes) == method.stages + (not method.fsal)
    assert method.f1_index == len(method.nodes) - 1
    step = method.step(f, 0.3, 0.55, SPIRAL.at(0.3))
    if method.adaptive:
        assert step.error is not None
    assert f.nfe == method.stages - (method.fsal and not method.adaptive)
    step.at([0.4])
    step.basis()
    assert f.nfe == len(method.nodes)
    assert torch.equal(step.hint, SPIRAL.f(torch.tensor(0.55, dtype=DOUBLE), step.y1))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_cost_one_evaluation_at_most(name):
    """f1 is the next step's first stage: only the last step evaluates for its outputs alone."""
    counts = []
    for times in ([0.0, 1.0], torch.linspace(0, 1, 30, dtype=DOUBLE)):
        counts.append(solve(SPIRAL.f, SPIRAL.at(0.0), times, method=BARE[name], n_steps=4).stats.nfe)
    assert counts[1] - counts[0] == 1


def test_bosh3_has_it_as_published():
    published = "1 -4/3 5/9\n0 1 -2/3\n0 4/3 -8/9\n0 -1 1"
    assert BOSH3.dense == published
    assert replace(BOSH3, dense=published, dense_order=3) == BOSH3


@pytest.mark.parametrize("name", NAMES)
def test_methods_are_values(name):
    assert replace(BARE[name]) == BARE[name]
    assert hash(replace(BARE[name])) == hash(BARE[name])
    assert replace(BARE[name], name="other").polynomials == BARE[name].polynomials


# --- measured, on an equation that is neither linear nor autonomous, forwards and backwards ---

SIZES = {1: (120, 180), 2: (60, 90), 3: (60, 90), 4: (60, 90), 5: (64, 96), 8: (20, 30)}
INSIDE = torch.tensor([0.3, 0.7], dtype=DOUBLE)
ROWS = 6


def spirals(k):
    """`problems.SPIRAL` with a rate k for each row of y: the radius is 1 / (1 / r0 + k (sin t - sin t0))."""

    def f(t, y):
        turned = torch.stack([-y[:, 1], y[:, 0]], 1)
        return 4 * t * turned - k[:, None] * y.norm(dim=1, keepdim=True) * torch.cos(t) * y

    def exact(y0, times):
        r0, t0 = y0.norm(dim=1), times[0]
        r = 1 / (1 / r0 + k * (torch.sin(times) - torch.sin(t0))[:, None])
        angle = (2 * (times**2 - t0**2))[:, None] + torch.atan2(y0[:, 1], y0[:, 0])
        return r[..., None] * torch.stack([torch.cos(angle), torch.sin(angle)], -1)

    return f, exact


def errors(method, gradient, n, span):
    """RMS errors of y(T) and its derivatives with respect to y0 and k, and of y between steps and of its ones."""
    generator = torch.Generator().manual_seed(0)
    y0, k = (torch.rand(*shape, dtype=DOUBLE, generator=generator) for shape in ((ROWS, 2), (ROWS,)))
    wrt = y0, k = (0.3 + 0.4 * y0).requires_grad_(), (0.2 + 0.4 * k).requires_grad_()
    grid = torch.linspace(*span, n + 1, dtype=DOUBLE)
    between = (grid[:-1, None] + INSIDE * grid.diff()[:, None]).reshape(-1)
    times = torch.cat([grid[:1], between, grid[-1:]])
    f, exact = spirals(k)
    sol, truth = solve(f, y0, times, method=method, gradient=gradient, grid=grid), exact(y0, times)
    found = []
    for ours, right in ((sol.ys[-1:], truth[-1:]), (sol.ys[1:-1], truth[1:-1])):
        grads = [torch.autograd.grad(ys.mean(0).sum(), wrt, retain_graph=True) for ys in (ours, right)]
        off = torch.cat([(a - b).reshape(-1) for a, b in zip(*grads)])
        found += [x.pow(2).mean().sqrt().item() for x in (ours - right, off)]
    return found


@pytest.mark.parametrize("span", [(-0.5, 1.0), (1.0, -0.5)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", NAMES)
def test_solution_outputs_and_gradients_are_of_the_order(name, span):
    """Outputs between steps, too, up to order 4: the cubic's local error is O(h^4)."""
    method = BARE[name]
    n, m = SIZES[method.order]
    coarse, fine = (errors(method, "aca", size, span) for size in (n, m))
    slopes = [math.log(a / b) / math.log(m / n) for a, b in zip(coarse, fine)]
    wanted = [method.order] * 2 + [min(method.order, 4)] * 2
    assert slopes == pytest.approx(wanted, abs=0.3), f"errors {coarse}, {fine}"


# --- gradients ---


@pytest.mark.parametrize(
    ("name", "gradient"), pairs(NAMES, [g for g, own in EVERY.items() if g not in ("mali", "direct")])
)
def test_gradients_agree(name, gradient):
    method, settings = BARE[name], EVERY[gradient]
    continuous = settings.name == "adjoint"
    case = Everything([0.0, 0.1, 0.2, 0.6, 0.6, 1.5])
    steps = {"n_steps": 3}
    if continuous:  # its gradient is another one, by an error that falls with the steps
        few, many = (
            differences(case.gradients(settings, **own), case.gradients(Direct(), **own))
            for own in ({"method": method, "n_steps": n} for n in (80, 160))
        )
        assert max(many.values()) < 0.2
        assert not {name: (few[name], off) for name, off in many.items() if off > 0.6 * few[name] + 1e-9}
        return
    if method.adaptive and gradient != "naive":
        steps = {"rtol": 1e-2, "atol": 1e-3, "dt0": 0.3}
    if gradient == "aca-grad-rtol":  # which refines the steps
        sol = case.solve(settings, method=method, **steps)
        steps = {"grid": sol.steps}
        want, got = case.gradients(Direct(), method=method, **steps), gradients_of(sol.ys, case.inputs)
        assert_same({**got, "times": None}, {**want, "times": None}, 1e-9)
        return
    want = case.gradients(Direct(), method=method, **steps)
    assert_same(case.gradients(settings, method=method, **steps), want, 1e-11)


# --- what is wrong is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": "1/6 2/3"}, "kutta3: b must have 3 entries, one a stage, got 2"),
        ({"b": "1/6 2/3 1/3"}, "kutta3: b must add up to 1, got 7/6"),
        ({"c": "0 1/2"}, "kutta3: c has 2 nodes, but a is for 3 stages"),
        (
            {"a": "1/2\n1 2"},
            "kutta3: row 3 of a must have 2 entries that add up to c = 1, got 2 that add up to 3",
        ),
        ({"a": "1/2\n-1 2 0"}, "kutta3: row 3 of a must have 2 entries that add up to c = 1, got 3 that"),
        (
            {"b_hat": "1 1/2 0"},
            "kutta3: b_hat must have 3 entries that add up to 1, got 3 that add up to 3/2",
        ),
        ({"dense_order": 2}, "kutta3: dense_order, dense_c and dense_a describe the interpolant in dense"),
        ({"dense_c": "1"}, "kutta3: dense_order, dense_c and dense_a describe the interpolant in dense"),
        ({"dense": "1/6\n2/3\n1/6"}, "kutta3: dense needs dense_order, the interpolant's order, got 0"),
        ({"dense": "1/6\n2/3", "dense_order": 1}, "kutta3: dense needs 3 rows, one a stage, got 2"),
        (
            {"dense": "1/3\n2/3\n1/6", "dense_order": 1},
            "kutta3: the interpolant's weight of stage 1 at theta = 1 must equal b_1 = 1/6, got 1/3",
        ),
        (
            {"dense": "1/6\n2/3\n0 1/6", "dense_order": 1},
            "kutta3: all rows of dense must have the same length",
        ),
    ],
    ids=str,
)
def test_errors_name_what_is_wrong(change, message):
    table = {"name": "kutta3", "order": 3, "c": "0 1/2 1", "a": "1/2\n-1 2", "b": "1/6 2/3 1/6"}
    assert RungeKutta(**table).matrix == KUTTA3.matrix
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        RungeKutta(**{**table, **change})
    assert str(caught.value).startswith(message)


# --- other interpolants ---


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("method", [RK4, BOSH3, RALSTON3], ids=lambda method: method.name)
def test_an_interpolant_can_be_exchanged(method, kind):
    own = method.with_interpolant(kind)
    step, other = (m.step(Counted(SPIRAL.f), 0.3, 0.55, SPIRAL.at(0.3)) for m in (method, own))
    assert torch.equal(step.y1, other.y1)
    assert own.dense_order == {"linear": 1, "cubic": 3}[kind]
    middle = 0.5 * (step.y0 + step.y1)
    if kind == "cubic":
        middle = middle + (0.55 - 0.3) / 8 * (step.f0 - SPIRAL.f(torch.tensor(0.55, dtype=DOUBLE), step.y1))
    torch.testing.assert_close(other.at([0.425])[0], middle, rtol=0, atol=1e-15)


def test_an_unknown_interpolant_is_refused():
    with pytest.raises(ValueError, match="'quintic': use 'linear' or 'cubic'"):
        KUTTA3.with_interpolant("quintic")
