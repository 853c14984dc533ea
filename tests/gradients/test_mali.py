"""Reversible backpropagation: equal to plain backpropagation, at a constant memory, and honest where it cannot be."""

import gc
import math
import weakref

import pytest
import torch
from covering import covering, pairs
from gradient_cases import DOUBLE, Counter, Everything, assert_same, central_difference, gradients_of, loss_of
from torch import nn
from torch.autograd import gradcheck

import torchaca
from torchaca import ACA, ALF, MALI, SolverError, solve

METHODS = ("alf", "reversible_heun")
ROUNDING = 1e-11
TIMES = {  # with n_steps=3 the steps end at 0.5 and 1.0
    "inside": [0.0, 0.1, 0.2, 0.3, 1.1, 1.5],
    "duplicates-and-step-ends": [0.0, 0.0, 0.4, 0.4, 0.5, 0.5, 1.5, 1.5],
    "decreasing": [1.5, 1.4, 0.5, 0.3, 0.0],
    "end-only": [0.0, 1.5],
}
STEPS = {
    "n_steps": {"n_steps": 3},
    "dt": {"dt": 0.13},
    "outputs-as-grid": {"control": torchaca.FixedSteps()},
    "adaptive": {"rtol": 1e-2, "atol": 1e-2, "dt0": 0.9},
    "jumps": {"rtol": 1e-2, "atol": 1e-2, "jump_ts": [0.15, 0.7]},
    "jump-at-t0": {"rtol": 1e-2, "atol": 1e-2, "jump_ts": [0.0, 0.4]},
}


# --- equal to plain backpropagation ---


@pytest.mark.parametrize(("method", "steps", "times"), covering(METHODS, STEPS, TIMES, strength=2))
def test_equals_direct(method, steps, times):
    options, case = STEPS[steps], Everything(TIMES[times], differentiate_times=times != "decreasing")
    want = case.gradients("direct", method=method, **options)
    sol = case.solve("mali", method=method, **options)
    assert_same(gradients_of(sol.ys, case.inputs), want, ROUNDING)
    assert 0 < sol.stats.reconstruction_error < 1e-14


SETTINGS = (
    *(
        MALI(anchors=1),
        MALI(anchors=3),
        ACA(checkpoints="sqrt"),
        ACA(checkpoints=5),
        ACA(checkpoints="binomial"),
    ),
    *(ACA(checkpoints="none"), ACA(stagewise=True), ACA(memory_budget=20_000)),
)


@pytest.mark.parametrize(("method", "gradient"), pairs([*METHODS, ALF(eta=0.9)], SETTINGS), ids=str)
def test_every_setting_gives_the_gradient_of_direct(method, gradient):
    case = Everything(TIMES["inside"])
    options = {"method": method, "rtol": 1e-2, "atol": 1e-2}
    assert_same(case.gradients(gradient, **options), case.gradients("direct", **options), 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_step_times_of_a_given_grid_are_differentiated(method):
    case = Everything(TIMES["inside"])
    case.inputs["grid"] = torch.tensor([0.0, 0.3, 0.4, 1.1, 1.5], dtype=DOUBLE, requires_grad=True)
    options = {"method": method, "grid": case.inputs["grid"]}
    want = case.gradients("direct", **options)
    assert want["grid"][1:-1].abs().min() > 1e-6
    assert_same(case.gradients("mali", **options), want, ROUNDING)


@pytest.mark.parametrize("options", [{"n_steps": 3}, {"rtol": 1e-2}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_direct_for_dense_output(method, options):
    case = Everything([0.0, 0.4, 1.5])
    case.inputs["queries"] = torch.tensor(
        [[1.2, 0.0, 0.7], [0.71, 1.5, 0.1]], dtype=DOUBLE, requires_grad=True
    )

    def grads(name, with_ys):
        sol = case.solve(name, method=method, dense=True, **options)
        at = sol(case.inputs["queries"])
        return gradients_of((at, sol.ys) if with_ys else at, case.inputs)

    for with_ys in (True, False):
        want = grads("direct", with_ys)
        for gradient in ("mali", "aca"):
            assert_same(grads(gradient, with_ys), want, ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_equals_direct_for_complex_states(method):
    generator = torch.Generator().manual_seed(5)
    y0 = torch.randn(2, generator=generator, dtype=torch.complex128).requires_grad_()
    omega = torch.randn(2, generator=generator, dtype=DOUBLE).requires_grad_()
    mix = torch.randn(2, 2, generator=generator, dtype=torch.complex128).requires_grad_()
    times = torch.tensor([0.0, 0.3, 0.9, 1.2], dtype=DOUBLE, requires_grad=True)
    inputs = {"y0": y0, "omega": omega, "mix": mix, "times": times}

    def grads(name):
        def f(t, y):
            return 1j * omega * y + 0.3 * torch.cos(t) * (mix @ y) - 0.1 * y * y.abs() ** 2

        return gradients_of(solve(f, y0, times, method=method, gradient=name, rtol=1e-3).ys, inputs)

    assert_same(grads("mali"), grads("direct"), ROUNDING)


@pytest.mark.parametrize(
    ("method", "options", "times"),
    covering(
        [*METHODS, ALF(eta=0.8)],
        [{"n_steps": 2}, {"dt": 0.37}],
        [(0.1, 0.3, 0.35, 0.8, 1.0), (1.0, 0.7, 0.1)],
        strength=2,
    ),
    ids=str,
)
def test_gradcheck(method, options, times):
    """With respect to y0, a parameter, an argument, a captured history and every time."""

    def program(y0, theta, arg, root, times):
        history = root * theta

        def f(t, y, a):
            return torch.tanh(theta * y.flip(0)) * torch.cos(t + a) + history.sin() * y

        return solve(f, y0, times, args=(arg,), method=method, gradient="mali", **options).ys

    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(2, generator=generator, dtype=DOUBLE) for _ in range(2)]
    inputs += [torch.tensor(x, dtype=DOUBLE) for x in (0.4, 0.8)]
    inputs.append(torch.tensor(times, dtype=DOUBLE))
    assert gradcheck(program, tuple(x.requires_grad_() for x in inputs), atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_f_that_differentiates_itself(method):
    torch.manual_seed(4)
    h = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    y0 = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)

    def hamiltonian(t, y):
        (dh,) = torch.autograd.grad(h(y).sum(), y, create_graph=True)
        dq, dp = dh.chunk(2, -1)
        return torch.cat([dp, -dq], -1)

    inputs = {"y0": y0, **dict(h.named_parameters())}
    got, want = (
        gradients_of(solve(hamiltonian, y0, [0.0, 0.4, 1.0], method=method, gradient=g, n_steps=9).ys, inputs)
        for g in ("mali", "direct")
    )
    assert_same(got, want, ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_f_that_is_constant_or_the_state_itself(method):
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    c = torch.tensor([0.5, 2.0], dtype=DOUBLE, requires_grad=True)
    options = {"method": method, "gradient": "mali", "n_steps": 50}
    g0, gc = torch.autograd.grad(solve(lambda t, y: c, y0, [0.0, 0.3, 1.0], **options).ys[1:].sum(), (y0, c))
    torch.testing.assert_close(g0, torch.full_like(y0, 2.0))
    torch.testing.assert_close(gc, torch.full_like(y0, 1.3))
    ys = solve(lambda t, y: y, y0, [0.0, 1.0], **options).ys
    torch.testing.assert_close(torch.autograd.grad(ys[-1].sum(), y0)[0], ys[-1].detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_leaf_that_f_uses_only_later(method):
    late = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)

    def grads(name):
        f = lambda t, y: y if t < 0.5 else late * y  # noqa: E731
        return gradients_of(
            solve(f, y0, [0.0, 1.0], method=method, gradient=name, n_steps=8).ys, {"late": late, "y0": y0}
        )

    assert grads("direct")["late"] is not None
    assert_same(grads("mali"), grads("direct"), ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_float32_and_autocast_give_the_gradient_of_direct(method):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 4), torch.randn(5, 4)
    for enabled, close in ((False, 1e-5), (True, 0.05)):
        grads = []
        for name in (MALI(tolerance=0.05), "direct"):
            dtypes = []

            def f(t, y, dtypes=dtypes):
                out = net(y)
                dtypes.append(out.dtype)
                return torch.tanh(out).to(y.dtype)

            with torch.autocast("cpu", torch.bfloat16, enabled):
                ys = solve(f, x, [0.0, 1.0], method=method, gradient=name, n_steps=10).ys
            (g,) = torch.autograd.grad(ys[-1].square().sum(), net.weight)
            assert set(dtypes) == {torch.bfloat16 if enabled else torch.float32}
            grads.append(g)
        assert ((grads[0] - grads[1]).norm() / grads[1].norm()).item() < close


@pytest.mark.parametrize("method", METHODS)
def test_aca_replays_a_random_f(method):
    """The first step draws for the slope that it starts with, too."""
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    y0 = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)

    def grads(name):
        torch.manual_seed(3)
        ys = solve(
            lambda t, y: torch.tanh(net(y)), y0, [0.0, 0.3, 1.0], method=method, gradient=name, n_steps=6
        ).ys
        return gradients_of(ys, {"y0": y0, **dict(net.named_parameters())})

    want = grads("direct")
    for gradient in ("aca", ACA(checkpoints=2)):
        assert_same(grads(gradient), want, ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_naive_is_the_derivative_of_the_whole_program(method):
    def program(y0):
        f = lambda t, y: torch.sin(2 * y.flip(0)) * torch.cos(3 * t)  # noqa: E731
        return loss_of(
            solve(f, y0, [0.0, 0.7, 1.5], method=method, gradient="naive", rtol=0.1, atol=0.1, dt0=0.9).ys
        )

    y0 = torch.tensor([1.0, -0.5], dtype=DOUBLE, requires_grad=True)
    (g,) = torch.autograd.grad(program(y0), y0)
    torch.testing.assert_close(g, central_difference(program, y0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_several_cotangents_at_once(method):
    w = torch.tensor([[0.3, -1.0], [0.8, 0.2]], dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)

    def jacobians(name):
        ys = solve(
            lambda t, y: torch.tanh(y @ w), y0, [0.0, 0.35, 1.0], method=method, gradient=name, n_steps=5
        ).ys
        return torch.autograd.grad(ys[1] + ys[2], (y0, w), torch.eye(2, dtype=DOUBLE), is_grads_batched=True)

    for got, want in zip(jacobians("mali"), jacobians("direct"), strict=True):
        torch.testing.assert_close(got, want, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_debug_sees_what_it_sees_of_the_others(method):
    w = torch.tensor([[0.3, -1.0], [0.8, 0.2]], dtype=DOUBLE, requires_grad=True)
    seen = {}
    for name in ("direct", "aca", "mali"):
        sol = solve(
            lambda t, y: torch.tanh(y @ w), torch.ones(2, dtype=DOUBLE), [0.0, 0.4, 1.0], method=method,
            gradient=name, n_steps=5, debug=True,
        )  # fmt: skip
        sol.ys.square().sum().backward()
        seen[name] = [(p.step, p.t0, p.t1, p.norm, p.growth) for p in sol.trace.points]
    assert len(seen["mali"]) == 5
    for name in ("aca", "mali"):
        for got, want in zip(seen[name], seen["direct"], strict=True):
            assert got == pytest.approx(want, rel=1e-10)


# --- what it costs ---


def bytes_held(gradient, n_steps, method="alf"):
    """What autograd holds between the forward and the backward pass."""
    net = nn.Linear(50, 50).double()
    y0 = torch.randn(50, dtype=DOUBLE, requires_grad=True)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    held = {}

    def hold(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
        sol = solve(
            lambda t, y: torch.tanh(net(y)), y0, [0.0, 1.0], method=method, gradient=gradient, n_steps=n_steps
        )
    sol.ys.sum().backward()
    return sum(size for place, size in held.items() if place not in weights)


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_number_of_steps(method):
    rows = len(torchaca.METHODS[method].units(1.0))
    state = 50 * 8
    for n_steps in (10, 100, 1000):
        assert bytes_held("mali", n_steps, method) <= state * (3 + 9 * rows)
        assert bytes_held(MALI(anchors=1), n_steps, method) <= state * (
            3 + 2 * rows
        )  # y0, the copy that f got first, f0, the anchor, the end
    assert bytes_held(ACA(checkpoints="all"), 100, method) > 90 * rows * state
    assert bytes_held("direct", 100, method) > 90 * state


def test_the_backward_pass_holds_the_graph_of_one_step_at_a_time():
    alive, most = set(), 0

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal most
            ctx.token = Token()
            most = max(most, len(alive))
            return torch.sin(x)

        @staticmethod
        def backward(ctx, g):
            return g

    class Token:
        def __init__(self):
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    for method in METHODS:
        ys = solve(
            lambda t, y: Traced.apply(y), y0, [0.0, 1.0], method=method, gradient="mali", n_steps=50
        ).ys
        alive.clear()
        most = 0
        ys.sum().backward()
        assert 1 <= most <= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_undone_and_differentiated_with_one_evaluation(method):
    w = torch.tensor([0.5, -0.7], dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    costs = {}
    for n in (2, 300):
        f = Counter(lambda t, y: torch.sin(3 * w * y) + torch.cos(5 * t))
        sol = solve(
            f, y0, torch.linspace(0, 2, n, dtype=DOUBLE), method=method, gradient="mali", rtol=1e-3, atol=1e-3
        )
        assert f.calls == sol.stats.nfe
        f.calls = 0
        sol.ys.sum().backward(retain_graph=True)
        assert f.calls == sol.stats.nfe_backward == sol.stats.accepted + 1
        sol.ys.sum().backward()
        assert sol.stats.nfe_backward == 2 * (sol.stats.accepted + 1)
        costs[n] = sol.stats.nfe_backward
    assert costs[2] == costs[300]


def test_a_solve_is_freed_with_its_outputs():
    net = nn.Linear(2, 2)

    def solved(backward):
        ys = solve(
            lambda t, y: net(y), torch.ones(2), [0.0, 1.0], method="alf", gradient="mali", n_steps=5
        ).ys
        if backward:
            ys.sum().backward()
        return weakref.ref(ys)

    gc.disable()
    try:
        assert solved(True)() is None
        assert solved(False)() is None
    finally:
        gc.enable()


def test_parameters_changed_in_place_are_noticed():
    net = nn.Linear(2, 2)
    ys = solve(lambda t, y: net(y), torch.ones(2), [0.0, 1.0], method="alf", gradient="mali", n_steps=5).ys
    with torch.no_grad():
        net.weight.mul_(1.1)
    with pytest.raises(
        RuntimeError, match=r"changed in place.*call backward\(\) first.*modified by an inplace"
    ):
        ys.sum().backward()


def test_buffers_do_not_move_in_the_backward_pass():
    norm = nn.BatchNorm1d(3).double()
    y0 = torch.randn(8, 3, dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: norm(y), y0, [0.0, 1.0], method="alf", gradient="mali", n_steps=5).ys
    before = norm.running_mean.clone()
    ys.sum().backward()
    assert torch.equal(norm.running_mean, before)


# --- the check of the reconstruction ---

CONTRACTING = {"method": "alf", "n_steps": 400}


def contracting(gradient, rate=6.0, **options):
    """y' = -rate (y - cos t) over [0, 5]: forgets its start, so that undoing has to invent it."""
    k = torch.tensor(rate, dtype=DOUBLE, requires_grad=True)
    y0 = torch.full((2,), 1.5, dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: -k * (y - torch.cos(t)), y0, [0.0, 5.0], gradient=gradient, **{**CONTRACTING, **options}
    )
    return sol, k


def test_a_reconstruction_that_is_off_is_an_error():
    sol, k = contracting(MALI(anchors=1))
    with pytest.raises(SolverError) as caught:
        torch.autograd.grad(sol.ys[-1].sum(), k)
    error = caught.value
    assert error.kind == "reconstruction"
    assert error.backward
    assert 0 < error.t < 5
    assert sol.stats.reconstruction_error > 1e-8
    for part in (
        "in the backward pass",
        "off by",
        "1.5e-08",
        "contracts",
        "try: gradient='aca'",
        "anchors",
        "float64",
    ):
        assert part in str(error), part


def test_anchors_make_the_reconstruction_start_anew():
    sol, k = contracting("direct")
    (want,) = torch.autograd.grad(sol.ys[-1].sum(), k)
    reported, wrong = [], []
    for anchors in (1, 8, 64):
        sol, k = contracting(MALI(anchors=anchors, tolerance=1e9))
        (g,) = torch.autograd.grad(sol.ys[-1].sum(), k)
        reported.append(sol.stats.reconstruction_error)
        wrong.append(abs(g.item() / want.item() - 1))
    assert reported[0] > 1e-5
    assert 1e-10 > reported[1] > 10 * reported[2]
    assert wrong[0] > 1e-3
    assert wrong[1] < 1e-9


def test_the_tolerance_is_a_setting():
    sol, k = contracting("mali", rate=2.0)
    torch.autograd.grad(sol.ys[-1].sum(), k)
    found = sol.stats.reconstruction_error
    assert 0 < found < 1.5e-8
    sol, k = contracting(MALI(tolerance=0.5 * found), rate=2.0)
    with pytest.raises(SolverError, match="reconstruct"):
        torch.autograd.grad(sol.ys[-1].sum(), k)


def test_damping_is_named_where_it_spoils_the_reconstruction():
    sol, k = contracting(MALI(anchors=1), method=ALF(eta=0.8), rate=1.0)
    with pytest.raises(
        SolverError, match=r"ALF\(eta=0\.8\) amplifies every rounding error 1\.67-fold a step"
    ):
        torch.autograd.grad(sol.ys[-1].sum(), k)


def test_what_f_reads_may_not_change_before_the_backward_pass():
    scale = torch.tensor(1.0, dtype=DOUBLE)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    ys = solve(
        lambda t, y: scale * torch.sin(y), y0, [0.0, 1.0], method="alf", gradient="mali", n_steps=10
    ).ys
    scale.fill_(1.1)
    with pytest.raises(SolverError, match="f reads something that was changed"):
        ys.sum().backward()


def test_a_solution_that_is_not_finite_gives_a_gradient_that_is_not():
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    sol = solve(lambda t, y: y**4, y0, [0.0, 5.0], method="alf", gradient="mali", n_steps=20)
    assert sol.status == "non-finite"
    assert not torch.isfinite(torch.autograd.grad(sol.ys[-1].sum(), y0)[0]).all()


def test_a_solve_that_takes_no_step_is_its_initial_state():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    f = lambda t, y: y if t == 0 else y * math.nan  # noqa: E731
    sol = solve(f, y0, [0.0, 1.0], method="alf", gradient="mali", on_failure="status")
    assert len(sol.ys) == 1
    assert torch.equal(torch.autograd.grad(sol.ys.sum(), y0)[0], torch.ones(2, dtype=DOUBLE))


# --- what it refuses ---


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "heun_euler"])
def test_methods_that_cannot_be_reversed(method, trained):
    y0 = torch.ones(1, requires_grad=trained)
    with pytest.raises(ValueError, match="needs a reversible method") as caught:
        solve(lambda t, y: -y, y0, [0.0, 1.0], method=method, gradient="mali", n_steps=2)
    for part in ("try method='alf' or 'reversible_heun'", "or gradient='aca'"):
        assert part in str(caught.value)


def test_a_damping_without_inverse():
    y0 = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=r"cannot undo ALF\(eta=0\.5\).* try eta=1; or gradient='aca'"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], method=ALF(eta=0.5), gradient="mali")
    ys = solve(lambda t, y: -y, y0, [0.0, 1.0], method=ALF(eta=0.5)).ys
    assert torch.autograd.grad(ys[-1].sum(), y0)[0].item() == pytest.approx(math.exp(-1), rel=0.05)


def test_a_random_f():
    drop, y0 = nn.Dropout(0.5), torch.ones(4, requires_grad=True)
    with pytest.raises(ValueError, match=r"draws random numbers .* gradient='aca'.*model.eval"):
        solve(lambda t, y: drop(y), y0, [0.0, 1.0], method="alf", gradient="mali", n_steps=2)


def test_second_derivatives():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: torch.sin(y), y0, [0.0, 1.0], method="alf", gradient="mali", n_steps=4).ys
    (g,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivatives .*'mali'.* use gradient='aca'"):
        g.sum().backward()


def test_transforms():
    with pytest.raises(
        NotImplementedError, match=r"'mali' with these settings does not run inside torch\.func"
    ):
        torch.func.grad(
            lambda y: solve(lambda t, y: -y, y, [0.0, 1.0], method="alf", gradient="mali").ys.sum()
        )(torch.ones(2))


def test_lanes_of_an_adaptive_solve():
    f, y0 = lambda t, y: -y, torch.tensor([[1.0, 2.0], [0.1, 0.2], [5.0, 0.0]], dtype=torch.float64)
    ends = torch.func.vmap(lambda y: solve(f, y, [0.0, 1.0], method="alf").ys[-1])(y0)
    for y, end in zip(y0, ends, strict=True):
        torch.testing.assert_close(end, solve(f, y, [0.0, 1.0], method="alf").ys[-1])
    ends = torch.func.vmap(lambda y: solve(f, y, [0.0, 1.0], method="alf", n_steps=5).ys[-1])(y0)
    torch.testing.assert_close(ends, solve(f, y0, [0.0, 1.0], method="alf", n_steps=5).ys[-1])


@pytest.mark.parametrize("anchors", [0, -1, 1.5, "many", None])
def test_wrong_anchors(anchors):
    with pytest.raises(ValueError, match="anchors is a number of states of at least 1, got"):
        MALI(anchors=anchors)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_wrong_tolerances(tolerance):
    with pytest.raises(ValueError, match="tolerance must be greater than 0, got"):
        MALI(tolerance=tolerance)


def test_the_adjoint_takes_the_methods_too():
    case = Everything(TIMES["inside"])
    want = case.gradients("direct", method="dopri8", rtol=1e-9, atol=1e-9)
    errors = [
        max(
            (case.gradients("adjoint", method="reversible_heun", n_steps=n)[name] - want[name])
            .abs()
            .max()
            .item()
            for name in ("z0", "a", "times")
        )
        for n in (50, 100)
    ]
    assert errors[1] < 0.4 * errors[0]
    assert loss_of(case.solve("adjoint", method="alf", n_steps=50).ys).isfinite()
