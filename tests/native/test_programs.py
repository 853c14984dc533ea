"""Vector fields as people write them: f and its vector-Jacobian product as C, against PyTorch's."""

from functools import cache

import pytest
import torch
from fields import FIELDS, VARIED, Case
from generated import FLAGS, N, assert_as_good, captured, compiled, with_pull
from torch.testing import assert_close

FEW = VARIED[::3]
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
def functions(dtype: torch.dtype, flags: str, cases: tuple[Case, ...], halved: bool):
    """All of the fields in one library."""
    graphs = []
    for case in cases:
        joint, given = joint_and_inputs(case, N, dtype)
        graphs.append(captured(joint, given, symbolic=not case.fixed))
    return dict(zip((case.name for case in cases), compiled(graphs, dtype, flags, halved), strict=True))


def check(case: Case, dtype: torch.dtype, flags: str, cases: tuple[Case, ...], halved: bool) -> None:
    for n in (N,) if case.fixed or N not in case.shape else (N, 3, 2):
        joint, given = joint_and_inputs(case, n, dtype)
        got, want = functions(dtype, flags, cases, halved)[case.name](*given), joint(*given)
        if dtype == torch.float64:
            assert_close(got, list(want))
            continue
        joint, _ = joint_and_inputs(case, n, torch.float64)
        for a, b, exact in zip(got, want, joint(*(x.double() for x in given)), strict=True):
            assert_as_good(a, b, exact)


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_field_first_and_its_vjp_later(case):
    """As two functions, the second of which continues in the workspace of the first; slow: all fields, optimised."""
    check(case, torch.float64, QUICK, FEW, halved=True)


@pytest.mark.slow
@pytest.mark.parametrize("halved", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", FIELDS, ids=lambda case: case.name)
def test_field_and_vjp_as_they_are_compiled(case, dtype, halved):
    check(case, dtype, FLAGS, FIELDS, halved)
