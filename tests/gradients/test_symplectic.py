"""The symplectic adjoint method is ACA with a stage-wise replay: same numbers, same memory.

Matsubara, Miyatake, Yaguchi, "Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal Memory",
NeurIPS 2021. It integrates the adjoint equation backwards by the Runge-Kutta method that conserves lambda^T dx/dx0
together with the forward one (Sanz-Serna, SIAM Review 58 (2016) 3), from kept states, the stages computed again
without a graph, one graph of f at a time. Written down here as a rival.
"""

import pytest
import torch
from gradient_cases import ADAPTIVE, DOUBLE
from peak import Peak
from torch import nn

from torchaca import ACA, METHODS, RungeKutta, solve

STAGEWISE = ACA(stagewise=True)


def symplectic_adjoint(f, params, method, times, states, lam):
    """`(lambda at times[0], dL/dparams)` from lambda at times[-1]; `states[n]` starts step n."""
    totals = [torch.zeros_like(p) for p in params]
    for n in range(len(times) - 2, -1, -1):
        lam, slopes = step_back(f, params, method, times[n], times[n + 1] - times[n], states[n], lam)
        totals = [total - slope for total, slope in zip(totals, slopes, strict=True)]
    return lam, totals


def step_back(f, params, method, t, h, x, lam):
    """One step of the paper's equation (7): b~_i is b_i, or h where b_i = 0."""
    a, b, c = method.matrix, [float(b) for b in method.weights], method.nodes
    stages = range(len(b) - method.fsal)
    weights = [b[i] or h for i in stages]
    with torch.no_grad():
        inner, ks = [], []
        for i in stages:
            inner.append(x + h * sum((float(a[i][j]) * ks[j] for j in range(i)), torch.zeros_like(x)))
            ks.append(f(torch.tensor(t + float(c[i]) * h, dtype=DOUBLE), inner[i]))
        del ks
    slopes, totals = {}, [torch.zeros_like(p) for p in params]
    for i in reversed(stages):
        pulled = sum(
            (weights[j] * float(a[j][i]) * slopes[j] for j in range(i + 1, len(stages))), torch.zeros_like(x)
        )
        costate = lam - h * pulled / b[i] if b[i] else -pulled
        here = inner[i].detach().requires_grad_()
        k = f(torch.tensor(t + float(c[i]) * h, dtype=DOUBLE), here)
        slopes[i], *grads = torch.autograd.grad(k, [here, *params], -costate)
        totals = [total + h * weights[i] * grad for total, grad in zip(totals, grads, strict=True)]
        del k, grads
    return lam - h * sum(weights[i] * slopes[i] for i in stages), totals


def network(width):
    net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3)).double()
    return (lambda t, y: net(y) * torch.cos(5 * t)), list(net.parameters())


@pytest.mark.parametrize(
    "method", ["euler", "rk4", *(m for m in ADAPTIVE if isinstance(METHODS[m], RungeKutta))]
)
def test_the_symplectic_adjoint_is_the_stagewise_replay(method):
    f, params = network(8)
    y0 = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    options = {"rtol": 1e-4} if METHODS[method].adaptive else {"n_steps": 10}
    sol = solve(f, y0, [0.0, 2.0], method=method, gradient=STAGEWISE, dense=True, **options)
    assert sol.stats.accepted > 3
    lam = torch.cos(sol.ys[-1]).detach()
    got = torch.autograd.grad(sol.ys[-1].sin().sum(), [y0, *params])
    states = [basis[0] for basis in sol.dense.bases]
    start, totals = symplectic_adjoint(f, params, METHODS[method], sol.steps, states, lam)
    for mine, theirs in zip(got, (start, *totals), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    stages = METHODS[method].stages - METHODS[method].fsal
    assert sol.stats.nfe_backward == 2 * stages * sol.stats.accepted


def peaks(method):
    """Peak memory of the backward pass: symplectic, stage-wise, step-wise; in units of a hidden layer of f."""
    f, params = network(400)
    y0 = torch.randn(64, 3, dtype=DOUBLE, requires_grad=True)
    found = []
    for gradient in (STAGEWISE, ACA(checkpoints="all")):
        sol = solve(f, y0, [0.0, 0.5], method=method, gradient=gradient, n_steps=3, dense=True)
        with Peak(params) as peak:
            torch.autograd.grad(sol.ys[-1].sum(), [y0, *params])
        found.append(peak.peak / (64 * 400))
    states = [basis[0].detach() for basis in sol.dense.bases]
    with Peak(params) as peak:
        symplectic_adjoint(f, params, METHODS[method], sol.steps, states, torch.ones_like(y0))
    return peak.peak / (64 * 400), *found


def test_both_hold_one_graph_of_f_at_a_time():
    few, many = peaks("rk4"), peaks("dopri8")
    more = METHODS["dopri8"].stages - METHODS["rk4"].stages
    for rk4, dopri8 in zip(few[:2], many[:2], strict=True):
        assert dopri8 < rk4 + 0.25  # a few states, which are small
        assert dopri8 < 4.5
    assert few[1] < few[0] + 0.25
    assert many[1] < many[0] + 0.25
    assert many[2] > few[2] + more
