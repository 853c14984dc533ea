"""What every row of GRADIENTS promises, under every row of METHODS: the right numbers, and the right bookkeeping."""

import math

import pytest
import torch
from covering import covering, pairs
from gradient_cases import (
    ADAPTIVE,
    ALL,
    CONTINUOUS,
    DOUBLE,
    EXACT,
    FROZEN,
    Counter,
    Everything,
    assert_same,
    central_difference,
    differences,
    gradients_of,
    loss_of,
    others,
)
from stubs import evaluations_of, starts_with_known_slope
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import torchaca
from torchaca import METHODS, solve

ROUNDING = 1e-11

# With n_steps=3 the steps end at 0.5 and 1.0.
TIMES = {
    "inside": [0.0, 0.1, 0.2, 0.3, 1.1, 1.5],
    "step-ends": [0.0, 0.5, 0.7, 1.0, 1.5],
    "duplicates": [0.0, 0.0, 0.4, 0.4, 0.5, 0.5, 1.5, 1.5],
    "decreasing": [1.5, 1.4, 0.5, 0.3, 0.0],
    "end-only": [0.0, 1.5],
}


# --- equal to plain backpropagation ---


@pytest.mark.parametrize(
    ("gradient", "method", "times", "wanted"),
    covering(others(EXACT), METHODS, TIMES, [True, False], strength=2),
)
def test_equals_direct_on_fixed_steps(gradient, method, times, wanted):
    case = Everything(TIMES[times], wanted)
    want = case.gradients("direct", method=method, n_steps=3)
    got = case.gradients(gradient, method=method, n_steps=3)
    assert_same(got, want, ROUNDING)
    assert got["net.unused"] is None
    assert all(got[name] is not None for name in got if name != "net.unused")


@pytest.mark.parametrize(
    ("gradient", "method", "times", "wanted"),
    covering(others(FROZEN), ADAPTIVE, TIMES, [True, False], strength=2),
)
def test_equals_direct_on_adaptive_steps(gradient, method, times, wanted):
    options = {"method": method, "rtol": 1e-2, "atol": 1e-3, "dt0": 0.9}
    case = Everything(TIMES[times], wanted)
    sol = case.solve("direct", **options)
    assert sol.stats.accepted > 1
    assert_same(case.gradients(gradient, **options), gradients_of(sol.ys, case.inputs), ROUNDING)


@pytest.mark.parametrize("wanted", [True, False], ids=["times-wanted", "times-constant"])
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("gradient", others(FROZEN))
def test_equals_direct_where_outputs_meet_accepted_steps(gradient, method, wanted):
    options = {"method": method, "rtol": 1e-2, "atol": 1e-3}
    ends = Everything([0.0, 1.5]).solve("direct", **options).steps
    times = sorted({*ends[:5], *ends[-3:], 0.5 * (ends[0] + ends[1]), 0.3 * ends[-1] + 0.7 * ends[-2]})
    case = Everything(times, wanted)
    sol = case.solve("direct", **options)
    assert sol.steps == ends
    assert_same(case.gradients(gradient, **options), gradients_of(sol.ys, case.inputs), ROUNDING)


STEP_OPTIONS = {
    "dt": {"method": "rk4", "dt": 0.4},
    "dt-larger-than-span": {"method": "rk4", "dt": 7.0},
    "grid": {"method": "rk4", "grid": [0.0, 0.3, 0.35, 1.1, 1.5]},
    "outputs-as-grid": {"method": "rk4", "control": torchaca.FixedSteps()},
    "dopri5-grid": {"method": "dopri5", "grid": [0.0, 0.3, 0.35, 1.1, 1.5]},
    "dopri8-one-step": {"method": "dopri8", "n_steps": 1},
    "jump": {"jump_ts": [0.15, 0.7], "rtol": 1e-2},
    "jump-at-the-start": {"jump_ts": [0.0, 0.7], "rtol": 1e-2},
    "jump-on-an-output": {"jump_ts": [0.3], "rtol": 1e-2},
    "jump-dopri8": {"jump_ts": [0.15, 0.7], "method": "dopri8", "rtol": 1e-2},
    "pid": {"control": torchaca.Adaptive(rtol=1e-4, pid=torchaca.PID_CONTROL)},
    "dt-max": {"dt_max": 0.2, "rtol": 1e-1},
}


@pytest.mark.parametrize(
    ("gradient", "steps", "wanted"), covering(others(FROZEN), STEP_OPTIONS, [True, False], strength=1)
)
def test_equals_direct_under_every_step_option(gradient, steps, wanted):
    case, options = Everything(TIMES["inside"], wanted), STEP_OPTIONS[steps]
    want = case.gradients("direct", **options)
    assert_same(case.gradients(gradient, **options), want, ROUNDING)


def test_grid_that_meets_outputs():
    for wanted in (True, False):
        case = Everything(TIMES["inside"], wanted)
        grid = {"method": "rk4", "grid": TIMES["inside"]}
        assert_same(case.gradients("aca", **grid), case.gradients("direct", **grid), ROUNDING)


@pytest.mark.parametrize("method", ["rk4", "heun3", "dopri5", "dopri8"])
@pytest.mark.parametrize("gradient", others(EXACT))
def test_step_times_of_a_given_grid_are_differentiated(gradient, method):
    case = Everything(TIMES["inside"])
    # Coarse: on a fine grid what two steps say about the time between them cancels, to rounding of 1e-11 for dopri8.
    case.inputs["grid"] = torch.tensor([0.0, 0.4, 1.5], dtype=DOUBLE, requires_grad=True)
    options = {"method": method, "grid": case.inputs["grid"]}
    want = case.gradients("direct", **options)
    assert want["grid"][1:-1].abs().min() > 1e-2
    assert_same(case.gradients(gradient, **options), want, ROUNDING)


@pytest.mark.parametrize("gradient", others(EXACT))
@pytest.mark.parametrize(
    "options", [{"n_steps": 4, "method": "bosh3"}, {"rtol": 1e-2}], ids=["fixed", "adaptive"]
)
def test_equals_direct_for_mixed_dtypes(gradient, options):
    if gradient not in FROZEN and "rtol" in options:
        pytest.skip("another function")
    case = Everything(TIMES["inside"], dtypes=(DOUBLE, torch.float32))
    sol = case.solve(gradient, **options)
    assert (sol.ys["z"].dtype, sol.ys["l"].dtype) == (DOUBLE, torch.float32)
    assert_same(gradients_of(sol.ys, case.inputs), case.gradients("direct", **options), 1e-5)


@pytest.mark.parametrize("options", [{"n_steps": 3}, {"rtol": 1e-2}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "heun_euler"])
@pytest.mark.parametrize("gradient", others(FROZEN))
def test_equals_direct_for_dense_output(gradient, method, options):
    case = Everything([0.0, 0.4, 1.5])
    options = {**options, "dt0": 0.5} if "rtol" in options else options
    case.inputs["queries"] = torch.tensor(
        [[1.2, 0.0, 0.7], [0.71, 1.5, 0.1]], dtype=DOUBLE, requires_grad=True
    )

    def grads(name, with_ys):
        sol = case.solve(name, method=method, dense=True, **options)
        at = sol(case.inputs["queries"])
        assert at["z"].shape == (2, 3, 3)
        return gradients_of((at, sol.ys) if with_ys else at, case.inputs)

    for with_ys in (True, False):
        assert_same(grads(gradient, with_ys), grads("direct", with_ys), ROUNDING)


def complex_case():
    generator = torch.Generator().manual_seed(5)
    y0 = torch.randn(2, generator=generator, dtype=torch.complex128).requires_grad_()
    omega = torch.randn(2, generator=generator, dtype=DOUBLE).requires_grad_()
    mix = torch.randn(2, 2, generator=generator, dtype=torch.complex128).requires_grad_()
    times = torch.tensor([0.0, 0.3, 0.9, 1.2], dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return 1j * omega * y + 0.3 * torch.cos(t) * (mix @ y) - 0.1 * y * y.abs() ** 2

    return f, {"y0": y0, "omega": omega, "mix": mix, "times": times}


@pytest.mark.parametrize("options", [{"n_steps": 3}, {"rtol": 1e-3}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize("gradient", others(FROZEN))
def test_equals_direct_for_complex_states(gradient, method, options):
    f, inputs = complex_case()

    def grads(name):
        return gradients_of(
            solve(f, inputs["y0"], inputs["times"], method=method, gradient=name, **options).ys, inputs
        )

    assert_same(grads(gradient), grads("direct"), ROUNDING)


@pytest.mark.parametrize("gradient", EXACT)
def test_complex_gradients_are_the_derivative(gradient):
    _, inputs = complex_case()

    def program(**changed):
        x = {**inputs, **changed}

        def f(t, y):
            return 1j * x["omega"] * y + 0.3 * torch.cos(t) * (x["mix"] @ y) - 0.1 * y * y.abs() ** 2

        return solve(f, x["y0"], x["times"], gradient=gradient, n_steps=2).ys

    grads = gradients_of(program(), inputs)
    for name, x in inputs.items():
        real = torch.view_as_real if x.is_complex() else torch.clone
        back = torch.view_as_complex if x.is_complex() else torch.clone
        fd = central_difference(
            lambda v, name=name, back=back: loss_of(program(**{name: back(v)})), real(x.detach())
        )
        torch.testing.assert_close(real(grads[name]), fd, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("gradient", ALL)
def test_all_gradients_agree_as_tolerances_shrink(gradient):
    options = {"method": "dopri8", "rtol": 1e-9, "atol": 1e-9}
    for times in (TIMES["inside"], TIMES["decreasing"]):
        case = Everything(times)
        assert_same(case.gradients(gradient, **options), case.gradients("direct", **options), 1e-5)


@pytest.mark.parametrize("gradient", ALL)
@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (2, 1, 3)], ids=str)
def test_states_of_any_shape(gradient, shape):
    y0 = torch.ones(shape, dtype=DOUBLE, requires_grad=True)
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: -k * y, y0, [0.0, 0.5, 1.0], gradient=gradient, rtol=1e-9, atol=1e-9).ys
    g0, gk = torch.autograd.grad(ys[-1].sum(), (y0, k))
    torch.testing.assert_close(g0, torch.full(shape, math.exp(-0.7), dtype=DOUBLE), rtol=1e-6, atol=0)
    torch.testing.assert_close(gk.item(), -math.exp(-0.7) * y0.numel(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gradient", ALL)
def test_states_that_are_views(gradient):
    base = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    options = {"rtol": 1e-8, "atol": 1e-8, "gradient": gradient}
    for view in (base.T, base[:, ::2], base[:1].expand(3, 4), base.view(2, 6)):
        got = gradients_of(solve(lambda t, y: y.sin(), view, [0.0, 0.3, 1.0], **options).ys, {"base": base})
        want = gradients_of(
            solve(lambda t, y: y.sin(), view, [0.0, 0.3, 1.0], **{**options, "gradient": "direct"}).ys,
            {"base": base},
        )
        assert_same(got, want, 1e-5)


@pytest.mark.parametrize("gradient", ALL)
def test_zero_length_span(gradient):
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: y * y, y0, [1.0, 1.0, 1.0], gradient=gradient).ys
    assert torch.equal(torch.autograd.grad(ys.sum(), y0)[0], torch.full((2,), 3.0, dtype=DOUBLE))


@pytest.mark.parametrize(
    "gradient",
    ALL,
)
def test_zero_length_span_moves_with_its_times(gradient):
    y0 = torch.full((1,), 3.0, dtype=DOUBLE)
    t = torch.tensor([1.0, 1.0], dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: y * y, y0, t, gradient=gradient).ys
    assert torch.autograd.grad(ys[-1].sum(), t)[0].tolist() == [-9.0, 9.0]


@pytest.mark.parametrize("gradient", EXACT)
def test_repeated_times_that_are_the_grid_have_each_their_own_derivative(gradient):
    t = torch.tensor([0.0, 0.1, 0.1, 0.2], dtype=DOUBLE, requires_grad=True)
    y0 = torch.full((1,), 0.5, dtype=DOUBLE)
    ys = solve(lambda t, y: -y, y0, t, method="rk4", control=torchaca.FixedSteps(), gradient=gradient).ys
    slope = torch.autograd.grad(ys[2].sum(), t)[0]
    torch.testing.assert_close(
        slope[1:], torch.tensor([0.0, -ys[2].item(), 0.0], dtype=DOUBLE), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("gradient", ALL)
def test_f_that_is_constant_or_the_state_itself(gradient):
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    c = torch.tensor([0.5, 2.0], dtype=DOUBLE, requires_grad=True)
    for options in ({"n_steps": 4, "method": "rk4"}, {"rtol": 1e-8, "atol": 1e-8}):
        ys = solve(lambda t, y: c, y0, [0.0, 0.3, 1.0], gradient=gradient, **options).ys
        g0, gc = torch.autograd.grad(ys[1:].sum(), (y0, c))
        torch.testing.assert_close(g0, torch.full_like(y0, 2.0))
        torch.testing.assert_close(gc, torch.full_like(y0, 1.3))
        ys = solve(lambda t, y: y, y0, [0.0, 1.0], gradient=gradient, **options).ys
        torch.testing.assert_close(
            torch.autograd.grad(ys[-1].sum(), y0)[0], ys[-1].detach(), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize("gradient", ALL)
def test_f_that_is_zero_at_the_start(gradient):
    k = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: k * t * y, y0, [0.0, 1.0], gradient=gradient, rtol=1e-8, atol=1e-8).ys
    g0, gk = torch.autograd.grad(ys[-1].sum(), (y0, k))
    torch.testing.assert_close(gk.item(), math.exp(0.25), rtol=1e-6, atol=0)
    torch.testing.assert_close(g0, torch.full_like(y0, math.exp(0.25)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("gradient", "on_failure", "wanted"), covering(ALL, ["status", "nan"], [False, True], strength=2)
)
def test_the_prefix_of_a_failed_solve_is_differentiable(gradient, on_failure, wanted):
    y0 = torch.tensor([1.0], dtype=DOUBLE, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 0.6, 2.0], dtype=DOUBLE, requires_grad=wanted)
    sol = solve(lambda t, y: y * y, y0, t, gradient=gradient, on_failure=on_failure, rtol=1e-6, atol=1e-6)
    assert sol.status != "success"
    (g,) = torch.autograd.grad(sol.ys[2].sum(), y0)
    torch.testing.assert_close(g.item(), 1 / (1 - 0.6) ** 2, rtol=1e-3, atol=0)


# --- the derivative itself: gradcheck ---


def small(times, gradient, **options):
    """A solve as a function of y0, a parameter, an argument, a captured history and the times."""

    def program(y0, theta, arg, root, times):
        history = root * theta

        def f(t, y, a):
            return torch.tanh(theta * y.flip(0)) * torch.cos(t + a) + history.sin() * y

        return solve(f, y0, times, args=(arg,), gradient=gradient, **options).ys

    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(n, generator=generator, dtype=DOUBLE) for n in (2, 2)]
    inputs += [torch.tensor(x, dtype=DOUBLE) for x in (0.4, 0.8)]
    inputs.append(torch.tensor(times, dtype=DOUBLE))
    return program, tuple(x.requires_grad_() for x in inputs)


QUICK = ("euler", "heun_euler", "rk4", "dopri5", "dopri8")
GRIDS = {
    "n_steps": {"n_steps": 2},
    "dt": {"dt": 0.37},
    "given": {"grid": [0.1, 0.5, 1.0]},
}
# The rounding of dopri8's dense output, whose weights are large, asks for larger differences.
EPS = {method: 3e-5 if method == "dopri8" else 1e-6 for method in METHODS}
INSIDE, DOWN = (0.1, 0.3, 0.35, 0.8, 1.0), (1.0, 0.7, 0.1)


def check_on_grids(gradient, method, grids=GRIDS):
    for name, options in grids.items():
        for times in (INSIDE,) if name == "given" or method == "dopri8" else (INSIDE, DOWN):
            program, inputs = small(times, gradient, method=method, **options)
            if name == "given":  # its ends are those of t
                inputs = (*inputs[:-1], inputs[-1].detach())
            assert gradcheck(program, inputs, eps=EPS[method], atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize(("gradient", "method"), pairs(EXACT, QUICK))
def test_gradcheck_on_fixed_steps(gradient, method):
    check_on_grids(gradient, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m not in QUICK])
@pytest.mark.parametrize("gradient", EXACT)
def test_gradcheck_on_fixed_steps_with_the_other_methods(gradient, method):
    check_on_grids(gradient, method)


def test_gradcheck_of_a_given_grid():
    for gradient in EXACT:
        for method in ("rk4", "dopri5"):
            y0 = torch.tensor([0.3, -0.8], dtype=DOUBLE, requires_grad=True)
            grid = torch.tensor([0.1, 0.5, 0.6, 1.0], dtype=DOUBLE, requires_grad=True)
            base = torch.tensor(INSIDE, dtype=DOUBLE)

            def on(y0, grid, gradient=gradient, method=method, base=base):
                inner = torch.cat([base[:1], grid[1:-1], base[-1:]])
                return solve(
                    lambda t, y: torch.sin(y.flip(0) * 2 + t),
                    y0,
                    base,
                    method=method,
                    grid=inner,
                    gradient=gradient,
                ).ys

            assert gradcheck(on, (y0, grid), atol=1e-9, rtol=1e-8)


TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("gradient", ALL)
def test_gradcheck_on_adaptive_steps(gradient):
    for times, method in (((0.1, 0.25, 0.4), "dopri5"), (DOWN, "dopri8")):
        program, inputs = small(times, gradient, method=method, **TIGHT)
        assert gradcheck(program, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ALL)
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "tsit5", "fehlberg5", "bosh3"])
def test_gradcheck_on_adaptive_steps_with_the_other_methods(gradient, method):
    for times in (INSIDE, DOWN):
        program, inputs = small(times, gradient, method=method, **TIGHT)
        assert gradcheck(program, inputs)


@pytest.mark.parametrize("gradient", ALL)
def test_gradcheck_of_dense_output(gradient):
    if gradient in {"adjoint", "naive"}:
        pytest.skip("refused in words; see test_naive")
    _, inputs = small(INSIDE, gradient)
    queries = torch.tensor([0.15, 0.5, 0.95], dtype=DOUBLE, requires_grad=True)

    def program(y0, theta, arg, root, times, at):
        sol = solve(
            lambda t, y: torch.tanh(theta * y) * torch.cos(t + arg) * root, y0, times, n_steps=2, dense=True,
            gradient=gradient,
        )  # fmt: skip
        return sol(at)

    assert gradcheck(program, (*inputs, queries), atol=1e-9, rtol=1e-8)


def check_second_order(gradient, method):
    program, inputs = small((0.1, 0.3, 0.8, 1.0), gradient, method=method, n_steps=2)
    assert gradgradcheck(program, inputs, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("gradient", FROZEN)
def test_gradgradcheck(gradient, method):
    check_second_order(gradient, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m not in {"rk4", "dopri5"}])
@pytest.mark.parametrize("gradient", FROZEN)
def test_gradgradcheck_with_the_other_methods(gradient, method):
    check_second_order(gradient, method)


def second_order_grads(gradient, case, **options):
    """Gradients of the squared norm of the gradients."""
    wanted = [x for name, x in case.inputs.items() if name != "net.unused"]
    first = torch.autograd.grad(loss_of(case.solve(gradient, **options).ys).sin(), wanted, create_graph=True)
    total = sum((g * g).sum() for g in first)
    return dict(zip(range(len(wanted)), torch.autograd.grad(total, wanted), strict=True))


@pytest.mark.parametrize(
    ("gradient", "method", "options"),
    covering(
        others(FROZEN), ["dopri5", "dopri8", "heun_euler"], [{"n_steps": 3}, {"rtol": 1e-2}], strength=1
    ),
    ids=str,
)
def test_second_derivatives_equal_direct(gradient, method, options):
    for times in (TIMES["inside"], TIMES["decreasing"], TIMES["duplicates"]):
        case = Everything(times)
        got, want = (
            second_order_grads(name, case, method=method, **options) for name in (gradient, "direct")
        )
        assert_same(got, want, 1e-9)


# --- bookkeeping ---


@pytest.mark.parametrize(("gradient", "method"), pairs(ALL, METHODS))
def test_every_evaluation_is_counted_and_none_is_extra(gradient, method):
    w = torch.tensor([0.5, -0.7], dtype=DOUBLE, requires_grad=True)
    f = Counter(lambda t, y: torch.sin(3 * w * y) + torch.cos(5 * t))
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    variants = [{"n_steps": 3}] + (
        [{"rtol": 1e-2, "atol": 1e-2, "dt0": 1.0}, {"rtol": 1e-2, "atol": 1e-2}]
        if METHODS[method].adaptive
        else []
    )
    for options in variants:
        f.calls = 0
        with torch.no_grad():
            plain = solve(f, y0, [0.0, 0.3, 0.6, 2.0], method=method, **options).stats
        assert f.calls == plain.nfe
        f.calls = 0
        sol = solve(f, y0, [0.0, 0.3, 0.6, 2.0], method=method, gradient=gradient, **options)
        assert sol.stats.nfe == f.calls == plain.nfe
        assert (sol.stats.accepted, sol.stats.rejected) == (plain.accepted, plain.rejected)
        assert len(sol.steps) == sol.stats.accepted + 1
        assert sol.stats.nfe_backward == 0
        f.calls = 0
        sol.ys.sum().backward(retain_graph=True)
        assert sol.stats.nfe_backward == f.calls
        assert sol.stats.nfe == plain.nfe
        sol.ys.sum().backward()
        assert sol.stats.nfe_backward == f.calls


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_of_a_solve(method):
    row = METHODS[method]
    f = Counter(lambda t, y: -y * torch.cos(t))
    sol = solve(f, torch.ones(1, dtype=DOUBLE, requires_grad=True), [0.0, 2.0], method=method, n_steps=5)
    assert sol.stats.nfe == evaluations_of(row, 5)
    if row.adaptive:
        f = Counter(lambda t, y: y * torch.sin(8 * t))
        stats = solve(f, torch.ones(1, dtype=DOUBLE), [0.0, 2.0], method=method, rtol=1e-4, dt0=1.2).stats
        assert stats.rejected > 0
        first_stages = 1 if starts_with_known_slope(row) else stats.accepted
        assert stats.nfe == first_stages + (row.stages - 1) * (stats.accepted + stats.rejected)


@pytest.mark.parametrize("gradient", ALL)
@pytest.mark.parametrize(
    "options", [{"method": "rk4", "n_steps": 3}, {"rtol": 1e-3}], ids=["fixed", "adaptive"]
)
def test_outputs_do_not_depend_on_the_gradient(gradient, options):
    case = Everything(TIMES["inside"])
    sol, plain = case.solve(gradient, **options), case.solve("direct", **options)
    assert sol.steps == plain.steps or (gradient == "naive" and len(sol.steps) == len(plain.steps))
    for name in plain.ys:
        torch.testing.assert_close(sol.ys[name], plain.ys[name], rtol=1e-12, atol=1e-13)
    constant = Everything(TIMES["inside"], differentiate_times=False)
    for name, ys in constant.solve(gradient, **options).ys.items():
        torch.testing.assert_close(sol.ys[name], ys, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gradient", ALL)
def test_time_is_float64_for_a_float32_state(gradient):
    y0 = torch.ones(2, requires_grad=True)
    steps = [
        solve(lambda t, y: torch.sin(5 * t) * y, y0, [0.0, 10.0], gradient=name).steps
        for name in (gradient, "direct")
    ]
    assert len(steps[0]) == len(steps[1])
    assert max(abs(a - b) for a, b in zip(*steps, strict=True)) < 1e-9


@pytest.mark.parametrize("gradient", ALL)
def test_outputs_require_grad_where_an_input_does(gradient):
    def wants(y0=False, w=False, arg=False, t=False, **options):
        one = torch.ones(2, dtype=DOUBLE)
        y, k, a = (one.clone().requires_grad_(wanted) for wanted in (y0, w, arg))
        times = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE, requires_grad=t)
        sol = solve(lambda t, y, a: -k * y + a, y, times, args=(a,), gradient=gradient, **options)
        assert (sol.ys.grad_fn is not None) == sol.ys.requires_grad
        return sol.ys.requires_grad

    for options in ({}, {"method": "rk4", "n_steps": 2}):
        assert not wants(**options)
        for name in ("y0", "w", "arg", "t"):
            assert wants(**{name: True}, **options), name
            with torch.no_grad():
                assert not wants(**{name: True}, **options), name


@pytest.mark.parametrize("gradient", ALL)
def test_without_grad_mode_nothing_is_kept(gradient):
    saved = []
    net = nn.Linear(2, 2)
    y0 = torch.ones(3, 2, requires_grad=True)
    plain = solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=gradient).ys.detach()
    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
    ):
        sol = solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=gradient)
    assert not sol.ys.requires_grad
    assert len(saved) <= 3  # the probe's own, which died with it
    assert torch.equal(sol.ys, plain)
    with torch.inference_mode():
        sol = solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=gradient, dense=True)
        assert sol.ys.is_inference()
        assert torch.equal(sol.ys, plain)
        torch.testing.assert_close(sol(1.0), plain[-1])


# --- f as people write it ---


class Hamiltonian(nn.Module):
    """dq/dt = dH/dp, dp/dt = -dH/dq, by autograd inside f."""

    def __init__(self, switch_on=False):
        super().__init__()
        self.h = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.switch_on = switch_on

    def forward(self, t, y):
        if self.switch_on:
            with torch.enable_grad():
                return self.field(y.requires_grad_() if not y.requires_grad else y)
        return self.field(y)

    def field(self, y):
        (dh,) = torch.autograd.grad(self.h(y).sum(), y, create_graph=True)
        dq, dp = dh.chunk(2, -1)
        return torch.cat([dp, -dq], -1)


class Flow(nn.Module):
    """The log-density of a continuous normalising flow along with its points, as FFJORD writes it."""

    def __init__(self, switch_on=True):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.switch_on = switch_on

    def forward(self, t, state):
        z, _ = state
        if not self.switch_on:
            return self.field(t, z)
        with torch.enable_grad():
            z.requires_grad_(True)
            t.requires_grad_(True)
            return self.field(t, z)

    def field(self, t, z):
        dz = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
        divergence = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
        return dz, -divergence


def field_and_state(kind, switch_on):
    torch.manual_seed(4)
    if kind == "hamiltonian":
        return Hamiltonian(switch_on), torch.randn(3, 4, dtype=DOUBLE)
    return Flow(switch_on), (torch.randn(3, 2, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE))


def with_grad(y0, wanted):
    return torch.utils._pytree.tree_map(lambda x: x.clone().requires_grad_(wanted), y0)


@pytest.mark.parametrize(
    ("gradient", "kind", "switch_on", "options"),
    covering(
        ALL,
        ["hamiltonian", "flow"],
        [True, False],
        [{"rtol": 1e-9, "atol": 1e-9}, {"method": "rk4", "n_steps": 3}],
        strength=2,
    ),
    ids=str,
)
def test_f_that_differentiates(gradient, kind, switch_on, options):
    f, start = field_and_state(kind, switch_on)
    loose = gradient not in EXACT
    if loose and "n_steps" in options:
        pytest.skip("right up to the tolerance")

    def grads(name, wanted):
        y0 = with_grad(start, wanted)
        sol = solve(f, y0, [0.0, 0.4, 1.0], gradient=name, **options)
        inputs = dict(f.named_parameters())
        if wanted:
            leaves = torch.utils._pytree.tree_leaves(y0)
            inputs |= {str(i): leaf for i, leaf in enumerate(leaves)}
        return gradients_of(sol.ys, inputs)

    for wanted in (True, False):
        assert_same(grads(gradient, wanted), grads("direct", wanted), 1e-6 if "rtol" in options else ROUNDING)


@pytest.mark.parametrize("switch_on", [True, False], ids=["enables-grad", "relies-on-grad"])
@pytest.mark.parametrize("kind", ["hamiltonian", "flow"])
@pytest.mark.parametrize("gradient", ALL)
def test_f_that_differentiates_under_no_grad(gradient, kind, switch_on):
    f, y0 = field_and_state(kind, switch_on)
    want = solve(f, with_grad(y0, True), [0.0, 0.4, 1.0], gradient="direct").ys
    with torch.no_grad():
        got = solve(f, y0, [0.0, 0.4, 1.0], gradient=gradient).ys
    for mine, right in zip(*map(torch.utils._pytree.tree_leaves, (got, want)), strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, right.detach(), rtol=1e-12, atol=1e-12)


class Hutchinson(Flow):
    """The same with an estimate of the divergence, along one direction that is drawn before the solve."""

    def __init__(self, switch_on=True):
        super().__init__(switch_on)
        self.register_buffer("along", torch.randn(3, 2, dtype=DOUBLE))

    def field(self, t, z):
        dz = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
        (product,) = torch.autograd.grad(dz, z, self.along, create_graph=True)
        return dz, -(product * self.along).sum(1)


@pytest.mark.parametrize(
    "options", [{"method": "rk4", "n_steps": 3}, {"rtol": 1e-6}], ids=["fixed", "adaptive"]
)
@pytest.mark.parametrize("kind", [Hamiltonian, Hutchinson])
@pytest.mark.parametrize("gradient", others(ALL))
def test_second_derivatives_of_an_f_that_differentiates(gradient, kind, options):
    """A penalty on the gradient of the outputs with respect to the start; refused in words where it cannot be."""
    torch.manual_seed(4)
    f = kind(True)
    start = torch.randn(3, 4 if kind is Hamiltonian else 2, dtype=DOUBLE)

    def grads(name, order=2):
        y0 = start.clone().requires_grad_()
        state = y0 if kind is Hamiltonian else (y0, torch.zeros(3, dtype=DOUBLE))
        ys = solve(f, state, [0.0, 0.4, 1.0], gradient=name, **options).ys
        inputs = {"y0": y0, **dict(f.named_parameters())}
        if order == 1:
            return gradients_of(ys, inputs)
        (slope,) = torch.autograd.grad(loss_of(ys), y0, create_graph=True)
        return gradients_of((slope.norm(dim=1) - 1).square(), inputs)

    loose = 1e-11 if gradient in FROZEN or "n_steps" in options else 1e-4
    assert_same(grads(gradient, 1), grads("direct", 1), 1e-4 if gradient in CONTINUOUS else loose)
    if gradient in CONTINUOUS:
        with pytest.raises(NotImplementedError, match="gradient='aca'"):
            grads(gradient)
    else:
        assert_same(grads(gradient), grads("direct"), loose)


def test_a_hamiltonian_is_conserved():
    f, y0 = field_and_state("hamiltonian", False)
    ys = solve(f, y0, [0.0, 5.0], rtol=1e-10, atol=1e-10).ys
    torch.testing.assert_close(f.h(ys[-1]), f.h(ys[0]), rtol=1e-7, atol=1e-7)


def uncounted(gradient, kind, y0_wanted):
    """Where f is called twice because its first call failed."""
    alone = {"naive": y0_wanted, "direct": False}.get(gradient, kind == "hamiltonian")
    return not alone


@pytest.mark.parametrize(
    ("gradient", "kind", "wanted"),
    [
        pytest.param(
            g, k, w,
        )
        for g in ALL for k in ("hamiltonian", "flow") for w in (True, False)
    ],
)  # fmt: skip
def test_evaluations_of_an_f_that_differentiates_are_counted(gradient, kind, wanted):
    f, y0 = field_and_state(kind, switch_on=False)
    counter = Counter(f)
    sol = solve(counter, with_grad(y0, wanted), [0.0, 1.0], gradient=gradient)
    assert sol.stats.nfe == counter.calls


@pytest.mark.parametrize("gradient", ALL)
def test_f_in_numpy(gradient):
    net = nn.Linear(2, 2).double()

    def f(t, y):
        return torch.from_numpy(-y.numpy() * math.cos(t.item()))

    y0 = torch.ones(2, dtype=DOUBLE)
    want = math.exp(-math.sin(1.0))
    for call in (f, lambda t, y: f(t, y) if net is not None else None):  # the second one reaches parameters
        ys = solve(call, y0, [0.0, 1.0], gradient=gradient, rtol=1e-8).ys
        torch.testing.assert_close(ys[-1], torch.full_like(y0, want), rtol=1e-6, atol=0)
        with torch.no_grad():
            ys = solve(call, y0.clone().requires_grad_(), [0.0, 1.0], gradient=gradient, rtol=1e-8).ys
        torch.testing.assert_close(ys[-1], torch.full_like(y0, want), rtol=1e-6, atol=0)
    with pytest.raises(RuntimeError, match="numpy"):
        solve(f, y0.clone().requires_grad_(), [0.0, 1.0], gradient=gradient)


@pytest.mark.parametrize("gradient", ALL)
def test_f_that_writes_into_its_own_results(gradient):
    k = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        out = y * k
        out += 1
        out[0] = y[1] * y[0]
        return out.neg_()

    def grads(name):
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        ys = solve(f, y0, [0.0, 0.5, 1.0], gradient=name, rtol=1e-8, atol=1e-8).ys
        return gradients_of(ys, {"y0": y0, "k": k})

    assert_same(grads(gradient), grads("direct"), 1e-5)


@pytest.mark.parametrize("gradient", ALL)
def test_f_that_solves_an_ode_itself(gradient):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)

    def grads(name):
        def f(t, y):
            inner = solve(
                lambda s, z: -w * z * y.cos(), y, [0.0, 0.5], method="rk4", n_steps=2, gradient=name
            )
            return -inner.ys[-1]

        return gradients_of(
            solve(f, y0, [0.0, 1.0], method="rk4", n_steps=2, gradient=name).ys, {"y0": y0, "w": w}
        )

    assert_same(grads(gradient), grads("direct"), ROUNDING if gradient in EXACT else 1e-2)


@pytest.mark.parametrize("gradient", ALL)
def test_a_solve_that_starts_where_another_ended(gradient):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    options = {"rtol": 1e-9, "atol": 1e-9, "gradient": gradient}
    one = solve(lambda t, y: -w * y**2, y0, [0.0, 1.0], **options).ys
    two = solve(lambda t, y: -w * y**2, one[-1], [1.0, 2.0], **options).ys
    g0, gw = torch.autograd.grad(two[-1].sum() + one[-1].sum(), (y0, w))
    exact = [(1 / (1 + 0.5 * t) ** 2, -2 * t / (1 + 0.5 * t) ** 2) for t in (1.0, 2.0)]
    torch.testing.assert_close(g0, torch.full_like(y0, sum(e[0] for e in exact)), rtol=1e-6, atol=0)
    torch.testing.assert_close(gw.item(), sum(e[1] for e in exact), rtol=1e-6, atol=0)


def test_differences_sees_what_it_should():
    one = {"a": torch.ones(2), "b": None}
    assert differences(one, one) == {"a": 0.0, "b": 0.0}
    assert differences({"a": None, "b": torch.ones(1)}, one) == {"a": 1.0, "b": 1.0}
    with pytest.raises(AssertionError, match="above"):
        assert_same({"a": torch.tensor([1.0, 1.1]), "b": None}, one, 1e-3)
    assert not differences({"a": torch.full((2,), math.nan)}, {"a": torch.ones(2)})["a"] <= 1
