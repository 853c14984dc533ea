"""Outputs and cotangents lie in memory as y0 does (channels_last, say), for every method and every gradient."""

import itertools

import pytest
import torch
from stubs import CountOperations
from torch.utils import _pytree as pytree

from torchaca import ACA, GRADIENTS, METHODS, Adjoint, solve
from torchaca.layout import empty_rows, joined, memory_order, ordered, row, stacked, unstacked
from torchaca.nn import NeuralODE

TIMES = [0.0, 0.2, 0.31, 1.0]
PERMUTED = [
    torch.randn([size[d] for d in order]).permute([order.index(d) for d in range(len(size))])
    for size in ((3, 2), (2, 1, 3), (2, 3, 4, 5), (2, 3, 1, 1), (1, 2, 2, 1, 3))
    for order in itertools.islice(itertools.permutations(range(len(size))), 0, 120, 7)
]
IMAGES = torch.randn(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)
LAYOUTS = {
    "channels_last": IMAGES,
    "channels_last_3d": torch.randn(2, 2, 1, 2, 3).contiguous(memory_format=torch.channels_last_3d),
    "transposed": torch.randn(3, 4).T,
    "half": IMAGES.half(),
    "nested": {"a": IMAGES, "b": torch.randn(2, 3)},
}
SETTINGS = [
    *(ACA(checkpoints=kept) for kept in ("none", "sqrt", "binomial", 2)),
    ACA(stagewise=True),
    Adjoint(state="interpolated"),
    Adjoint(quadrature="gauss"),
]
BY_METHOD = [(name, gradient) for name in METHODS for gradient in ("aca", "direct")]
BY_GRADIENT = [("alf", gradient) for gradient in (*GRADIENTS, *SETTINGS)]


class Spy(torch.autograd.Function):
    """Identity that keeps the strides of what comes, and of what comes back."""

    seen: list[tuple[int, ...]]

    @staticmethod
    def forward(ctx, y):
        Spy.seen.append(y.stride())
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        Spy.seen.append(grad.stride())
        return grad


def strides(nested):
    return [x.stride() for x in pytree.tree_leaves(nested)]


def paired(*trees):
    return zip(*map(pytree.tree_leaves, trees), strict=True)


def f(t, y):
    return pytree.tree_map(lambda x: torch.sin(x) * torch.cos(t), y)


# --- the helpers ---


@pytest.mark.parametrize("x", PERMUTED, ids=lambda x: f"{tuple(x.shape)}{x.stride()}")
def test_rows_keep_strides(x):
    others = [torch.randn(x.shape), x.sin()]
    both, parts = stacked([x, *others]), [stacked([x]), torch.stack(others)]
    assert torch.equal(both, torch.stack([x, *others]))
    assert torch.equal(joined(parts, x), both)
    assert torch.equal(row(both, 1), others[0])
    assert torch.equal(torch.stack(list(unstacked(both))), both)
    rows = [
        *both,
        *joined(parts, x),
        row(both, 1),
        *unstacked(both),
        *empty_rows(2, x),
        ordered(others[0], x),
    ]
    if memory_order(x) is not None:
        assert {y.stride() for y in rows} == {x.stride()}
    assert ordered(x, x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    "x",
    [torch.ones(3, 4), torch.ones(3, 1).expand(3, 4), torch.ones(4, 6)[:, ::2].T, torch.ones(())],
    ids=str,
)
def test_contiguous_tensors_and_those_with_gaps_have_no_order(x):
    assert memory_order(x) is None
    assert stacked([x, x]).is_contiguous()


def test_a_contiguous_solve_rearranges_nothing():
    for name in METHODS:
        y0 = torch.ones(2, 3, requires_grad=True)
        with CountOperations() as counts:
            solve(f, y0, TIMES, method=name, n_steps=2).ys.sum().backward()
        assert not counts.names.keys() & {"permute", "contiguous"}


# --- solves ---


@pytest.mark.parametrize(("method", "gradient"), [*BY_METHOD, *BY_GRADIENT], ids=str)
def test_outputs_and_cotangents(method, gradient):
    """Those that f sees in the forward pass and in the backward pass as well."""
    Spy.seen = []
    for steps in ({"n_steps": 2}, *([{"rtol": 1e-2, "atol": 1e-2}] if METHODS[method].adaptive else [])):
        y0 = IMAGES.clone().requires_grad_() * 1
        ys = solve(lambda t, y: f(t, Spy.apply(y)), y0, TIMES, method=method, gradient=gradient, **steps).ys
        (grad,) = torch.autograd.grad(ys.sum() + ys[-1].square().sum() + ys[1, 0].sum(), y0)
        assert {*strides(list(ys)), *Spy.seen, grad.stride()} == {y0.stride()}


def test_an_output_without_a_cotangent():
    """As gradcheck asks for it."""
    y0 = IMAGES.double().requires_grad_()
    ys = solve(f, y0, TIMES, n_steps=2).ys
    none = torch._C._functions.UndefinedGrad()(ys)
    assert torch.autograd.grad(none, y0, torch.ones_like(ys), allow_unused=True) == (None,)


@pytest.mark.parametrize("y0", LAYOUTS.values(), ids=LAYOUTS)
def test_states(y0):
    options = {"rtol": 1e-2, "atol": 1e-2}
    dense = solve(f, y0, TIMES, dense=True, **options)
    for several in (dense.ys, dense([0.9, 0.1])):
        assert all(y.stride() == x.stride() for x, ys in paired(y0, several) for y in ys)
    assert strides(dense(0.4)) == strides(y0)
    plain = solve(f, pytree.tree_map(lambda x: x.contiguous(), y0), TIMES, dense=True, **options)
    for a, b in paired((dense.ys, dense(0.4)), (plain.ys, plain(0.4))):
        torch.testing.assert_close(a, b)
    assert strides(NeuralODE(f, **options)(y0)) == strides(y0)
    assert strides(NeuralODE(f, t=(1.0, 1.0))(y0)) == strides(y0)
    given_up = solve(lambda t, y: f(t / 0 - t / 0, y), y0, TIMES, on_failure="nan", **options).ys
    assert strides(pytree.tree_map(lambda x: x[-1], given_up)) == strides(y0)


def test_what_belongs_to_an_entry_of_a_packed_state_stays_with_it():
    """Tolerances, norms and the places in messages."""
    images = IMAGES.double()
    y0, small = {"a": images, "b": images[0, 0]}, torch.ones_like(images)
    small[1, 2] = 1e-6
    steps = []
    for start in (y0, pytree.tree_map(lambda x: x.contiguous(), y0)):
        loose = {"rtol": 0.0, "atol": {"a": small, "b": 1.0}}
        steps.append(solve(f, start, TIMES, **loose).steps)
        steps.append(solve(f, start, TIMES, norm=lambda y: y["a"][1, 2].abs().max()).steps)
    for found, right in zip(steps[:2], steps[2:]):
        assert found == pytest.approx(right, rel=1e-6)
    assert len(steps[0]) > 3

    def broken(t, y):
        bad = torch.zeros_like(y["a"])
        bad[1, 2, 0, 3] = torch.nan
        return {"a": bad, "b": y["b"]}

    with pytest.raises(Exception, match=r"component \(1, 2, 0, 3\) of y\['a'\] is nan"):
        solve(broken, y0, TIMES)


@pytest.mark.parametrize("steps", [{"n_steps": 2}, {"rtol": 1e-2}], ids=str)
def test_in_lanes(steps):
    y0 = torch.stack([IMAGES, 2 * IMAGES])

    def outputs(y):
        return solve(f, y, TIMES, **steps).ys

    torch.testing.assert_close(torch.func.vmap(outputs)(y0), torch.stack([outputs(y) for y in y0]))
