"""README's column for torchdiffeq: each cell beside the program that it stands for."""

import inspect
import sys

import pytest
import torch
import torchdiffeq
from beside_common import EXACT_AT_REST, FieldOfNet, Sine, oscillator
from torchdiffeq import odeint, odeint_adjoint, odeint_event

SPAN = torch.tensor([0.0, 2.0], dtype=torch.float64)
SOLVERS = sys.modules["torchdiffeq._impl.odeint"].SOLVERS
START = torch.tensor([[0.3], [0.7]], dtype=torch.float64)


def slope(solve, f, rtol):
    """The gradient of a solve by its start."""
    y0 = START.clone().requires_grad_()
    return torch.autograd.grad(solve(f, y0, SPAN, rtol=rtol, atol=rtol)[-1].sum(), y0)[0]


def runs():
    assert isinstance(odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0])), torch.Tensor)


def computed():
    f = Sine()
    slope(odeint, f, 1e-4)
    # Two evaluations choose the first step, six make a step; the graph has the first evaluation and whole steps.
    assert f.pulled % 6 == 1
    assert f.pulled < f.called - 2


def memory():
    assert {*inspect.signature(odeint).parameters} == {
        *("func", "y0", "t", "rtol", "atol", "method", "options", "event_fn")
    }


def adjoint():
    f = FieldOfNet()
    torch.testing.assert_close(slope(odeint_adjoint, f, 1e-9), slope(odeint, f, 1e-9), rtol=1e-5, atol=0)


def at_rest():
    a = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(2, dtype=torch.float64)
    ys = odeint(lambda t, y: oscillator(t, y, a), y0, 10 * SPAN, rtol=1e-9, atol=1e-12)
    (found,) = torch.autograd.grad(ys[-1, 0], a)
    assert not abs(found) < 1000 * EXACT_AT_REST


def second():
    f, y0 = FieldOfNet(), START.clone().requires_grad_()

    def curvature(solve):
        loss = solve(f, y0, SPAN)[-1].square().sum()
        (slopes,) = torch.autograd.grad(loss, y0, create_graph=True)
        return torch.autograd.grad(slopes.sum(), y0)[0]

    assert curvature(odeint).isfinite().all()
    with pytest.raises(RuntimeError, match="does not require grad"):
        curvature(odeint_adjoint)


def events():
    t, ys = odeint_event(
        lambda t, y: torch.ones_like(y), torch.zeros(1), SPAN[0], event_fn=lambda t, y: y[0] - 1
    )
    assert t.item() == pytest.approx(1.0)
    assert ys[-1].item() == pytest.approx(1.0)


def samples():
    f = Sine()
    odeint(f, START, SPAN)
    assert all(len(y) == 2 for y in odeint(f, START, SPAN))
    alone = Sine()
    odeint(alone, START[:1], SPAN)
    assert f.called != 2 * alone.called  # the steps are those of both


def compiled():
    solve = torch.compile(lambda y0: odeint(FieldOfNet(), y0, SPAN), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        solve(START)


def failures():
    with pytest.raises(AssertionError, match="underflow in dt"):
        odeint(lambda t, y: y**2, torch.ones(1), SPAN.float())


def methods():
    fixed = {"euler", "midpoint", "heun2", "heun3", "rk4"}
    adaptive = {"dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"}
    adams = {"explicit_adams", "implicit_adams", "fixed_adams"}
    assert SOLVERS.keys() == fixed | adaptive | adams | {"scipy_solver"}
    assert SOLVERS["dopri8"].order == 8


def stiff():
    y0 = START.clone().requires_grad_()
    ys = odeint(
        lambda t, y: -1e4 * (y - t.cos()),
        y0,
        SPAN,
        rtol=1e-6,
        method="scipy_solver",
        options={"solver": "Radau"},
    )
    assert ys[-1].detach().numpy() == pytest.approx(SPAN[-1].cos().item(), abs=1e-3)
    assert not ys.requires_grad


def others():
    assert {name for name in dir(torchdiffeq) if "int" in name} == {
        *("odeint", "odeint_adjoint", "odeint_dense", "odeint_event")
    }


FACTS = {
    "runs on": ("PyTorch", runs),
    "gradient of the computed solution": ("by the graph of all accepted steps", computed),
    "in memory that you choose": ("no", memory),
    "continuous adjoint": ("yes", adjoint),
    "gradient that is right where the state rests": ("no", at_rest),
    "second derivatives of a solve": ("yes; not of the adjoint", second),
    "events": ("one, terminal", events),
    "steps of each sample of a batch": ("no", samples),
    "whole solve compiled": ("no", compiled),
    "failures": ("an assertion", failures),
    "methods": ("explicit Runge-Kutta to order 8, Adams, SciPy's", methods),
    "stiff problems": ("through SciPy, without a graph", stiff),
    "SDEs and CDEs": ("no (torchsde, torchcde)", others),
}
