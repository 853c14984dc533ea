"""Each row of the table of operations: value and vector-Jacobian product against PyTorch's."""

from functools import cache

import pytest
import torch
from generated import N, compiled
from rows import EVERY, Case
from torch.testing import assert_close


@cache
def functions(kind: str, dtype: torch.dtype):
    """All cases of a kind in one library."""
    chosen = [case for case in EVERY if case.row.kind == kind]
    return dict(zip(map(id, chosen), compiled([case.graph(dtype) for case in chosen], dtype)))


def check(case: Case, dtype: torch.dtype, n: int, seed: int = 0) -> None:
    given = case.inputs(dtype, n, seed)
    want = case.joint(given)(*given)
    got = functions(case.row.kind, dtype)[id(case)](*given)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("case", EVERY, ids=lambda case: f"{case.row.name}-{case.name}")
def test_value_and_vjp(case):
    for n in (N, 3):
        check(case, torch.float64, n)
