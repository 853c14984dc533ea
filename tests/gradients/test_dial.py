"""The dial of ACA's memory: evaluations and bytes of each setting are those of the documented formula."""

import math
from functools import cache

import pytest
import torch
from gradient_cases import DOUBLE
from peak import Peak

from torchaca import ACA, solve
from torchaca.gradients.checkpoints import Shelf, limit_of, reverse, revolve, worth_keeping

STEPS = (10, 100, 1000)
SIZE = 400
NODES = 2  # tensors of the state's size in the graph of a step: y0 is shared with the last step's end
COUNTS = (5, 30)


def spent(setting, n):
    """Evaluations of the backward pass, states held between the passes, peaks of both passes in states."""
    w = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(SIZE, dtype=DOUBLE, requires_grad=True)
    held = {}

    def hold(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x), Peak([y0, w]) as forward:
        sol = solve(
            lambda t, y: torch.tanh(w * y), y0, [0.0, 1.0], method="euler", n_steps=n, gradient=setting
        )
    with Peak([y0, w]) as backward:
        sol.ys[-1].sum().backward()
    unit = SIZE * y0.element_size()
    states = (sum(held.values()) / unit, forward.peak / SIZE, backward.peak / SIZE)
    return sol.stats.nfe_backward, *(round(x) for x in states)


BASE = 13  # y0, the outputs, the last state, one step's graph, cotangents: whatever the number of steps
SETTINGS = {
    "all": (ACA(checkpoints="all"), lambda n: n, lambda n: n),
    "none": (ACA(checkpoints="none"), lambda n: 0, lambda n: NODES * n),
    "sqrt": (ACA(checkpoints="sqrt"), lambda n: 2 * n, lambda n: 3 * math.sqrt(n)),
    "binomial": (
        ACA(checkpoints="binomial"),
        lambda n: n + n * math.log2(n) / 2,
        lambda n: 2 + math.log2(n + 1),
    ),
    "stagewise": (ACA(stagewise=True), lambda n: 2 * n, lambda n: n),
    **{
        str(k): (ACA(checkpoints=k), lambda n, k=k: n + revolve(n, k), lambda n, k=k: min(k, n))
        for k in COUNTS
    },
}
EXACT = ("all", "none", "stagewise")


@pytest.mark.parametrize(
    ("name", "n"),
    [
        pytest.param(name, n, marks=[pytest.mark.slow] if n > 100 else [])
        for name in SETTINGS
        for n in STEPS
        if name != "stagewise" or n < 1000
    ],
)
def test_evaluations_and_memory(name, n):
    setting, evaluations, states = SETTINGS[name]
    found, held, forward, backward = spent(setting, n)
    if name in EXACT:
        assert found == evaluations(n)
        assert abs(held - states(n)) <= BASE
    assert found <= evaluations(n)
    assert held <= states(n) + BASE
    assert forward <= states(n) + BASE
    assert backward <= states(n) + BASE


def test_sqrt_is_exact_in_its_evaluations():
    for n in STEPS:
        shelf = Shelf(limit_of("sqrt"))
        for i in range(n):
            shelf.put(i, i)
        assert spent(ACA(checkpoints="sqrt"), n)[0] == 2 * n - len(shelf.states)


@pytest.mark.parametrize("n", STEPS)
def test_a_budget_is_kept(n):
    """In bytes; outputs and their cotangents come on top."""
    budget = 40 * SIZE * 8
    _, held, forward, backward = spent(ACA(memory_budget=budget), n)
    assert max(held, forward, backward) <= 40 + BASE
    few = spent(ACA(checkpoints=30), n)[0]
    assert spent(ACA(memory_budget=budget), n)[0] <= few


# --- the formulas themselves ---


@cache
def optimum(length, states):
    """The fewest steps computed anew, by trying every place for the next state."""
    if length <= 1:
        return 0
    if states == 1:
        return length * (length - 1) // 2
    return min(cut + optimum(length - cut, states - 1) + optimum(cut, states) for cut in range(1, length))


@pytest.mark.parametrize("states", [1, 2, 3, 5, 8])
def test_revolve_is_the_optimum(states):
    for length in range(60):
        assert revolve(length, states) == optimum(length, states)


def advances(n, setting):
    """Steps computed anew when n steps are reversed."""
    shelf = Shelf(limit_of(setting))
    for i in range(n):
        shelf.put(i, i)
    kept = {i: i for i in worth_keeping(list(shelf.states), n, setting)}
    total = 0

    def advance(state, a, b):
        nonlocal total
        assert state == a
        total += b - a
        return b

    assert [i for i, _ in reverse(kept, n, setting, advance)] == list(range(n))[::-1]
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 5, 12, 64])
def test_never_more_than_revolve(k):
    for n in (1, 2, 3, 9, 33, 100, 257, 1000):
        assert advances(n, k) <= revolve(n, k)
        assert advances(n, "binomial") <= n * math.log2(max(n, 2)) / 2


@pytest.mark.parametrize("n", [10, 40])
def test_between_the_passes_one_state_a_step_is_alive(n):
    """Counted in live storages: what the process holds is the allocator's business."""
    w = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(SIZE, dtype=DOUBLE, requires_grad=True)
    with Peak([y0, w]) as between:
        gradient = ACA(checkpoints="all")
        ys = solve(
            lambda t, y: torch.tanh(w * y), y0, [0.0, 1.0], method="rk4", n_steps=n, gradient=gradient
        ).ys
    assert round(between.now / SIZE) == (n - 1) + 1 + 2  # states behind y0, the last one, the two outputs
    ys[-1].sum().backward()
    del ys
    assert between.now == 0
