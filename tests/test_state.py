"""Nested states, and the forms in which times may be given."""

import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import BOTH_WAYS, DOUBLE, SPIRAL
from torch.utils import _pytree as pytree

from torchaca import solve
from torchaca.norms import rms
from torchaca.state import HALF, structure_of, wide

Pair = namedtuple("Pair", ["position", "velocity"])

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
]
SHAPES = [(), (1,), (3,), (2, 3), (0,), (2, 0, 3), (2, 1, 2)]


@st.composite
def leaves(draw, dtypes=tuple(DTYPES)):
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randn(shape, dtype=torch.complex128 if dtype.is_complex else DOUBLE, generator=generator).to(
        dtype
    )


def nestings(leaf):
    """Trees of tuples, lists, dicts and named tuples, with at least one leaf."""
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3),
            st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        ),
        max_leaves=5,
    )


def assert_same(one, other):
    assert pytree.tree_structure(one) == pytree.tree_structure(other)
    for x, y in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert torch.equal(x, y)


@given(nestings(leaves()))
def test_packing_is_lossless(state):
    structure = structure_of(state)
    packed = structure.pack(state)
    size = sum(leaf.numel() for leaf in pytree.tree_leaves(state))
    assert packed.dtype == structure.dtype == wide([leaf.dtype for leaf in pytree.tree_leaves(state)])
    assert packed.numel() == size
    assert_same(structure.unpack(packed), state)


@given(nestings(leaves()), st.sampled_from([(4,), (2, 3), ()]))
def test_leading_dimensions_stay_in_front_of_every_leaf(state, lead):
    structure = structure_of(state)
    packed = structure.pack(state)
    many = structure.unpack(packed.expand((*lead, *packed.shape)))
    assert_same(many, pytree.tree_map(lambda leaf: leaf.expand((*lead, *leaf.shape)), state))


@given(nestings(leaves((torch.float32, torch.float64))))
def test_every_component_has_its_place(state):
    structure = structure_of(state)
    paths, _ = pytree.tree_flatten_with_path(state)
    index = 0
    for path, leaf in paths:
        name = f" of y{pytree.keystr(path)}" if path else ""
        for where in np.ndindex(*leaf.shape):
            assert structure.component(index) == f"component {where}{name}"
            index += 1


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float16], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
        ([torch.bfloat16, torch.complex64], torch.complex64),
        ([torch.float64, torch.complex64], torch.complex128),
    ],
)
def test_the_solver_works_in_the_widest_dtype(dtypes, expected):
    assert wide(dtypes) == expected


def test_a_plain_tensor_is_used_as_it_is():
    y0 = torch.ones(2, 3, dtype=DOUBLE)
    structure = structure_of(y0)
    assert structure.plain
    assert structure.pack(y0) is y0
    assert structure.unpack(y0) is y0
    assert not structure_of(y0.half()).plain
    assert not structure_of((y0,)).plain


def test_rms():
    assert rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item() == pytest.approx(2.5)
    assert rms(torch.tensor([3 + 4j])).item() == pytest.approx(5)
    assert rms(torch.ones(0)).item() == 0


# Solving nested states.


def decay(t, leaf):
    return (-leaf.to(wide([leaf.dtype])) * math.cos(3 * float(t))).to(leaf.dtype)


@settings(max_examples=15)
@given(nestings(leaves()))
def test_an_uncoupled_nested_state_solves_like_its_leaves(state):
    def f(t, y):
        assert pytree.tree_structure(y) == pytree.tree_structure(state)
        for mine, given_leaf in zip(pytree.tree_leaves(y), pytree.tree_leaves(state), strict=True):
            assert (mine.shape, mine.dtype) == (given_leaf.shape, given_leaf.dtype)
        return pytree.tree_map(lambda leaf: decay(t, leaf), y)

    times = [0.0, 0.3, 1.0]
    together = solve(f, state, times, method="rk4", n_steps=4)
    assert pytree.tree_structure(together.ys) == pytree.tree_structure(state)
    for leaf, ys in zip(pytree.tree_leaves(state), pytree.tree_leaves(together.ys), strict=True):
        alone = solve(decay, leaf, times, method="rk4", n_steps=4)
        assert ys.shape == alone.ys.shape == (3, *leaf.shape)
        assert ys.dtype == alone.ys.dtype == leaf.dtype
        assert torch.equal(ys[0], leaf)
        close = {"rtol": 0.02, "atol": 0.02} if leaf.dtype in HALF else {"rtol": 1e-5, "atol": 1e-6}
        if leaf.dtype in (torch.float64, torch.complex128):
            close = {"rtol": 1e-12, "atol": 1e-13}
        torch.testing.assert_close(ys, alone.ys, **close)


def test_time_has_the_real_dtype_of_the_state_andat_least_float32():
    for dtype, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.float32),
        (torch.complex128, torch.float64),
    ]:
        seen = []

        def f(t, y, seen=seen):
            seen.append((t.dtype, t.shape, y.dtype))
            return -y

        solve(f, torch.ones(2, dtype=dtype), [0.0, 0.1], method="euler", n_steps=1)
        assert set(seen) == {(expected, torch.Size([]), dtype)}


def test_coupled_state_in_every_container():
    p = SPIRAL
    reference = solve(p.f, p.y0, p.times(5), rtol=1e-6, atol=1e-8)

    def both(make, split):
        def f(t, state):
            k = p.f(t, torch.stack(split(state)))
            return make(k[0], k[1])

        return solve(f, make(p.y0[0], p.y0[1]), p.times(5), rtol=1e-6, atol=1e-8)

    for make, split in [
        (lambda x, v: (x, v), list),
        (lambda x, v: [x, v], list),
        (Pair, list),
        (lambda x, v: {"x": x, "v": v}, lambda s: [s["x"], s["v"]]),
        (lambda x, v: {"a": (x,), "b": [v]}, lambda s: [s["a"][0], s["b"][0]]),
    ]:
        sol = both(make, split)
        assert sol.stats == reference.stats
        torch.testing.assert_close(torch.stack(split(sol.ys), 1), reference.ys, rtol=1e-12, atol=1e-13)


def test_the_order_of_a_dict_s_keys_does_not_mix_up_its_entries():
    y0 = {"x": torch.zeros(1), "v": torch.zeros(1)}
    rates = {"x": torch.ones(1), "v": 2 * torch.ones(1)}
    for order in (("x", "v"), ("v", "x")):
        sol = solve(lambda t, s, order=order: {key: rates[key] for key in order}, y0, [0.0, 1.0])
        assert sol.ys["x"][-1].item() == pytest.approx(1)
        assert sol.ys["v"][-1].item() == pytest.approx(2)
    with pytest.raises(TypeError, match="structure of y0"):
        solve(lambda t, s: {"x": rates["x"], "w": rates["v"]}, y0, [0.0, 1.0])


def test_a_tolerance_for_each_key_in_any_order():
    def solved(atol):
        y0 = {"x": torch.zeros(1, dtype=DOUBLE), "v": torch.ones(1, dtype=DOUBLE)}
        return solve(lambda t, s: {"x": s["v"], "v": -s["x"]}, y0, [0.0, 5.0], rtol=0.0, atol=atol).steps

    loose_v = solved({"x": 1e-7, "v": 1e9})
    assert solved({"v": 1e9, "x": 1e-7}) == loose_v
    assert solved({"v": 1e-7, "x": 1e9}) != loose_v


def test_tolerances_of_a_nested_state():
    def f(t, y):
        fast, slow = y
        return torch.cos(30 * t) + 0 * fast, 0.1 * slow

    y0 = (torch.zeros(2, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE))
    tight = solve(f, y0, [0.0, 1.0], rtol=0.0, atol=1e-8)
    for atol in [(1e3, 1e-8), [1e3, 1e-8], (torch.full((2,), 1e3), torch.tensor(1e-8))]:
        loose = solve(f, y0, [0.0, 1.0], rtol=0.0, atol=atol)
        assert loose.stats.accepted < tight.stats.accepted / 3
        assert loose.ys[1][-1, 0].item() == pytest.approx(math.exp(0.1), abs=1e-7)


def test_mixed_norm_is_the_largest_of_the_leaves():
    """A large quiet leaf does not dilute the error of a small lively one."""

    def f(t, y):
        return torch.cos(30 * t).expand(1), 0 * y[1]

    y0 = (torch.zeros(1, dtype=DOUBLE), torch.ones(10_000, dtype=DOUBLE))
    tolerance = {"rtol": 0.0, "atol": 1e-6, "dt0": 0.01}
    diluted = solve(f, y0, [0.0, 1.0], **tolerance)
    mixed = solve(f, y0, [0.0, 1.0], **tolerance, norm="mixed")
    alone = solve(lambda t, y: f(t, (y, y))[0], y0[0], [0.0, 1.0], **tolerance)
    assert mixed.stats.accepted == alone.stats.accepted > diluted.stats.accepted


def test_a_norm_of_one_s_own_sees_the_structure():
    seen = []

    def norm(error):
        seen.append(pytree.tree_map(lambda leaf: tuple(leaf.shape), error))
        return error["x"].abs().max()

    y0 = {"x": torch.ones(2, 3), "v": torch.ones(4)}
    solve(lambda t, y: pytree.tree_map(torch.neg, y), y0, [0.0, 1.0], norm=norm)
    assert seen
    assert all(shapes == {"x": (2, 3), "v": (4,)} for shapes in seen)


# Times.


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        lambda t: torch.tensor(t, dtype=DOUBLE),
        lambda t: [torch.tensor(x, dtype=DOUBLE) for x in t],
        lambda t: [t[0], *(torch.tensor(x, dtype=DOUBLE) for x in t[1:])],
        lambda t: [np.float64(x) for x in t],
    ],
    ids=["list", "tuple", "numpy", "tensor", "list of tensors", "mixed list", "list of numpy numbers"],
)
@pytest.mark.parametrize("times", [[0.1, 0.7, 1.3], [1.3, 0.7, 0.1]])
def test_times_in_any_form_are_the_same_float64_numbers(make, times):
    p = BOTH_WAYS["bernoulli"]
    y0 = p.at(times[0])
    sol = solve(p.f, y0, make(times), rtol=1e-11, atol=1e-12)
    assert (sol.steps[0], sol.steps[-1]) == (times[0], times[-1])
    torch.testing.assert_close(sol.ys, p.exact(torch.tensor(times, dtype=DOUBLE)), rtol=0, atol=1e-9)
    assert sol.ts.tolist() == times
    assert sol.ts.shape == (3,)


@pytest.mark.parametrize("times", [[0, 1, 3], np.arange(3), torch.arange(3), range(3)])
def test_whole_numbers_are_times(times):
    sol = solve(lambda t, y: -y, torch.ones(1, dtype=DOUBLE), times, rtol=1e-9, atol=1e-9)
    assert sol.ys.flatten().tolist() == pytest.approx([math.exp(-int(t)) for t in times], abs=1e-7)


@pytest.mark.parametrize("method", [{}, {"method": "rk4", "n_steps": 3}, {"method": "rk4", "dt": 0.3}])
def test_repeated_times_give_repeated_outputs(method):
    p = SPIRAL
    plain = solve(p.f, p.y0, [-1.0, 0.2, 1.5], **method)
    sol = solve(p.f, p.y0, [-1.0, -1.0, 0.2, 0.2, 0.2, 1.5, 1.5], **method)
    torch.testing.assert_close(sol.ys, plain.ys[[0, 0, 1, 1, 1, 2, 2]], rtol=1e-14, atol=1e-15)
    assert sol.stats == plain.stats


def test_repeated_decreasing_times():
    p = SPIRAL.backwards()
    plain = solve(p.f, p.y0, [1.5, 0.2, -1.0])
    sol = solve(p.f, p.y0, [1.5, 1.5, 0.2, -1.0, -1.0])
    torch.testing.assert_close(sol.ys, plain.ys[[0, 0, 1, 2, 2]], rtol=1e-14, atol=1e-15)


@pytest.mark.filterwarnings("ignore:t holds a single time")
@pytest.mark.parametrize("t", [[0.5], [0.5, 0.5], torch.tensor([0.5])])
def test_no_span_gives_the_initial_state(t):
    y0 = {"x": torch.ones(2)}
    sol = solve(lambda t, y: {"x": -y["x"]}, y0, t)
    assert torch.equal(sol.ys["x"], torch.ones(len(t), 2))
    assert sol.stats.nfe == 0
    assert sol.steps == (0.5,)


def test_the_number_of_outputs_costs_no_evaluations():
    p = SPIRAL
    few = solve(p.f, p.y0, p.times(2), rtol=1e-6)
    many = solve(p.f, p.y0, p.times(500), rtol=1e-6)
    assert many.stats == few.stats
    assert torch.equal(many.ys[-1], few.ys[-1])
