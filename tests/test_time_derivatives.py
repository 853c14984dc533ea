"""Derivatives with respect to times, in every transform: those of `backward()`, which are finite differences'."""

import pytest
import torch
from gradient_cases import DOUBLE, THROUGH_SEARCH
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from torchaca import GRADIENTS, METHODS, FixedSteps, solve
from torchaca.gradients import Facts

RECORDED = [name for name, g in GRADIENTS.items() if Facts.of(g()).records or Facts.of(g()).replaceable]
"""The gradients that run inside of transforms."""
REFUSED = [name for name in GRADIENTS if name not in RECORDED]
W = torch.tensor([[0.5, -1.0], [1.2, 0.3]], dtype=DOUBLE)
Y0 = torch.tensor([1.0, -0.5], dtype=DOUBLE)
ONE = torch.ones((), dtype=DOUBLE)
TIMES = {
    "forwards": [0.0, 0.4, 1.0],
    "backwards": [1.0, 0.6, 0.1],
    "repeated": [0.0, 0.0, 0.5, 1.0, 1.0],
    "at rest": [0.3, 0.3],
}
STEPS = {
    "n_steps": {"n_steps": 3},
    "outputs": {"control": FixedSteps()},
    "adaptive": {"rtol": 1e-3},
}
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jacfwd
close = {"rtol": 1e-10, "atol": 1e-10}


def f(t, y, w=W):
    return torch.tanh(w @ y) * torch.cos(2 * t) + 0.1 * t * y


def through(program, t, v, everything):
    """Directional derivatives of a program by t, from every transform, or from the two quick ones."""
    yield "jvp", jvp(program, (t,), (v,))[1]
    with forward_ad.dual_level():
        yield "dual", forward_ad.unpack_dual(program(forward_ad.make_dual(t, v))).tangent
    if not everything:
        return
    yield "jacfwd", jacfwd(program)(t) @ v
    yield "jacrev", jacrev(program)(t) @ v
    yield "jvp inside grad", jvp(lambda t: grad(lambda s: (s * program(t)).sum())(ONE), (t,), (v,))[1]


def assert_transforms(program, t, everything=False):
    v = torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    right = torch.autograd.functional.jacobian(program, t) @ v
    for name, found in through(program, t, v, everything):
        want = right.sum() if name == "jvp inside grad" else right
        assert found is not None, name
        torch.testing.assert_close(found, want, **close, msg=lambda text, name=name: f"{name}: {text}")
    return v, right


CASES = [(g, s, t) for g in RECORDED for s in STEPS for t in TIMES if g == "direct" or t == "repeated"]


@pytest.mark.parametrize(("gradient", "steps", "times"), CASES)
def test_by_output_times(gradient, steps, times):
    t = torch.tensor(TIMES[times], dtype=DOUBLE)

    def program(t):
        return solve(f, Y0, t, gradient=gradient, **STEPS[steps]).ys

    v, right = assert_transforms(program, t)
    if (
        len(set(TIMES[times])) == len(t)
        and (steps != "adaptive" or gradient in THROUGH_SEARCH)
        and steps != "dt"
    ):
        shifted = [program(t + sign * 1e-5 * v) for sign in (1, -1)]
        torch.testing.assert_close((shifted[0] - shifted[1]) / 2e-5, right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_in_every_method(method):
    t = torch.tensor(TIMES["backwards"], dtype=DOUBLE)

    def program(t, **steps):
        return solve(f, Y0, t, method=method, **(steps or {"n_steps": 3})).ys

    v, right = assert_transforms(program, t, everything=True)
    assert right.abs().max() > 0.1
    shifted = [program(t + sign * 1e-5 * v) for sign in (1, -1)]
    torch.testing.assert_close((shifted[0] - shifted[1]) / 2e-5, right, rtol=1e-5, atol=1e-7)
    if METHODS[method].adaptive:
        loose = torch.tensor(TIMES["forwards"], dtype=DOUBLE)
        assert_transforms(lambda t: program(t, rtol=1e-2, atol=1e-3), loose)


@pytest.mark.parametrize("gradient", RECORDED)
def test_by_a_grid(gradient):
    grid = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=DOUBLE)
    given = {"method": "rk4", "gradient": gradient}
    assert_transforms(lambda g: solve(f, Y0, [0.0, 0.5, 1.0], grid=g, **given).ys, grid)
    assert_transforms(lambda g: solve(f, Y0, g[[0, 3]], grid=g, **given).ys, grid)
    assert_transforms(lambda g: solve(f, Y0, [0.0, 1.0], grid=[0.0, g[1], g[2], 1.0], **given).ys, grid)


@pytest.mark.parametrize("steps", STEPS)
def test_by_everything_at_once(steps):
    """State (nested), times and weights; the times are an argument of f as well."""
    t, v = torch.tensor(TIMES["forwards"], dtype=DOUBLE), torch.tensor([0.3, -1.0, 0.7], dtype=DOUBLE)

    def program(y, t, w):
        def g(s, y, times):
            return {"a": f(s, y["a"], w) + times[1], "b": (y["a"].sum() * torch.sin(s),)}

        ys = solve(g, {"a": y, "b": (ONE,)}, t, args=(t,), **STEPS[steps]).ys
        return torch.cat([ys["a"].flatten(), ys["b"][0]])

    at, along = (Y0, t, W), (Y0.flip(0), v, W.T)
    right = torch.autograd.functional.jvp(program, at, along)[1]
    torch.testing.assert_close(jvp(program, at, along)[1], right, **close)
    with forward_ad.dual_level():
        dual = program(*map(forward_ad.make_dual, at, along))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, right, **close)


@pytest.mark.parametrize("given", ["n_steps", "adaptive"])
def test_of_dense_output(given):
    at = torch.tensor([0.1, 0.55, 0.9], dtype=DOUBLE)
    for y0 in (Y0, Y0.clone().requires_grad_()):
        sol = solve(f, y0, [0.0, 1.0], dense=True, **STEPS[given])
        _, right = assert_transforms(lambda s, sol=sol: sol(s), at, everything=True)
        assert right.abs().max() > 0.1
    ends = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    assert_transforms(lambda t: solve(f, Y0, t, dense=True, **STEPS[given])((t[0] + 2 * t[1]) / 3), ends)


def test_no_grad_silences_reverse_mode_alone():
    t, v = torch.tensor(TIMES["forwards"], dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    right = jvp(lambda t: solve(f, Y0, t, n_steps=3).ys, (t,), (v,))[1]
    with torch.no_grad():
        torch.testing.assert_close(
            jvp(lambda t: solve(f, Y0, t, n_steps=3).ys, (t,), (v,))[1], right, **close
        )
        assert not solve(f, Y0, t.clone().requires_grad_(), n_steps=3).ys.requires_grad


@pytest.mark.parametrize("gradient", REFUSED)
def test_gradients_that_record_for_themselves_are_refused(gradient):
    options = {"gradient": gradient, "method": "alf", "n_steps": 3}
    with pytest.raises(NotImplementedError, match=r"torch\.func.*use gradient='aca'"):
        jvp(lambda t: solve(f, Y0, t, **options).ys, (torch.tensor([0.0, 1.0]),), (torch.ones(2),))


def test_times_made_inside_of_a_transform_are_no_inputs_of_it():
    """They are wrapped as all tensors there are; lanes have no derivative with respect to times, and need none."""
    starts = torch.stack([Y0, 2 * Y0])

    def end(y, times):
        return solve(f, y, times(), rtol=1e-4).ys[-1].sum()

    def made():
        return torch.linspace(0, 1, 3, dtype=DOUBLE)

    right = vmap(grad(lambda y: end(y, lambda: [0.0, 0.5, 1.0])))(starts)
    torch.testing.assert_close(vmap(grad(lambda y: end(y, made)))(starts), right, **close)
    torch.testing.assert_close(vmap(jacfwd(lambda y: end(y, made)))(starts), right, **close)


LANES = {
    "t": lambda s: solve(f, Y0, torch.stack([0 * s, s])).ys,
    "t, one of a list": lambda s: solve(f, Y0, [0.0, s], n_steps=3).ys,
    "grid": lambda s: solve(f, Y0, [0.0, 1.0], grid=[0.0, s / 3, 1.0]).ys,
    "jump_ts": lambda s: solve(f, Y0, [0.0, 1.0], jump_ts=[s / 3]).ys,
    "dt": lambda s: solve(f, Y0, [0.0, 1.0], dt=s).ys,
    "rtol": lambda s: solve(f, Y0, [0.0, 1.0], rtol=s).ys,
    "dense": solve(f, Y0, [0.0, 2.0], dense=True),
    "inside jacfwd": lambda s: jacfwd(lambda t: solve(f, Y0, t, n_steps=3).ys)(torch.stack([0 * s, s])),
}


@pytest.mark.parametrize("case", LANES)
def test_lanes_have_their_times_in_common(case):
    with pytest.raises(
        NotImplementedError, match=r"differs between the lanes of torch\.func\.vmap.*use a loop"
    ):
        vmap(LANES[case])(torch.tensor([0.5, 1.0], dtype=DOUBLE))


@pytest.mark.parametrize("name", ["dt", "dt0", "rtol", "atol"])
def test_options_that_are_not_differentiated_are_refused_in_forward_mode_too(name):
    def program(x):
        return solve(f, Y0, [0.0, 1.0], **{name: x}).ys

    x = torch.tensor(0.1, dtype=DOUBLE)
    for transform in (jacfwd, jacrev, lambda p: lambda x: p(x.requires_grad_())):
        with pytest.raises(ValueError, match=f"{name} is not differentiated"):
            transform(program)(x.clone())
