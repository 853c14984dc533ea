"""The pass over small tensors: the same values from fewer calls and buffers."""

from collections import Counter

import pytest
import torch
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from torchaca.compiled.small import FEW, SMALL, Small

aten = torch.ops.aten


def passed(function, *args, cats=True):
    """The function's graph behind the pass, and how often it calls each operation."""
    mode = FakeTensorMode()
    with mode:
        fakes = [mode.from_tensor(x) for x in args]
    graph = make_fx(function)(*fakes)
    with V.set_fake_mode(mode):
        Small(cats)(graph.graph)
    graph.recompile()
    graph.graph.lint()
    torch.testing.assert_close(graph(*args), function(*args), rtol=1e-5, atol=1e-5)
    return Counter(node.target for node in graph.graph.nodes)


def gradient_sum(total, *pairs):
    """As a backward pass adds up a weight's gradients: transposed cotangents by inputs."""
    products = [g.t() @ x for g, x in zip(pairs[::2], pairs[1::2], strict=True)]
    return total + (products[0] + products[1] + products[2])


def pairs(rows, dtype=torch.float32):
    return [torch.randn(rows, n, dtype=dtype) for _ in range(3) for n in (5, 2)]


def test_products_lose_their_additions():
    x, w, b = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
    calls = passed(lambda x, w, b: torch.nn.functional.linear(x, w, b).tanh(), x, w, b)
    assert calls[aten.mm.default] == 1
    assert aten.addmm.default not in calls


def test_half_precision_adds_before_it_rounds():
    x, w, b = (torch.randn(*shape, dtype=torch.bfloat16) for shape in ((4, 3), (5, 3), (5,)))
    assert passed(torch.nn.functional.linear, x, w, b)[aten.addmm.default] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_of_small_products_is_one(dtype):
    calls = passed(gradient_sum, torch.randn(5, 2, dtype=dtype), *pairs(4, dtype))
    assert calls[aten.mm.default] == 1
    assert calls[aten.cat.default] == 2


def test_what_is_large_read_twice_or_broadcast_stays():
    assert passed(gradient_sum, torch.randn(5, 2), *pairs(SMALL // 10 + 1))[aten.mm.default] == 3

    def read_twice(a, b, c, d):
        first = a @ b
        return first + c @ d, first

    four = [torch.randn(*shape) for shape in ((5, 4), (4, 2)) * 2]
    assert passed(read_twice, *four)[aten.mm.default] == 2
    assert passed(lambda a, b, c, d: a @ b + (c @ d)[:1], *four)[aten.mm.default] == 2


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool, torch.complex64])
def test_a_small_cat_is_a_choice(dtype, dim):
    shapes = [(2, 3, 2), (1, 3, 2), (2, 3, 2)] if dim == 0 else [(2, 3, 2), (2, 3, 2)]
    parts = [torch.randn(*shape).to(dtype) for shape in shapes]
    calls = passed(lambda *parts: torch.cat(parts, dim), *parts)
    assert aten.cat.default not in calls
    assert calls[aten.where.self] == len(parts) - 1
    assert passed(lambda *parts: torch.cat(parts, dim), *parts, cats=False)[aten.cat.default] == 1


def test_signed_zeros_and_nan_keep_their_places():
    parts = torch.tensor([-0.0, torch.nan, 1.0]), torch.tensor([0.0, -torch.inf, -0.0])
    mode = FakeTensorMode()
    with mode:
        fakes = [mode.from_tensor(x) for x in parts]
    graph = make_fx(lambda *parts: torch.cat(parts))(*fakes)
    with V.set_fake_mode(mode):
        Small(cats=True)(graph.graph)
    graph.recompile()
    assert graph(*parts).view(torch.int32).tolist() == torch.cat(parts).view(torch.int32).tolist()


def test_a_cat_that_is_large_or_has_an_empty_part_stays():
    assert passed(lambda a, b: torch.cat([a, b]), torch.ones(FEW), torch.ones(1))[aten.cat.default] == 1
    assert passed(lambda a, b: torch.cat([a, b]), torch.ones(3), torch.ones(0))[aten.cat.default] == 1
