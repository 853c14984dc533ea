"""README's column for torchode: each cell beside the program that it stands for."""

import inspect

import pytest
import torch
import torchode
from beside_common import EXACT_AT_REST, FieldOfNet, Sine, oscillator
from torchode import AutoDiffAdjoint, BacksolveAdjoint, JointBacksolveAdjoint

START = torch.tensor([[0.3], [0.7]], dtype=torch.float64)


def solver(f, tolerance, kind=AutoDiffAdjoint, **options):
    """What solves dy/dt = f by dopri5."""
    term = torchode.ODETerm(f)
    parts = torchode.Dopri5(term=term), torchode.IntegralController(tolerance, tolerance, term=term)
    return AutoDiffAdjoint(*parts, **options) if kind is AutoDiffAdjoint else kind(term, *parts, **options)


def solve(f, y0, end, tolerance=1e-4, kind=AutoDiffAdjoint, **options):
    """A solve from 0 to `end`."""
    times = torch.tensor([[0.0, end]] * len(y0), dtype=torch.float64)
    return solver(f, tolerance, kind, **options).solve(torchode.InitialValueProblem(y0=y0, t_eval=times))


def runs():
    assert isinstance(solve(lambda t, y: -y, START, 1.0).ys, torch.Tensor)


def computed():
    f, y0 = Sine(), START.clone().requires_grad_()
    sol = solve(f, y0, 2.0)
    sol.ys[:, -1].sum().backward()
    assert (sol.stats["n_accepted"] < sol.stats["n_steps"]).all()
    assert f.pulled == f.called


def memory():
    taken = {*inspect.signature(AutoDiffAdjoint.__init__).parameters}
    assert taken == {
        *("self", "step_method", "step_size_controller", "max_steps", "backprop_through_step_size_control")
    }


def slope(kind, f):
    y0 = START.clone().requires_grad_()
    return torch.autograd.grad(solve(f, y0, 2.0, 1e-9, kind).ys[:, -1].sum(), y0)[0]


def adjoint():
    f = FieldOfNet()
    found = slope(JointBacksolveAdjoint, f)
    torch.testing.assert_close(found, slope(AutoDiffAdjoint, f), rtol=1e-5, atol=0)


def at_rest():
    a = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(1, 2, dtype=torch.float64)
    ys = solve(lambda t, y: oscillator(t, y, a), y0, 20.0, 1e-9).ys
    (found,) = torch.autograd.grad(ys[0, -1, 0], a)
    assert not abs(found) < 1000 * EXACT_AT_REST


def second():
    f, y0 = FieldOfNet(), START.clone().requires_grad_()

    def curvature(kind):
        loss = solve(f, y0, 1.0, kind=kind).ys[:, -1].square().sum()
        (slopes,) = torch.autograd.grad(loss, y0, create_graph=True)
        return torch.autograd.grad(slopes.sum(), y0)[0]

    assert curvature(AutoDiffAdjoint).isfinite().all()
    for kind in (BacksolveAdjoint, JointBacksolveAdjoint):
        with pytest.raises(RuntimeError, match="does not require grad"):
            curvature(kind)


def events():
    assert not any("event" in name.lower() for name in dir(torchode))
    assert "event" not in str(inspect.signature(AutoDiffAdjoint.solve)).lower()


def samples():
    rate = torch.tensor([[1.0], [20.0]], dtype=torch.float64)
    easy, hard = solve(lambda t, y: torch.cos(rate * t[:, None]) * y, START, 5.0).stats["n_accepted"].tolist()
    assert easy < hard


def compiled():
    adjoint = solver(FieldOfNet(), 1e-4)
    with pytest.raises(RuntimeError, match="INTERNAL ASSERT FAILED"):
        torch.jit.script(adjoint)
    times = torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64)
    whole = torch.compile(
        lambda y0: adjoint.solve(torchode.InitialValueProblem(y0=y0, t_eval=times)).ys,
        fullgraph=True,
        backend="eager",
    )
    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole(START)


def failures():
    status = solve(lambda t, y: y**2, START, 2.0, max_steps=1000).status.tolist()
    assert status[0] == torchode.Status.SUCCESS.value != status[1]


def methods():
    classes = [x for x in vars(torchode).values() if inspect.isclass(x)]
    made = {x.__name__ for x in classes if x.__module__.startswith("torchode.single_step_methods.")}
    assert made == {"Dopri5", "Euler", "Heun", "Tsit5"}


def others():
    assert not any("sde" in name.lower() or "cde" in name.lower() for name in dir(torchode))


FACTS = {
    "runs on": ("PyTorch", runs),
    "gradient of the computed solution": ("by the graph of all trials", computed),
    "in memory that you choose": ("no", memory),
    "continuous adjoint": ("yes", adjoint),
    "gradient that is right where the state rests": ("no", at_rest),
    "second derivatives of a solve": ("yes; not of the adjoints", second),
    "events": ("no", events),
    "steps of each sample of a batch": ("yes", samples),
    "whole solve compiled": ("no; its TorchScript fails on PyTorch 2.13", compiled),
    "failures": ("a status for each sample", failures),
    "methods": ("four explicit Runge-Kutta", methods),
    "stiff problems": ("no", methods),
    "SDEs and CDEs": ("no", others),
}
