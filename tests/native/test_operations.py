"""Each row of the table of operations: value and vector-Jacobian product against PyTorch's."""

from collections import Counter
from functools import cache

import pytest
import torch
from generated import FLAGS, N, assert_as_good, compiled
from rows import EVERY, HARDEST, Case
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tools import list_operations
from torchaca.native.operations import OPERATIONS, translate
from torchaca.native.operations.table import VARIABLES, by_target

SIMPLE = ("pointwise", "composed")
"""Kinds whose graphs, in quick tests, are captured for one size: in a third of the time."""


def named(case: Case) -> str:
    return f"{case.row.kind}-{case.row.name}-{case.name}"


@cache
def functions(kind: str, dtype: torch.dtype, every: bool):
    """The cases of a kind in one library, by their keys; for one that has no code, what was raised."""
    chosen = {case.key: case for case in (EVERY if every else HARDEST) if case.row.kind == kind}
    graphs, failed = {}, {}
    for key, case in chosen.items():
        try:
            graphs[key] = case.graph(dtype, symbolic=every or kind not in SIMPLE)
            translate(graphs[key], "alone", dtype)
        except Exception as error:
            graphs.pop(key, None)
            failed[key] = error
    flags = FLAGS if every or kind == "pointwise" else FLAGS.replace("-O3", "-O1")
    done = dict(zip(graphs, compiled(list(graphs.values()), dtype, flags), strict=True))
    return done, graphs, failed


def check(case: Case, dtype: torch.dtype, n: int, seed: int = 0, every: bool = False) -> None:
    """Value and vector-Jacobian product for a size, where PyTorch has them for it."""
    done, graphs, failed = functions(case.row.kind, dtype, every)
    if case.key in failed:
        raise failed[case.key]
    if n != N and graphs[case.key].meta.get("fixed"):
        return
    try:
        given = case.inputs(dtype, n, seed)
        want = case.joint(given)(*given)
    except (RuntimeError, IndexError):
        assert n != N, "the example must be one"
        return
    exact = case.joint(double(given))(*double(given)) if dtype == torch.float32 else want
    for a, b, c in zip(done[case.key](*given), want, exact, strict=True):
        if dtype == torch.float32:
            assert_as_good(a, b, c)
        else:
            assert_close(a, b, equal_nan=True)


def double(given):
    """The tensors in float64; integers and booleans as they are."""
    return [x.double() if x.is_floating_point() else x for x in given]


class Seen(TorchDispatchMode):
    """The operations that run inside."""

    def __init__(self):
        super().__init__()
        self.targets = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.targets.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:var:UserWarning", "ignore:std:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")
@pytest.mark.parametrize("case", HARDEST, ids=named)
def test_value_and_vjp(case):
    for n in (N, 3, 0):
        check(case, torch.float64, n)
    given = case.inputs(torch.float64)
    with Seen() as seen:
        case.joint(given)(*given)
    graph = functions(case.row.kind, torch.float64, False)[1][case.key]
    targets = seen.targets | {node.target for node in graph.graph.nodes}
    assert targets & set(case.row.targets), "the example does not use the operation"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:var:UserWarning", "ignore:std:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", EVERY, ids=named)
def test_value_and_vjp_of_every_case(case, dtype):
    for n in (N, 3, 2, 64, 0):
        for seed in range(3):
            check(case, dtype, n, seed, every=True)


def test_a_target_has_one_row():
    counts = Counter(target for row in OPERATIONS for target in row.targets)
    assert [target for target, n in counts.items() if n > 1] == []
    assert len(by_target(OPERATIONS)) == sum(counts.values())


def test_examples_use_variables_that_are_explained():
    assert all(set(case.shapes) <= set(VARIABLES) for case in EVERY)


def test_the_page_has_the_table():
    assert list_operations.PAGE.read_text() == list_operations.page(), "run `python tools/list_operations.py`"
