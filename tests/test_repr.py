"""A solution in a line: what was asked for and how it went, without its numbers."""

import copy
import pickle

import pytest
import torch
from gradient_cases import DOUBLE

from torchaca import GRADIENTS, METHODS, SolverError, solve

T = [0.0, 0.1, 0.2]


def decay(t, y):
    return -y


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_what_a_solution_says(gradient):
    method, y0 = "alf" if gradient == "mali" else "dopri5", torch.ones(2, 3, requires_grad=True)
    sol = solve(decay, y0, T, method=method, gradient=gradient, rtol=1e-2)
    text = repr(sol)
    assert text.startswith(
        f"Solution({method}, rtol 0.01, atol 1e-06, gradient {gradient!r}; status 'success'; "
    )
    assert f"{sol.stats.accepted} steps" in text
    assert f"{sol.stats.nfe} evaluations" in text
    assert text.endswith("; ts (3,); ys (3, 2, 3))")
    sol.ys.sum().backward()
    assert (f"(+ {sol.stats.nfe_backward} backward)" in repr(sol)) == (sol.stats.nfe_backward > 0)


@pytest.mark.parametrize("method", METHODS)
def test_fixed_steps(method):
    text = repr(solve(decay, torch.ones(2), T, method=method, n_steps=2, dense=True))
    assert f"({method}, fixed steps, gradient 'aca'; status 'success'; 2 steps; " in text
    assert text.endswith("; dense)")


def test_it_is_short():
    names = {f"a component with a long name {i}": torch.ones(3, 4, 5, dtype=DOUBLE) for i in range(100)}
    sol = solve(
        lambda t, y: y, names, torch.linspace(0, 1, 500), rtol=torch.tensor(1e-3), dense=True, method="tsit5"
    )
    for one in (sol, copy.deepcopy(sol)):
        assert len(repr(one)) <= 600
        assert "tensor(" not in repr(one)
    per_component = solve(decay, torch.ones(100), T, rtol=torch.full((100,), 1e-3))
    assert "rtol per component, atol 1e-06" in repr(per_component)


def test_failures():
    options = {"rtol": 1e-3, "on_failure": "status"}
    sol = solve(lambda t, y: y * y, torch.ones(1), [0.0, 0.5, 2.0], **options)
    assert "status 'blow-up'; " in repr(sol)
    assert repr(pickle.loads(pickle.dumps(sol))) == repr(sol)
    with pytest.raises(SolverError) as caught:
        solve(lambda t, y: y * y, torch.ones(1), [0.0, 0.5, 2.0], rtol=1e-3)
    assert repr(caught.value.partial).startswith("Solution(dopri5, rtol 0.001, ")
    bad = solve(lambda t, y: y / t, torch.ones(1), T, method="rk4", n_steps=2)
    assert "status 'non-finite'" in repr(bad)


def test_tensors_without_numbers():
    seen = []

    def last(y0):
        sol = solve(decay, y0, T, method="rk4", n_steps=2)
        seen.append(repr(sol))
        return sol.ys[-1]

    torch.func.vmap(last)(torch.ones(4, 2))
    torch.func.jacrev(last)(torch.ones(2))
    assert all("status unknown" in text and "ys (3, 2)" in text for text in seen)
