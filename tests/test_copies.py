"""Copies and files: solutions, methods, gradients, controls (blocks are in test_nn.py)."""

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from gradient_cases import ALL, DOUBLE

import torchaca
from torchaca import GRADIENTS, METHODS, PI_CONTROL, Adaptive, FixedSteps, solve

T = [0.0, 0.5, 1.0]


def by_torch(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "save": by_torch,
}

VALUES = {
    **METHODS,
    **{name: make() for name, make in GRADIENTS.items()},
    "sqrt": torchaca.ACA(checkpoints="sqrt"),
    "budget": torchaca.ACA(memory_budget="2GiB", stagewise=True),
    "interpolated": torchaca.Adjoint(rtol=1e-4, norm="semi", state="interpolated"),
    "adaptive": Adaptive(rtol=1e-2, pid=PI_CONTROL, jump_ts=(0.3,)),
    "n_steps": FixedSteps(n_steps=3),
    "dt": FixedSteps(dt=0.1),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_settings_are_values(value, make):
    other = make(value)
    assert (other, repr(other)) == (value, repr(value))
    assert hash(other) == hash(value)


def leaves(sol):
    return [sol.ys["a"], sol.ys["b"]]


# Pickled tree structures of torch's own make warn of torch's own names.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("wanted", [False, True], ids=["values", "graph"])
@pytest.mark.parametrize("dense", [False, True], ids=["outputs", "dense"])
@pytest.mark.parametrize("gradient", ALL)
def test_solutions(gradient, dense, wanted, make):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=wanted)
    times = torch.tensor(T, dtype=DOUBLE, requires_grad=wanted)
    y0 = {"a": torch.ones(2, dtype=DOUBLE), "b": torch.ones((), dtype=DOUBLE)}
    sol = solve(lambda t, y: {"a": -w * y["a"], "b": y["b"]}, y0, times, gradient=gradient, dense=dense)
    other = make(sol)
    for mine, theirs in zip(leaves(other), leaves(sol), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.is_leaf
        assert mine.data_ptr() != theirs.data_ptr()
    assert torch.equal(other.ts, sol.ts)
    assert (other.stats, other.steps, other.status) == (sol.stats, sol.steps, "success")
    assert other.stats is not sol.stats
    if dense:
        assert torch.equal(other(0.3)["a"], sol(0.3)["a"])
    if wanted:
        sol.ys["a"].sum().backward()  # the original keeps its graph
        assert w.grad is not None


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_failed_solutions(make):
    sol = solve(lambda t, y: y * y, torch.ones(1), [0.0, 0.5, 2.0], on_failure="status")
    other = make(sol)
    assert other.status == sol.status == "blow-up"
    assert str(other.failure) == str(sol.failure)
    assert torch.equal(other.ys, sol.ys)


STARTS = {
    "tensor": torch.tensor([[1.0, 0.5]], dtype=DOUBLE),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "complex": torch.ones(2, dtype=torch.complex64),
    "nested": {"a": torch.ones(2, dtype=DOUBLE), "b": (torch.ones((), dtype=torch.float32), torch.ones(0))},
}


def safely_by_torch(thing):
    """As files are loaded by default: nothing but tensors, plain containers and what is known to be harmless."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("make", [*COPIES.values(), safely_by_torch], ids=[*COPIES, "load"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("times", [T, T[::-1], [0.5, 0.5]], ids=["forwards", "backwards", "at rest"])
def test_dense_output(times, start, make):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return torch.utils._pytree.tree_map(lambda x: (-w * x).to(x.dtype), y)

    t = torch.tensor(times, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, STARTS[start], t, dense=True, method="rk4", n_steps=3)
    other = make(sol.dense)
    asked = [sol.dense] if times[0] == times[1] else [sol.dense, sol.dense.derivative]
    for query, again in zip(asked, [other, other.derivative], strict=False):
        mine, theirs = (torch.utils._pytree.tree_leaves(q([0.5, times[0]])) for q in (again, query))
        assert [type(again([0.5]))] == [type(query([0.5]))]
        for x, y in zip(mine, theirs, strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)
            assert not x.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_dense_output_of_every_method(method):
    sol = solve(lambda t, y: -y, torch.ones(2, dtype=DOUBLE), T, method=method, n_steps=3, dense=True)
    other = safely_by_torch(sol.dense)
    assert other.method == METHODS[method]
    assert torch.equal(other([0.1, 0.7]), sol([0.1, 0.7]))


def test_dense_output_of_a_method_that_is_in_no_table():
    method = replace(METHODS["dopri5"], name="mine")
    sol = solve(lambda t, y: -y, torch.ones(2, dtype=DOUBLE), T, method=method, dense=True)
    assert torch.equal(COPIES["pickle"](sol.dense)(0.3), sol(0.3))
    with pytest.raises(pickle.UnpicklingError, match="RungeKutta"):
        safely_by_torch(sol.dense)
