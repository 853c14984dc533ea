"""What a solve that failed still tells, and states without components."""

import pytest
import torch
from gradient_cases import ADAPTIVE, SETTINGS, takes
from problems import DOUBLE
from torch.utils import _pytree as pytree

from torchaca import METHODS, SolverError, solve

T = [0.0, 0.5, 1.0]


def hurried(t, y):
    return -50 * y * torch.cos(30 * t)


@pytest.mark.parametrize("on_failure", ["raise", "status", "nan"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_accepted_step_is_listed(setting, on_failure):
    options = {"gradient": SETTINGS[setting], "method": takes(setting)[0], "max_steps": 10}
    for times in ([0.0, 1.0], [0.0, 0.001, 1.0], [1.0, 0.0]):
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        try:
            sol = solve(hurried, y0, times, **options, on_failure=on_failure)
        except SolverError as error:
            sol = error.partial
        assert len(sol.steps) == sol.stats.accepted + 1 > 2
        if on_failure != "raise" and len(times) == 3:
            (slope,) = torch.autograd.grad(sol.ys[1].sum(), y0)
            right = torch.autograd.grad(
                solve(hurried, y0, times[:2], method=options["method"]).ys[1].sum(), y0
            )[0]
            torch.testing.assert_close(slope, right, rtol=1e-2, atol=0)


EMPTY = {
    "vector": torch.ones(0),
    "matrix": torch.ones(3, 0, dtype=DOUBLE),
    "complex": torch.ones(0, 2, dtype=torch.complex64),
    "half": torch.ones(0, dtype=torch.bfloat16),
    "one of two": {"x": torch.ones(2), "none": torch.ones(0)},
    "all of two": (torch.ones(0), [torch.ones(2, 0)]),
}


def emptied(empty, **options):
    """Outputs and gradients of a solve of y' = -w y; the number of components is checked."""
    w = torch.ones((), requires_grad=True)
    y0 = pytree.tree_map(lambda x: x.clone().requires_grad_(), EMPTY[empty])
    sol = solve(lambda t, y: pytree.tree_map(lambda x: -w.to(x.dtype) * x, y), y0, T, **options)
    starts, ends = pytree.tree_leaves(y0), pytree.tree_leaves(sol.ys)
    assert [y.shape[1:] for y in ends] == [y.shape for y in starts]
    grads = torch.autograd.grad(sum(y.real.sum().float() for y in ends), [*starts, w], allow_unused=True)
    assert [g.shape for g in grads[:-1]] == [y.shape for y in starts]
    assert (len(starts) == 2 and starts[0].numel()) or not grads[-1]
    return sol


@pytest.mark.parametrize("norm", [None, "max", "mixed"])
@pytest.mark.parametrize("empty", EMPTY)
def test_a_state_without_components(empty, norm):
    sol = emptied(empty, norm=norm, dense=True)
    assert sol.status == "success"
    assert [y.shape[0] for y in pytree.tree_leaves(sol([0.1, 0.2]))] == [2] * len(pytree.tree_leaves(sol.ys))
    emptied(empty, jump_ts=[0.3])


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_state_without_components_under_every_gradient(setting, empty):
    options = {"gradient": SETTINGS[setting], "method": takes(setting)[0]}
    emptied(empty, **options)
    emptied(empty, n_steps=2, **options)
    assert emptied(empty, max_steps=1, dt0=0.1, on_failure="nan", **options).status == "max-steps"


@pytest.mark.parametrize("method", METHODS)
def test_a_state_without_components_in_every_method(method):
    emptied("matrix", method=method, **({} if method in ADAPTIVE else {"n_steps": 2}))


@pytest.mark.parametrize("executor", [True, "steps"])
@pytest.mark.parametrize("empty", ["vector", "all of two"])
def test_a_state_without_components_has_nothing_to_compile(empty, executor):
    assert emptied(empty, compile=executor).stats.nfe == emptied(empty).stats.nfe


@pytest.mark.parametrize("options", [{}, {"n_steps": 2}], ids=str)
def test_a_state_without_components_in_a_map(options):
    ys = torch.func.vmap(lambda y: solve(lambda t, y: -y, y, T, **options).ys)(torch.ones(3, 0))
    assert ys.shape == (3, 3, 0)


def test_a_map_over_nothing_is_refused():
    with pytest.raises(ValueError, match=r"vmap over no lanes.*skip"):
        torch.func.vmap(lambda y: solve(lambda t, y: -y, y, T).ys)(torch.ones(0, 2))
