"""What lies inside steps is as precise as what lies at their ends: no matrix product, which autocast and TF32 round."""

import pytest
import torch
from stubs import CountOperations

from torchaca import ACA, GRADIENTS, METHODS, Adjoint, solve
from torchaca.numbers import combined

TIMES = [0.0, 0.2, 0.31, 0.5, 1.0]
PRODUCTS = {
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "addbmm",
    "mv",
    "addmv",
    "dot",
    "vdot",
    "matmul",
    "linear",
    "einsum",
}
ADJOINTS = [
    Adjoint(state=state, quadrature=rule)
    for state in ("backsolve", "interpolated")
    for rule in ("augmented", "gauss")
]
SETTINGS = [*ADJOINTS, ACA(grad_rtol=0.1), ACA(checkpoints="none"), ACA(checkpoints=2)]
CASES = [
    *((name, "aca") for name in METHODS),
    *(("alf", one) for one in (*GRADIENTS, *SETTINGS)),
    ("dopri5", "direct"),
]


def solution(method, gradient="aca", **options):
    k = torch.tensor(0.7, requires_grad=True)
    y0 = torch.linspace(0.1, 1, 6).reshape(2, 3).requires_grad_()
    times = torch.tensor(TIMES, dtype=torch.float64)
    return solve(
        lambda t, y: -k * y * y, y0, times, method=method, gradient=gradient, n_steps=2, **options
    ), (y0, k)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_is_for_f_alone(method):
    """f computes nothing that autocast rounds: the same bits, also of the gradients; and those of the basis."""
    plain, wrt = solution(method, dense=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast, own = solution(method, dense=True)
        assert torch.equal(cast(TIMES), plain(TIMES))
    assert torch.equal(cast.ys, plain.ys)
    torch.testing.assert_close(cast(TIMES), cast.ys, rtol=1e-6, atol=1e-7)
    for solved, inputs in ((plain, wrt), (cast, own)):
        solved.ys.square().sum().backward(inputs=inputs)
    for x, y in zip(wrt, own, strict=True):
        assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize(("method", "gradient"), CASES, ids=str)
def test_no_matrix_product(method, gradient):
    dense = not isinstance(gradient, Adjoint) and gradient not in ("adjoint", "mali")
    with CountOperations() as counts:
        solved, wrt = solution(method, gradient, dense=dense)
        loss = solved.ys.square().sum() + (solved([0.1, 0.7]).sum() if dense else 0.0)
        loss.backward(inputs=wrt)
    assert not counts.names.keys() & PRODUCTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (300, 300)], ids=str)
def test_sums_of_rows(shape, dtype):
    """Larger states are summed up one by one; weights that carry derivatives get theirs."""
    rows = [torch.randn(shape, dtype=dtype) for _ in range(4)]
    weights = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    found, right = combined(weights, rows), torch.tensordot(weights.to(dtype), torch.stack(rows), 1)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(combined(weights, torch.stack(rows)), found)
    grads = [torch.autograd.grad(out.abs().sum(), weights)[0] for out in (found, right)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-4)
