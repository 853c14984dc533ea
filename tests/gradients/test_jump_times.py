"""Derivatives with respect to the times at which f jumps: steps end there, and move with them."""

import math
from functools import cache

import pytest
import torch
from gradient_cases import ADAPTIVE, CONTINUOUS, DOUBLE, SETTINGS, central_difference, takes
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jvp

from torchaca import ACA, METHODS, Adaptive, Adjoint, solve
from torchaca.executors import EXECUTORS

EVERY = {**SETTINGS, "aca-substeps": ACA(substeps=3), "aca-grad_rtol": ACA(grad_rtol=1e-6)}
REFUSED = {name for name, g in EVERY.items() if name in CONTINUOUS or isinstance(g, Adjoint)}
RIGHT = [name for name in EVERY if name not in REFUSED]
S = torch.tensor(0.5, dtype=DOUBLE)


def lagging(s):
    """(y, the integral of y) of y' = -y + [t >= s]."""
    return lambda t, y: torch.stack([-y[0] + (t >= s), y[0]])


def integral(s, times=(0.0, 1.0), **options):
    y0 = torch.tensor([0.3, 0.0], dtype=DOUBLE)
    options = {"rtol": 1e-9, "atol": 1e-9, "jump_ts": s, **options}
    return solve(lagging(s.detach()), y0, list(times), **options).ys[-1, 1]


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.2, 0.7, 1.0), (0.0, 0.5, 1.0)], ids=str)
@pytest.mark.parametrize("name", RIGHT)
def test_the_integral_by_the_time_of_a_jump(name, times):
    """-1 + exp(-0.5), also where an output is at the jump."""
    s, method = S.clone().requires_grad_(), takes(name)[0]
    loose = {"rtol": 1e-6, "atol": 1e-6} if method != "dopri5" else {}
    (found,) = torch.autograd.grad(integral(s, times, gradient=EVERY[name], method=method, **loose), s)
    assert found.item() == pytest.approx(math.exp(-0.5) - 1, abs=1e-4 if loose else 1e-8)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_derivative_by_it_says_so(name):
    with pytest.raises(
        ValueError, match=r"no derivative with respect to grid or jump_ts.*use gradient='aca'"
    ):
        integral(S.clone().requires_grad_(), gradient=EVERY[name])
    with torch.no_grad():
        integral(S.clone().requires_grad_(), gradient=EVERY[name])
    integral(S, gradient=EVERY[name])


@pytest.mark.parametrize("method", ADAPTIVE)
def test_in_every_method(method):
    s = S.clone().requires_grad_()
    (found,) = torch.autograd.grad(integral(s, method=method, rtol=1e-6, atol=1e-6), s)
    close = 1e-3 if METHODS[method].order < 3 else 1e-4  # of low orders the solution itself is less exact
    assert found.item() == pytest.approx(math.exp(-0.5) - 1, abs=close)


JUMPS = torch.tensor([1.4, 0.3, 5.0, 0.8, -2.0], dtype=DOUBLE)  # unsorted, and some outside of the solve
ENDS = {"forwards": [0.0, 0.5, 2.0], "backwards": [2.0, 0.5, 0.0], "moving": None}
W = torch.tensor([[0.4, -0.9], [1.1, 0.2]], dtype=DOUBLE)


def kicked(jumps, y0, t, w=W, **options):
    """A field that jumps in value and slope, by an amount that depends on the state."""

    def f(t, y):
        jumped = sum((i + 1) * (t >= s) for i, s in enumerate(jumps.detach()))
        return torch.tanh(w @ y) * (1 + 0.1 * jumped) - 0.2 * jumped * t

    return solve(f, y0, t, jump_ts=jumps, **{"rtol": 1e-9, "atol": 1e-9, **options})


def kicked_loss(jumps, times, **options):
    t = (
        ENDS[times]
        if ENDS[times] is not None
        else torch.stack([0 * jumps[0], jumps[1] + 0.2, 2 + 0 * jumps[0]])
    )
    sol = kicked(jumps, torch.tensor([0.5, -0.3], dtype=DOUBLE), t, **options)
    values = [sol.ys[1:].square().sum(), sol.ys[-1].prod()]
    if options.get("dense"):
        values += [sol([0.31, 1.1]).sum(), sol.derivative(0.9).prod()]
    return sum(values)


@cache
def differences_of(times):
    return central_difference(lambda s: kicked_loss(s, times, rtol=1e-11, atol=1e-11), JUMPS, eps=1e-5)


@pytest.mark.parametrize("times", ENDS)
@pytest.mark.parametrize("name", RIGHT)
def test_finite_differences(name, times):
    options = {"gradient": EVERY[name], "method": takes(name)[0]}
    options |= {} if options["method"] == "dopri5" else {"rtol": 1e-6, "atol": 1e-6}
    jumps = JUMPS.clone().requires_grad_()
    (found,) = torch.autograd.grad(kicked_loss(jumps, times, **options), jumps)
    right = differences_of(times)
    assert right.abs().max() > 0.01
    close = 1e-6 if options["method"] == "dopri5" else 1e-3
    torch.testing.assert_close(found, right, rtol=close, atol=close)


@pytest.mark.parametrize("name", [name for name in RIGHT if EVERY[name].name != "naive"])
def test_equals_direct_to_rounding_with_dense_output(name):
    if name.startswith(("aca-substeps", "aca-grad_rtol")):
        pytest.skip("differentiates other steps")
    method = takes(name)[0]
    loose = {"rtol": 1e-4, "atol": 1e-4, "method": method, "dense": True}
    found = []
    for gradient in (EVERY[name], "direct"):
        jumps = JUMPS.clone().requires_grad_()
        value = kicked_loss(jumps, "forwards", gradient=gradient, **loose)
        found.append((value.detach(), *torch.autograd.grad(value, jumps)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "mali" and "grad_rtol" not in name])
def test_second_derivatives(name):
    options = {"gradient": EVERY[name], "method": takes(name)[0], "rtol": 1e-9, "atol": 1e-9}

    def slope(jumps, **options):
        return torch.autograd.grad(kicked_loss(jumps, "forwards", **options), jumps, create_graph=True)[0]

    jumps, v = JUMPS.clone().requires_grad_(), torch.tensor([1.0, -0.5, 1.0, 0.7, 1.0], dtype=DOUBLE)
    (found,) = torch.autograd.grad(slope(jumps, **options) @ v, jumps)
    exact = {"gradient": "direct", "rtol": 1e-11, "atol": 1e-11}
    ahead, behind = (slope((JUMPS + h * v).requires_grad_(), **exact).detach() for h in (1e-5, -1e-5))
    torch.testing.assert_close(found, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-4)


def test_in_transforms_and_forward_mode():
    right = math.exp(-0.5) - 1
    one = torch.ones((), dtype=DOUBLE)
    assert grad(integral)(S).item() == pytest.approx(right, abs=1e-8)
    assert jacfwd(integral)(S).item() == pytest.approx(right, abs=1e-8)
    assert jvp(integral, (S,), (one,))[1].item() == pytest.approx(right, abs=1e-8)
    with forward_ad.dual_level():
        dual = integral(forward_ad.make_dual(S, one))
        assert forward_ad.unpack_dual(dual).tangent.item() == pytest.approx(right, abs=1e-8)
    assert grad(grad(integral))(S).item() == pytest.approx(math.exp(-0.5), abs=1e-6)


COMPILING = {mode for mode in EXECUTORS if mode not in (False, "native")}


@pytest.mark.parametrize(
    "mode",
    [
        True,
        *(pytest.param(mode, marks=[pytest.mark.slow] if mode in COMPILING else []) for mode in EXECUTORS),
    ],
)
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.2, 0.7, 1.0), (0.0, 0.5, 1.0)], ids=str)
def test_compiled(mode, times):
    s = S.clone().requires_grad_()
    try:
        value = integral(s, times, compile=mode)
    except ValueError as refusal:
        assert "use compile=" in str(refusal)  # noqa: PT017
        assert mode is not True
        return
    assert torch.autograd.grad(value, s)[0].item() == pytest.approx(math.exp(-0.5) - 1, abs=1e-8)


def test_with_other_things_in_their_places():
    """A list of tensors, float32, a control object, and an end of the solve, which does not move."""
    right = math.exp(-0.5) - 1
    s = S.float().requires_grad_()
    for given in ([0.1, s], (s, 0.9), s[None]):
        value = integral(S, jump_ts=given)
        assert torch.autograd.grad(value, s)[0].item() == pytest.approx(right, abs=1e-6)
        value = integral(S, rtol=None, atol=None, jump_ts=None, control=Adaptive(1e-9, 1e-9, jump_ts=given))
        assert torch.autograd.grad(value, s)[0].item() == pytest.approx(right, abs=1e-6)
    both = torch.tensor([0.0, 0.5], dtype=DOUBLE, requires_grad=True)
    (found,) = torch.autograd.grad(integral(S, jump_ts=both), both)
    assert found.tolist() == pytest.approx([0.0, right], abs=1e-8)


def test_two_in_one_place_are_refused():
    s = S.clone().requires_grad_()
    for given in ([s, 0.5], [s, s], [s, math.nextafter(0.5, 1.0)]):
        with pytest.raises(ValueError, match=r"jump_ts is differentiated, and two of its times are 0.5"):
            integral(S, jump_ts=given)
        integral(S, jump_ts=[t.detach() if isinstance(t, torch.Tensor) else t for t in given])


@pytest.mark.parametrize("name", RIGHT)
def test_an_output_on_a_grid_that_moves_stays_where_it_is(name):
    """Its time is a constant: where the step that ends there moves away, it lies inside of one of its neighbours."""
    if "grad_rtol" in name:
        pytest.skip("has no derivative by a grid")
    grid = torch.linspace(0, 1, 41, dtype=DOUBLE).requires_grad_()
    options = {"gradient": EVERY[name], "method": takes(name)[0]}
    out = solve(lambda t, y: -y * t.cos(), torch.ones(1, dtype=DOUBLE), [0.0, 0.5, 1.0], grid=grid, **options)
    (found,) = torch.autograd.grad(out.ys[1].sum(), grid)
    assert found.abs().max() < 1e-3
