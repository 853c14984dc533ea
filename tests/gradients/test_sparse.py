"""Sparse tensors whose values are learned (a graph's edge weights): right under a gradient, or refused at once."""

import pytest
import torch
from gradient_cases import DOUBLE
from torch import nn

import torchaca as aca
from torchaca import GRADIENTS, solve

T = [0.0, 0.25, 0.5]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # invariants unchecked, CSR in beta
CASES = {name: {"gradient": name, "method": "alf" if name == "mali" else "dopri5"} for name in GRADIENTS} | {
    "gauss": {"gradient": aca.Adjoint(quadrature="gauss")},
    "gauss, interpolated": {"gradient": aca.Adjoint(quadrature="gauss", state="interpolated")},
    "interpolated": {"gradient": aca.Adjoint(state="interpolated")},
    "semi": {"gradient": aca.Adjoint(norm="semi")},
    "sqrt": {"gradient": aca.ACA(checkpoints="sqrt")},
}
REFUSED = {"adjoint", "interpolated", "semi"}


def matrix(sparse):
    values = torch.tensor([[0.0, 1.2, 0.0], [0.5, 0.0, -0.7], [0.0, 0.0, 0.9]], dtype=DOUBLE)
    return sparse(values)


def twice(dense):
    """Not coalesced: one entry in two parts."""
    whole = dense.to_sparse()
    at, values = whole.indices(), whole.values()
    at = torch.cat([at, at[:, :1]], 1)
    return torch.sparse_coo_tensor(at, torch.cat([values, values[:1]]), dense.shape)


KINDS = {
    "coo": (lambda x: x.to_sparse().coalesce(), torch.sparse.mm),
    "in two parts": (twice, torch.sparse.mm),
    "csr": (lambda x: x.to_sparse_csr(), torch.sparse.mm),
    "csr of a dense gradient": (lambda x: x.to_sparse_csr(), torch.matmul),
    "csc": (lambda x: x.to_sparse_csc(), torch.matmul),
    "hybrid": (lambda x: x.to_sparse(1), lambda a, y: a.to_dense() @ y),
}


def gradient(kind, options, handed, made, steps):
    make, times = KINDS[kind]
    a = matrix(make).detach().requires_grad_()
    b = a * 1.0 if made else a
    y0 = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(3, 2)

    def f(t, y, *args):
        return torch.tanh(times(*args or (b,), y))

    sol = solve(f, y0, T, args=(b,) if handed else (), **steps, **options)
    (grad,) = torch.autograd.grad(sol.ys[-1].square().sum(), a)
    return grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_a_sparse_leaf(case, kind):
    steps = {"rtol": 1e-5, "atol": 1e-6} if "gauss" in case or case in REFUSED else {"n_steps": 3}
    for handed, made in ((False, False), (True, False), (False, True)):
        if case in REFUSED:
            with pytest.raises(
                ValueError, match=r"gradient of a sparse tensor \(shape \(3, 3\).*quadrature='gauss'"
            ):
                gradient(kind, CASES[case], handed, made, steps)
            continue
        right = gradient(kind, CASES[case] | {"gradient": "direct"}, handed, made, steps)
        mine = gradient(kind, CASES[case], handed, made, steps)
        assert mine.layout == right.layout
        torch.testing.assert_close(mine.to_dense(), right.to_dense(), rtol=1e-3, atol=1e-5)


def test_a_sparse_leaf_that_f_reaches_only_is_no_matter():
    a = matrix(lambda x: x.to_sparse()).requires_grad_()
    net = nn.Linear(2, 2).double()
    ys = solve(
        lambda t, y: net(y) if t < 1.0 else a @ y, torch.ones(3, 2, dtype=DOUBLE), T, gradient="adjoint"
    ).ys
    ys.sum().backward()
    assert net.weight.grad is not None


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 2, sparse=True).double()

    def forward(self, t, y):
        return torch.tanh(self.table(torch.tensor([3, 7]))) * y


def test_rows_of_an_embedding_stay_sparse():
    """Their gradients are sparse although the tensor is not."""
    grads = []
    for case in ("direct", "adjoint", "gauss", "aca"):
        f = Rows()
        solve(f, torch.ones(2, 2, dtype=DOUBLE), T, rtol=1e-6, **CASES[case]).ys[-1].sum().backward()
        grad = f.table.weight.grad
        assert grad.layout == torch.sparse_coo
        assert grad.coalesce().indices().tolist() == [[3, 7]]
        grads.append(grad.to_dense())
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-4, atol=1e-6)
