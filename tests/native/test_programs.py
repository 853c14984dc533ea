"""Vector fields as people write them: f and its vector-Jacobian product as C, against PyTorch's."""

from functools import cache

import pytest
import torch
from fields import FIELDS, VARIED, Case
from generated import FLAGS, N, captured, compiled, with_pull
from torch.testing import assert_close

QUICK = FLAGS.replace("-O3", "-O1")


def joint_and_inputs(case: Case, n: int, dtype: torch.dtype):
    """The function (cotangent, t, y, *weights) -> (f, products), and what it is called with."""
    module, made = case.made(dtype), torch.Generator().manual_seed(1)
    names = [name for name, _ in module.named_parameters()]
    shape = [n if m == N else m for m in case.shape]
    cotangent, y = (torch.randn(shape, generator=made, dtype=torch.float64).to(dtype) for _ in range(2))

    def f(t, y, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (t, y))

    given = [cotangent, torch.tensor(0.3, dtype=dtype), 0.7 * y, *(x.detach() for x in module.parameters())]
    return with_pull(f, given[1:]), given


@cache
def functions(dtype: torch.dtype, flags: str, cases: tuple[Case, ...]):
    """All of the fields in one library."""
    graphs = []
    for case in cases:
        joint, given = joint_and_inputs(case, N, dtype)
        graphs.append(captured(joint, given, symbolic=not case.fixed))
    return dict(zip((case.name for case in cases), compiled(graphs, dtype, flags), strict=True))


def check(case: Case, dtype: torch.dtype, flags: str, cases: tuple[Case, ...]) -> None:
    for n in (N,) if case.fixed or N not in case.shape else (N, 3, 2):
        joint, given = joint_and_inputs(case, n, dtype)
        for a, b in zip(functions(dtype, flags, cases)[case.name](*given), joint(*given), strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("case", VARIED, ids=lambda case: case.name)
def test_field_and_vjp(case):
    check(case, torch.float64, QUICK, VARIED)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", FIELDS, ids=lambda case: case.name)
def test_field_and_vjp_as_they_are_compiled(case, dtype):
    check(case, dtype, FLAGS, FIELDS)
