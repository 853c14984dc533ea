"""Solves inside torch.func transforms: the same numbers as outside, or an error in words."""

import math

import pytest
import torch
from problems import DOUBLE
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from torchaca import ACA, METHODS, PI_CONTROL, PID_CONTROL, Adaptive, Naive, SolverError, solve

RECORDED = ["aca", "direct", ACA(checkpoints="none")]
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
STARTS = torch.tensor([[0.3, 0.2], [1.5, 0.8], [3.0, 2.0]], dtype=DOUBLE)
close = {"rtol": 1e-11, "atol": 1e-11}
near = {"rtol": 1e-8, "atol": 1e-8}


def prey(t, y):
    return torch.stack([y[0] * (1 - y[1]) + 0.1 * torch.cos(t), y[1] * (y[0] - 1)])


def outputs(y0, ts=(0.0, 0.4, 1.3, 3.0), **options):
    return solve(prey, y0, list(ts), **{"rtol": 1e-5, "atol": 1e-7, **options}).ys[1:]


def alone(function, starts=STARTS):
    return torch.stack([function(y0) for y0 in starts])


def jacobian(y0, **options):
    return torch.autograd.functional.jacobian(lambda y: outputs(y, gradient="direct", **options), y0)


@pytest.mark.parametrize("gradient", RECORDED, ids=str)
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
@pytest.mark.parametrize(
    "options", [{}, {"n_steps": 7, "rtol": None, "atol": None}], ids=["adaptive", "fixed"]
)
def test_jacobians(transform, gradient, options):
    def function(y0):
        return outputs(y0, gradient=gradient, **options)

    right = alone(lambda y0: jacobian(y0, **options))
    torch.testing.assert_close(transform(function)(STARTS[1]), right[1], **close)
    torch.testing.assert_close(vmap(transform(function))(STARTS), right, **close)


@pytest.mark.parametrize("gradient", RECORDED, ids=str)
def test_products_with_a_jacobian(gradient):
    v, w = torch.tensor([0.3, -1.0], dtype=DOUBLE), torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(3, 2)
    right = jacobian(STARTS[1])

    def function(y0):
        return outputs(y0, gradient=gradient)

    torch.testing.assert_close(jvp(function, (STARTS[1],), (v,))[1], right @ v, **close)
    pulled = vjp(function, STARTS[1])[1](w)[0]
    torch.testing.assert_close(pulled, torch.einsum("ti,tij->j", w, right), **close)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(STARTS[1], v)
        tangent = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
    torch.testing.assert_close(tangent, right @ v, **close)


@pytest.mark.parametrize("gradient", ["aca", "direct"])
def test_hessians(gradient):
    def function(y0):
        return outputs(y0, gradient=gradient).prod()

    right = alone(lambda y0: torch.autograd.functional.hessian(lambda y: outputs(y).prod(), y0))
    torch.testing.assert_close(hessian(function)(STARTS[1]), right[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vmap(hessian(function))(STARTS), right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        *({"method": name} for name in ADAPTIVE),
        {"ts": (3.0, 1.0, 0.0)},
        {"ts": (0.0, 0.0, 1.0, 1.0)},
        {"dt0": 2.5},
        {"dt_max": 0.11},
        {"norm": "max"},
        {"atol": torch.tensor([1e-7, 1e-2], dtype=DOUBLE)},
        {"control": Adaptive(1e-4, 1e-6, pid=PI_CONTROL), "rtol": None, "atol": None},
        {"control": Adaptive(1e-4, 1e-6, pid=PID_CONTROL), "rtol": None, "atol": None},
        {"control": Adaptive(1e-4, 1e-6, stop_ts=(0.7, 2.1)), "rtol": None, "atol": None},
        {"control": Adaptive(1e-9, 1e-9, dt_min=0.2, accept_at_dt_min=True), "rtol": None, "atol": None},
    ],
    ids=str,
)
def test_each_lane_is_a_solve_of_its_own(options):
    def summed(y0):
        return outputs(y0, **options).square().sum()

    torch.testing.assert_close(
        vmap(lambda y: outputs(y, **options))(STARTS), alone(lambda y: outputs(y, **options))
    )
    slopes = alone(lambda y: torch.autograd.functional.jacobian(summed, y))
    # Where the first step's error is mostly rounding (dopri8), so is a bit of the step sizes behind it.
    torch.testing.assert_close(vmap(grad(summed))(STARTS), slopes, rtol=1e-7, atol=1e-7)


def test_lanes_have_steps_of_their_own():
    """A slow lane beside fast ones is as exact as alone: one common step size would differ at the tolerance's size."""
    rates = torch.tensor([0.1, 1.0, 30.0], dtype=DOUBLE)
    one = torch.ones((), dtype=DOUBLE)

    def solved(rate):
        return solve(lambda t, y: -rate * y * torch.cos(rate * t), one, [0.0, 1.0], rtol=1e-3)

    ends = vmap(lambda rate: solved(rate).ys[-1])(rates)
    singles = [solved(rate) for rate in rates]
    torch.testing.assert_close(ends, torch.stack([sol.ys[-1] for sol in singles]), rtol=1e-13, atol=0)
    assert singles[0].stats.accepted < singles[2].stats.accepted / 4


def test_the_counts_are_those_of_the_lane_with_most():
    counts = []
    vmap(lambda y0: counts.append(solve(prey, y0, [0.0, 3.0]).stats) or y0)(STARTS)
    singles = [solve(prey, y0, [0.0, 3.0]).stats for y0 in STARTS]
    assert counts[0].accepted == max(single.accepted for single in singles)
    assert counts[0].rejected == max(single.rejected for single in singles)
    assert counts[0].nfe >= max(single.nfe for single in singles)


def test_nested_states_and_nested_maps():
    def function(x, v):
        sol = solve(lambda t, s: {"v": -s["x"], "x": s["v"]}, {"x": x, "v": v}, [0.0, 1.0], rtol=1e-8)
        return sol.ys["x"][-1]

    x, v = torch.rand(2, 3, dtype=DOUBLE), torch.rand(2, 3, dtype=DOUBLE)
    mapped = vmap(vmap(function))(x, v)
    torch.testing.assert_close(mapped, x * math.cos(1) + v * math.sin(1), rtol=1e-6, atol=1e-6)
    crossed = vmap(vmap(function, (None, 0)), (0, None))(x[:, 0], v[0])
    torch.testing.assert_close(crossed[1, 2], function(x[1, 0], v[0, 2]), rtol=1e-12, atol=0)


def test_derivatives_around_and_inside_of_maps():
    def lane(y0):
        return outputs(y0).square().sum()

    v = torch.tensor([[0.3, -1.0], [0.5, 2.0], [-0.2, 0.1]], dtype=DOUBLE)
    right = alone(lambda y: torch.autograd.functional.jacobian(lane, y))
    torch.testing.assert_close(grad(lambda y: vmap(lane)(y).sum())(STARTS), right, **close)
    torch.testing.assert_close(grad(lambda y: vmap(lane, 1)(y.T).sum())(STARTS), right, **close)
    torch.testing.assert_close(jvp(vmap(lane), (STARTS,), (v,))[1], (right * v).sum(1), **close)
    torch.testing.assert_close(
        vmap(lambda y, v: jvp(lane, (y,), (v,))[1])(STARTS, v), (right * v).sum(1), **close
    )
    pairs = torch.stack([STARTS, STARTS.flip(0)])
    torch.testing.assert_close(
        vmap(vmap(grad(lane)), 1, 1)(pairs), torch.stack([right, right.flip(0)]), **close
    )
    inner = vmap(grad(lambda y: vmap(lane)(y).sum()))(pairs)
    torch.testing.assert_close(inner, torch.stack([right, right.flip(0)]), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_dtypes(dtype):
    starts = STARTS.to(dtype)
    mapped = vmap(lambda y: solve(lambda t, y: 1j * y if y.is_complex() else -y * y, y, [0.0, 0.3, 1.0]).ys)(
        starts
    )
    assert mapped.dtype == dtype
    single = [solve(lambda t, y: 1j * y if y.is_complex() else -y * y, y, [0.0, 0.3, 1.0]).ys for y in starts]
    torch.testing.assert_close(mapped, torch.stack(single))


def ensemble(n=3):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double() for _ in range(n)]
    return nets, stack_module_state(nets)[0]


@pytest.mark.parametrize("inside", [True, False], ids=["vmap of grad", "backward of vmap"])
def test_ensembles(inside):
    nets, params = ensemble()

    def loss(weights):
        ys = solve(
            lambda t, y: functional_call(nets[0], weights, (y,)), STARTS, [0.0, 0.5, 2.0], rtol=1e-6
        ).ys
        return ys.square().sum()

    if inside:
        grads = vmap(grad(loss))(params)
    else:
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
        vmap(loss)(params).sum().backward()
        grads = {name: p.grad for name, p in params.items()}
    for i, net in enumerate(nets):
        solve(lambda t, y, net=net: net(y), STARTS, [0.0, 0.5, 2.0], rtol=1e-6).ys.square().sum().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(grads[name][i], p.grad, **close)


def test_a_rejected_overflow_in_one_lane_leaves_no_nan():
    """A first step that is far too long overflows in exp; its gradient is nan, and nobody must meet it."""
    starts = torch.tensor([0.0, 3.0, 6.0], dtype=DOUBLE)

    def end(y0):
        return solve(lambda t, y: -torch.exp(y * y / 3), y0, [0.0, 1.0], dt0=1.0).ys[-1]

    right = alone(lambda y: torch.autograd.functional.jacobian(end, y), starts)
    assert torch.isfinite(right).all()
    torch.testing.assert_close(vmap(grad(end))(starts), right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", ["adjoint", ACA(checkpoints="sqrt"), ACA(stagewise=True)], ids=str)
@pytest.mark.parametrize("transform", [vmap, grad, jacrev, jacfwd])
def test_gradients_that_record_for_themselves_are_refused(transform, gradient):
    with pytest.raises(
        NotImplementedError, match=r"torch\.func.*use gradient='aca' without settings, or 'direct'"
    ):
        transform(lambda y: outputs(y, gradient=gradient).sum())(STARTS[0])


def test_naive_through_one_lane_only():
    right = torch.autograd.functional.jacobian(lambda y: outputs(y, gradient="naive"), STARTS[1])
    torch.testing.assert_close(jacrev(lambda y: outputs(y, gradient="naive"))(STARTS[1]), right, **close)
    with pytest.raises(NotImplementedError, match=r"'naive' is not available.*vmap.*'aca' or 'direct'"):
        vmap(lambda y: outputs(y, gradient=Naive()))(STARTS)


def test_what_lanes_cannot_do():
    jumps = torch.tensor([0.5], dtype=DOUBLE, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"respect to jump_ts are not available.*vmap.*n_steps"):
        vmap(lambda y: outputs(y, jump_ts=jumps))(STARTS)


@pytest.mark.parametrize("ts", [[0.0, 1.0, 2.0], [2.0, 0.7, 0.6], [0.6, 1.2, 1.5]], ids=str)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_lanes_end_their_steps_at_jumps(name, ts):
    """Methods that hand on more than y start afresh there, in the lanes that are there."""

    def f(t, y):
        return torch.where(t >= 0.6, -y, y.flip(0)) + torch.where(t >= 1.5, 2.0, 0.0)

    def end(y0):
        return solve(f, y0, ts, method=name, rtol=1e-3, jump_ts=[1.5, 0.6], dt_max=0.4).ys[1:]

    def loss(y0):
        return end(y0).square().sum()

    torch.testing.assert_close(vmap(end)(STARTS), alone(end), **near)
    torch.testing.assert_close(vmap(grad(loss))(STARTS), alone(grad(loss)), **near)


AT = torch.tensor([0.0, 0.31, 2.9, 0.7, 3.0, 1.1], dtype=DOUBLE)


def queries(y0, t, **options):
    """Values and derivatives inside of the steps."""
    sol = solve(prey, y0, [0.0, 1.3, 3.0], dense=True, **{"rtol": 1e-5, "atol": 1e-7, **options})
    return torch.cat([sol(t), sol.derivative(t)])


@pytest.mark.parametrize(
    "options", [*({"method": name} for name in ADAPTIVE), {"n_steps": 5, "rtol": None, "atol": None}], ids=str
)
def test_dense_output_in_lanes(options):
    def summed(y0):
        return queries(y0, AT, **options).square().sum()

    right = alone(lambda y: queries(y, AT, **options))
    torch.testing.assert_close(vmap(lambda y: queries(y, AT, **options))(STARTS), right, rtol=1e-8, atol=1e-8)
    slopes = alone(lambda y: torch.autograd.functional.jacobian(summed, y))
    torch.testing.assert_close(vmap(grad(summed))(STARTS), slopes, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(grad(lambda ys: vmap(summed)(ys).sum())(STARTS), slopes, rtol=1e-7, atol=1e-7)


def test_dense_output_in_lanes_by_time_and_backwards():
    def program(t):
        return vmap(lambda y: queries(y, t))(STARTS)

    v = torch.linspace(-1, 1, len(AT), dtype=DOUBLE)
    right = torch.autograd.functional.jvp(lambda t: alone(lambda y: queries(y, t)), AT, v)[1]
    torch.testing.assert_close(jvp(program, (AT,), (v,))[1], right, rtol=1e-8, atol=1e-8)

    def back(y):
        return solve(prey, y, [3.0, 0.0], rtol=1e-5, dense=True)(AT)

    torch.testing.assert_close(vmap(back)(STARTS), alone(back), rtol=1e-8, atol=1e-8)
    pairs = torch.stack([STARTS, STARTS.flip(0)])
    torch.testing.assert_close(
        vmap(vmap(back), 1, 1)(pairs), torch.stack([alone(back), alone(back).flip(0)]), rtol=1e-8, atol=1e-8
    )
    with pytest.raises(ValueError, match="outside of the solve"):
        vmap(lambda y: queries(y, 3.1))(STARTS)


def test_dense_output_of_lanes_that_fail():
    """nan from there on, where the others go on; no nan in what the lanes share."""
    starts = torch.tensor([0.1, 2.0], dtype=DOUBLE)

    def at(y0, w, times=(0.2, 0.9)):
        sol = solve(lambda t, y: w * y * y, y0, [0.0, 1.0], dense=True, on_failure="nan")
        return torch.stack([sol(times), sol.derivative(times)])

    one = torch.ones((), dtype=DOUBLE)
    found = vmap(lambda y: at(y, one))(starts)
    assert torch.isnan(found).tolist() == [[[False, False]] * 2, [[False, True]] * 2]
    torch.testing.assert_close(found[0], at(starts[0], one), rtol=1e-9, atol=1e-9)
    shared = grad(lambda w: vmap(lambda y: at(y, w))(starts)[:, :, 0].sum())(one)
    right = grad(lambda w: at(starts[0], w, [0.2]).sum() + at(starts[1], w, [0.2]).sum())(one)
    torch.testing.assert_close(shared, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{}, {"n_steps": 5, "rtol": None, "atol": None}], ids=["adaptive", "fixed"]
)
@pytest.mark.parametrize("gradient", RECORDED, ids=str)
def test_dense_output_in_forward_mode(gradient, options):
    def program(y0, t):
        return queries(y0, t, gradient=gradient, **options)

    at, along = (
        (STARTS[1], AT[:-1]),
        (torch.tensor([0.3, -1.0], dtype=DOUBLE), torch.linspace(-1, 1, 5, dtype=DOUBLE)),
    )
    right = torch.autograd.functional.jvp(program, at, along)[1]
    torch.testing.assert_close(jvp(program, at, along)[1], right, **close)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(x, v) for x, v in zip(at, along, strict=True)]
        tangent = torch.autograd.forward_ad.unpack_dual(program(*duals)).tangent
    torch.testing.assert_close(tangent, right, **close)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("step-size", {}), ("max-steps", {"max_steps": 4}), ("dt-min", {"dt_min": 0.05})],
    ids=["step-size", "max-steps", "dt-min"],
)
def test_a_lane_that_fails_names_the_time(kind, options):
    starts = torch.tensor([0.1, 2.0], dtype=DOUBLE)
    with pytest.raises(SolverError, match="a lane of vmap") as caught:
        vmap(lambda y: solve(lambda t, y: y * y, y, [0.0, 1.0], **options).ys)(starts)
    assert caught.value.kind == kind
    assert caught.value.t <= 0.5 + 1e-6
