"""Events inside torch.func transforms: the derivatives that autograd finds outside of them, or words."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torchaca import Event, solve

DOUBLE = torch.float64
X = torch.tensor([1.0, 0.1, 1.3, 0.2, 0.6], dtype=DOUBLE)
GRADIENTS = ["aca", "direct"]


def path(x, terminal=False, **options):
    """The last state and the times of events, as a function of the start, f, the event and its jump."""

    def apply(t, y):
        return torch.stack([y[0], -x[4] * y[1] - 0.3 * t])

    event = Event(lambda t, y: y[0] - x[3] * (1 + 0.1 * t), terminal, -1, None if terminal else apply)
    sol = solve(
        lambda t, y: torch.stack([y[1], -x[2] * y[0] - 0.1 * y[1] + 0.1 * torch.cos(t)]),
        x[:2],
        [0.0, 4.0],
        events=event,
        **{"rtol": 1e-8, "atol": 1e-10, **options},
    )
    return torch.cat([sol.ys[-1], sol.events[0].t])


def right(terminal=False, **options):
    return torch.autograd.functional.jacobian(lambda x: path(x, terminal, gradient="direct", **options), X)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_jacobians(transform, gradient, terminal):
    found = transform(lambda x: path(x, terminal, gradient=gradient))(X)
    torch.testing.assert_close(found, right(terminal), rtol=1e-9, atol=1e-9)


def test_products_and_fixed_steps():
    steps = {"rtol": None, "atol": None, "n_steps": 30}
    wanted = right(**steps)
    v, w = torch.linspace(-1, 1, 5, dtype=DOUBLE), torch.linspace(0.3, 1, len(wanted), dtype=DOUBLE)

    def function(x):
        return path(x, **steps)

    torch.testing.assert_close(jvp(function, (X,), (v,))[1], wanted @ v)
    torch.testing.assert_close(vjp(function, X)[1](w)[0], w @ wanted)
    torch.testing.assert_close(grad(lambda x: function(x) @ w)(X), w @ wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, v)
        tangent = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
    torch.testing.assert_close(tangent, wanted @ v)


def test_second_derivatives():
    wanted = torch.autograd.functional.hessian(lambda x: path(x).prod(), X)
    torch.testing.assert_close(hessian(lambda x: path(x).prod())(X), wanted, rtol=1e-7, atol=1e-7)
    x = X.clone().requires_grad_()
    mixed = torch.autograd.grad(grad(lambda x: path(x).prod())(x).sum(), x)[0]
    torch.testing.assert_close(mixed, wanted.sum(0), rtol=1e-7, atol=1e-7)


def test_third_derivatives_are_refused():
    with pytest.raises(NotImplementedError, match="third derivatives through events"):
        grad(lambda x: grad(lambda x: grad(lambda x: path(x).sum())(x).sum())(x).sum())(X)


@pytest.mark.parametrize("steps", [{}, {"rtol": None, "atol": None, "n_steps": 30}])
@pytest.mark.parametrize("which", [slice(0, 2), slice(2, 3), slice(3, 4)], ids=["y0", "f", "event"])
def test_lanes_are_refused(which, steps):
    def function(part):
        x = torch.cat([X[: which.start], part, X[which.stop :]])
        return path(x, **steps)

    with pytest.raises(NotImplementedError, match="each lane at a time of its own"):
        vmap(function)(torch.stack([X[which], X[which]]))
