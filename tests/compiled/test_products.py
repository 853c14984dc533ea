"""The pass over matrix products: the same values from fewer calls."""

from collections import Counter

import pytest
import torch
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from torchaca.compiled.products import SMALL, Products

aten = torch.ops.aten


def passed(function, *args):
    """The function's graph behind the pass, and how often it calls each operation."""
    mode = FakeTensorMode()
    with mode:
        fakes = [mode.from_tensor(x) for x in args]
    graph = make_fx(function)(*fakes)
    with V.set_fake_mode(mode):
        Products()(graph.graph)
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
