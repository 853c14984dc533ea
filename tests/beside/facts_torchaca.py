"""README's column for torchaca: each cell beside the program that it stands for."""

import re

import pytest
import torch
from beside_common import EXACT_AT_REST, FieldOfNet, Sine, oscillator

import torchaca as aca
from torchaca.methods import RungeKutta

START = torch.tensor([[0.3], [0.7]], dtype=torch.float64)


def runs():
    assert isinstance(aca.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0]).ys, torch.Tensor)


def slope(gradient, rtol=1e-4, f=None):
    """The gradient of a solve, and its statistics."""
    y0 = START.clone().requires_grad_()
    sol = aca.solve(f or Sine(), y0, [0.0, 2.0], rtol=rtol, atol=rtol, gradient=gradient)
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), y0)
    return found, sol


def computed():
    f = Sine()
    found, sol = slope("aca", f=f)
    torch.testing.assert_close(found, slope("direct")[0], rtol=1e-12, atol=0)
    assert sol.stats.rejected > 0
    assert f.pulled == 6 * sol.stats.accepted


def memory():
    wanted, _ = slope("direct")
    for setting in ("all", "sqrt", 5, "binomial"):
        found, _ = slope(aca.ACA(checkpoints=setting))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    found, _ = slope(aca.ACA(memory_budget=10_000))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def adjoint():
    f = FieldOfNet()
    wanted, _ = slope("direct", 1e-9, f)
    for kind in (aca.Adjoint(), aca.Adjoint(state="interpolated"), aca.Adjoint(quadrature="gauss")):
        found, sol = slope(kind, 1e-9, f)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
        assert sol.stats.accepted_backward > 0


def at_rest():
    a = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(2, dtype=torch.float64)
    for options, error in (({}, 0.05), ({"gradient": aca.ACA(grad_rtol=1e-2)}, 0.01)):
        ys = aca.solve(oscillator, y0, [0.0, 20.0], args=(a,), rtol=1e-9, atol=1e-12, **options).ys
        (found,) = torch.autograd.grad(ys[-1, 0], a)
        assert found.item() == pytest.approx(EXACT_AT_REST, rel=error)


def second():
    def curvature(**options):
        y0 = START.clone().requires_grad_()
        ys = aca.solve(FieldOfNet(), y0, [0.0, 1.0], rtol=1e-6, **options).ys
        (slopes,) = torch.autograd.grad(ys[-1].square().sum(), y0, create_graph=True)
        return torch.autograd.grad(slopes.sum(), y0)[0]

    torch.testing.assert_close(curvature(), curvature(gradient="direct"), rtol=1e-10, atol=0)
    with pytest.raises(RuntimeError, match="second derivatives"):
        curvature(compile=True)


def events():
    def fall(t, y):
        return torch.stack([y[1], -torch.ones_like(y[1])])

    height = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.stack([height, torch.zeros_like(height)])
    ground = aca.Event(lambda t, y: y[0], direction=-1, apply=lambda t, y: torch.stack([y[0], -y[1]]))
    top = aca.Event(lambda t, y: y[1], terminal=True, direction=-1)
    sol = aca.solve(fall, y0, [0.0, 5.0], events=(ground, top))
    (slope,) = torch.autograd.grad(sol.events[0].t[0], height, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, height)
    assert sol.status == "event"
    # It is on the ground at sqrt(2 h), and at the top again at twice that.
    assert [sol.events[0].t[0].item(), sol.events[1].t[0].item()] == pytest.approx([1.0, 2.0])
    assert [slope.item(), curvature.item()] == pytest.approx([1.0, -1.0])


def samples():
    easy_and_hard = torch.tensor([1.0, 20.0], dtype=torch.float64)

    def f(t, y, rate):
        return torch.cos(rate * t) * y

    y0 = torch.ones(2, dtype=torch.float64)
    easy, hard = aca.solve(f, y0, [0.0, 5.0], batch=1, rows=(easy_and_hard,)).stats.samples.accepted.tolist()
    assert easy < hard
    ys = torch.func.vmap(lambda y, rate: aca.solve(f, y, [0.0, 5.0], args=(rate,)).ys[-1])(y0, easy_and_hard)
    alone = [aca.solve(f, y, [0.0, 5.0], args=(rate,)).ys[-1] for y, rate in zip(y0, easy_and_hard)]
    torch.testing.assert_close(ys, torch.stack(alone), rtol=1e-6, atol=0)


def compiled():
    f, y0 = FieldOfNet(), START.clone().requires_grad_()
    sol = aca.solve(f, y0, [0.0, 1.0], compile=True)
    assert sol.stats.executor == "native"
    found = torch.autograd.grad(sol.ys[-1].sum(), y0)
    torch.testing.assert_close(found, torch.autograd.grad(aca.solve(f, y0, [0.0, 1.0]).ys[-1].sum(), y0))
    with pytest.raises(ValueError, match=r"has no compiled loop: use .* compile='steps'"):
        aca.explain(f, y0.detach().to("meta"), [0.0, 1.0])
    assert aca.explain(f, y0, [0.0, 1.0], compile="steps").executor == "steps"


def failures():
    with pytest.raises(aca.SolverError) as caught:
        aca.solve(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 2.0])
    said = str(caught.value)
    assert re.search(r"\[blow-up\].*stopped at t = 0\.99", said)
    assert "try: " in said


def methods():
    tables = [method for method in aca.METHODS.values() if isinstance(method, RungeKutta)]
    assert max(method.order for method in tables) == 8
    assert {*aca.METHODS.values()} - {*tables} == {aca.ALF(), aca.ReversibleHeun()}


def stiff():
    y0 = torch.ones(1, dtype=torch.float64)
    for method in aca.METHODS.values():
        if method.adaptive:
            with pytest.raises(aca.SolverError):
                aca.solve(lambda t, y: -1e6 * (y - t.cos()), y0, [0.0, 10.0], method=method, max_steps=2000)


def others():
    assert not re.search("sde|cde|brown|control_path", " ".join(aca.__all__).lower())


FACTS = {
    "runs on": ("PyTorch", runs),
    "gradient of the computed solution": ("yes", computed),
    "in memory that you choose": ("states, their square root, a number, bytes, binomial", memory),
    "continuous adjoint": ("yes, three kinds", adjoint),
    "gradient that is right where the state rests": ("yes; its error controlled with `grad_rtol`", at_rest),
    "second derivatives of a solve": ("yes; not of `compile=True`", second),
    "events": ("several, terminal or not, jumps of the state, all derivatives", events),
    "steps of each sample of a batch": ("`batch=1`, or `vmap`", samples),
    "whole solve compiled": ("C on CPUs, in seconds; elsewhere its steps alone", compiled),
    "failures": ("say what happened, where, and what to try", failures),
    "methods": ("explicit Runge-Kutta to order 8, two reversible", methods),
    "stiff problems": ("no", stiff),
    "SDEs and CDEs": ("no", others),
}
