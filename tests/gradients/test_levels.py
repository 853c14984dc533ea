"""The pieces of the gradient's own error control, each by itself: levels, estimates, repairs."""

import math

import pytest
import torch
from gradient_cases import DOUBLE

from torchaca import METHODS, FixedSteps
from torchaca.control import Adaptive
from torchaca.core import Times
from torchaca.gradients.estimate import (
    Compared,
    first_error,
    minus,
    next_error,
    norms,
    of_lower_order,
    of_outputs,
    relative,
    times_finer,
    weighted,
)
from torchaca.gradients.levels import Regridded, divided, growth, merged, parts_of, repeated
from torchaca.gradients.repair import local_size, norm_of, observed, until_they_agree

ORDERS = sorted({method.order for method in METHODS.values()})
orders = pytest.mark.parametrize("order", ORDERS)


def one(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=DOUBLE)


# --- levels ---


def test_half_of_the_steps_between_ends_that_stay():
    assert merged(8, []) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert merged(5, []) == [0.0, 2.5, 5.0]
    assert merged(9, [3]) == [0.0, 3.0, 5.0, 7.0, 9.0]
    assert merged(2, [1]) == [0.0, 1.0, 2.0]


def test_divided_steps():
    assert divided([0.0, 1.0, 3.0], 2) == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert repeated([0.1, 0.2], 2) == [0.1, 0.1, 0.2, 0.2]


@orders
def test_growth_of_errors(order):
    """2^order for steps twice as long, nothing for the same steps, and little where a short step meets a long one."""
    even = [1.0] * 8
    assert growth(merged(8, []), even, [0.5] * 8, order) == pytest.approx(2**order)
    assert growth(list(range(9)), even, [], order) == pytest.approx(1.0)
    geometric = [10.0**n for n in range(8)]
    assert growth(merged(8, []), geometric, [], order) < max(2.0, 2**order / 4)
    assert growth([0.0, 1.5, 3.0], [1.0] * 3, [0.1] * 3, order) == pytest.approx(1.5**order)


def test_sub_steps_of_a_coarser_level():
    fine, parts = [0.0, 1.0, 2.0, 3.0, 4.0], [1, 1, 8, 8]
    assert parts_of([0.0, 2.0, 4.0], fine, parts, 0.5) == [1, 8]
    assert parts_of([0.0, 1.5, 4.0], fine, [2, 2, 2, 2], 0.5) == [2, 2]  # 3 and 5 halves
    assert parts_of(fine, fine, parts, 1.0) == parts


@pytest.mark.parametrize("control", [FixedSteps(n_steps=4), Adaptive()], ids=["fixed", "adaptive"])
def test_levels_move_with_their_times(control):
    moving = torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
    ts = Times((0.0, 1.0), moving)
    grid = Regridded.of(control, [0.0, 0.25, 0.5, 0.75, 1.0]).at([0.0, 0.5, 1.0, 3.5, 4.0])
    ends = grid.boundaries(ts)
    assert ends[0] is ts[0]
    assert ends[-1] is ts[1]
    values = [t.item() if isinstance(t, torch.Tensor) else t for t in ends]
    assert values == [0.0, 0.125, 0.25, 0.875, 1.0]
    (share,) = torch.autograd.grad(ends[3], moving)
    torch.testing.assert_close(share[1].item(), 0.875 if not control.adaptive else 0.5)
    finer = grid.at(divided(grid.places, 2)).boundaries(Times((0.0, 1.0)))
    assert len(finer) == 2 * len(ends) - 1
    assert grid.with_tensors(()).places == grid.places


# --- estimates ---


@orders
def test_the_error_of_a_method_of_its_order(order):
    """Errors of c h^order: what is estimated of the finer level is above it, by half at most."""
    for k in (2, 3, 4):
        error = {1: 0.1, k: 0.1 / k**order}
        two = Compared(error[1] - error[k], float(k**order))
        assert error[k] <= first_error(two, 0.0, 0.0, 1e-2) <= 1.6 * error[k]
        assert error[k] <= next_error(two, None, None, None, order) <= 4 * error[k]


def test_a_first_comparison():
    assert first_error(Compared(0.6, 32.0), 0.0, 0.0, 1e-2) == pytest.approx(2 * 1.5 * 0.6 / 31)
    assert first_error(Compared(0.6, 32.0), 0.7, 0.0, 1e-2) == 0.7  # a second witness
    assert first_error(Compared(5.0, 32.0), 0.0, 0.0, 1e-2) > 1e-2  # says nothing
    assert first_error(Compared(math.nan, 32.0), 0.0, 0.0, 1e-2) > 1e-2
    assert first_error(Compared(1e-6, 32.0), 0.0, 3e-3, 1e-2) == 3e-3  # what repairs left


def test_a_further_comparison():
    two = Compared(1e-3, 32.0)
    assert next_error(two, Compared(2e-3, 32.0), None, None) > 1e-3  # it hardly fell: not of its order
    assert next_error(two, Compared(3.2e-2, 32.0), None, None) == pytest.approx(1.5e-3 / 31)
    assert next_error(Compared(1e-9, 32.0), None, 0.1, None) == pytest.approx(0.1 * 0.1 / 32)  # an accident
    assert next_error(two, Compared(0.4, 32.0), None, None) == pytest.approx(1e-3 / 4)  # too fast
    assert next_error(two, Compared(9.0, 32.0), 9.0, None) == pytest.approx(
        0.1 / 32
    )  # nothing was resolved before
    assert next_error(Compared(2.0, 32.0), None, None, None) == 2.0
    assert next_error(Compared(2.0, 32.0), None, None, 0.3) == pytest.approx(0.3)
    assert next_error(Compared(math.inf, 32.0), None, None, None) == math.inf


@orders
def test_how_much_finer(order):
    assert times_finer(1e-2 * 3.5**order, 1e-2, order) == 4
    assert times_finer(1e-2, 1.0, order) == 2
    assert times_finer(math.inf, 1.0, order) == 2
    assert times_finer(1e300, 1.0, order) == 4


def test_what_a_lower_order_says():
    assert of_lower_order(1e-2, 2) == pytest.approx(1e-4)
    assert of_lower_order(1e-2, 5) == 1e-2
    assert of_lower_order(3.0, 2) == 3.0


def test_differences_count_by_input():
    big, small = 1e6 * torch.ones(2, dtype=DOUBLE), 1e-3 * torch.ones(2, dtype=DOUBLE)

    def apart(coarse, fine, **more):
        return relative(minus(coarse, fine), fine, **more)

    assert apart([big, 1.1 * small], [big, small]) == pytest.approx(0.1)
    assert apart([big, 1e-9 * small], [big, 2e-9 * small]) < 1e-6  # rounding beside the other
    assert apart([big, 1e-7 * small], [big, 2e-7 * small], goal=1e-7) < 1e-1  # too small for this goal
    assert apart([None, 0 * small], [None, 0 * small]) == 0
    assert apart([None, small], [small, small]) == pytest.approx(1.0)
    assert apart([big / 0, small], [big, small]) == math.inf
    assert apart([], []) == 0.0
    sparse = torch.eye(2, dtype=DOUBLE).to_sparse()
    assert apart([1.5 * sparse], [sparse]) == pytest.approx(0.5)


def test_outputs():
    fine = torch.tensor([[9.0], [1.0], [1e-3], [2.0]], dtype=DOUBLE)
    coarse = fine + torch.tensor([[0.0], [0.1], [1e-3], [0.1]], dtype=DOUBLE)
    apart, sizes = norms((fine - coarse)[1:], fine[1:])
    assert sizes == pytest.approx([1.0, 1e-3, 2.0])
    assert of_outputs(apart, sizes) == pytest.approx(0.1)  # the small one as 1 % of the largest: 0.05
    assert of_outputs(apart, sizes, least=0.0) == pytest.approx(1.0)
    assert of_outputs([], []) == 0.0
    assert of_outputs([math.nan], [1.0]) == math.inf
    assert weighted(apart, sizes, [0.0, 1.0, 0.0]) == pytest.approx(1.0)  # all that the loss asks for
    assert weighted(apart, sizes, [1.0, 0.0, 1.0]) == pytest.approx(0.2 / 3)
    assert weighted(apart, sizes, [0.0, 0.0, 0.0]) == 0.0


# --- repairs ---


@orders
@pytest.mark.parametrize("stretch", [3.0, 30.0, 300.0])
def test_repaired_until_it_is_right(order, stretch):
    """A fake method: the product of m sub-steps is 1 + (stretch / m)^order, right is 1."""
    tried = []

    def taken(m):
        tried.append(m)
        return [one(1 + (stretch / m) ** order)]

    def size(off, product):
        return (off[0].norm() / max(product[0].norm(), 1.0)).item()

    found = until_they_agree(taken, [one(1 + stretch**order)], size, order, 1e-2)
    error = abs(found.product[0].item() - 1)
    assert tried == [2**i for i in range(1, len(tried) + 1)]
    assert tried[-1] == found.parts
    assert error <= 2e-2
    assert found.left >= error / 2
    assert found.off[0].item() == pytest.approx(1 - found.product[0].item(), rel=1.5, abs=1e-12)


def test_repairs_end():
    """At so many sub-steps, and where more of them change nothing: at a kink, or noise."""
    noise = iter([0.1, -0.1] * 20)

    def size(off, product):
        return off[0].norm().item()

    found = until_they_agree(lambda m: [one(next(noise))], [one(1.0)], size, 5, 1e-6)
    assert found.parts <= 32
    found = until_they_agree(lambda m: [one(float(m))], [one(1.0)], size, 5, 1e-6, most=64)
    assert found.parts == 64
    assert found.left > 1e-6
    found = until_they_agree(lambda m: [None], [None], lambda off, product: 0.0, 5, 1e-6)
    assert (found.parts, found.off) == (2, [None])


def test_the_rate_that_was_seen():
    assert observed(1e3, 1e-3, 5) == 32.0
    assert observed(1.0, 0.25, 5) == 4.0
    assert observed(1.0, 2.0, 5) == 1.5
    assert observed(1.0, 0.0, 5) == 32.0


def test_sizes_of_a_step():
    incoming, none = norm_of([one(3.0), one(4.0)]), None
    assert incoming.item() == 5.0
    product = [one(0.1), none, none, one(2.0)]
    assert local_size([one(0.5), none, none, none], product, incoming, [none]) == pytest.approx(0.1)
    assert local_size([none, one(9.0), none, one(1.0)], product, incoming, [one(8.0)]) == pytest.approx(0.1)
    assert local_size([one(math.nan), none, none, none], product, incoming, [none]) == math.inf
