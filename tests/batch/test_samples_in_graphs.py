"""Samples of a batch whose steps are graphs: the same steps, solutions and gradients as without."""

from typing import Any

import pytest
import torch
from backends import without_code
from batch.cases import DOUBLE, MU, OWN_TIMES, Y0, van_der_pol
from torch._functorch import config as functorch_config

import torchaca as aca
from torchaca import ACA, METHODS, solve
from torchaca.compiled import graphs
from torchaca.methods.staged import staged

STAGED = [name for name, method in METHODS.items() if staged(method)]


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], autouse=True)
def backend(request, monkeypatch):
    """Dynamo and autograd's half of the compiler; slow: all of it."""
    if request.param != "inductor":
        without_code(request.param, monkeypatch)
    with functorch_config.patch(donated_buffer=False):
        yield request.param


def results(mode, t: Any = OWN_TIMES, **options):
    y0, mu = (x.clone().requires_grad_() for x in (Y0, MU))
    sol = solve(van_der_pol, y0, t, batch=1, rows=(mu,), compile=mode, **options)
    wrt = [y0, mu, *([t] if isinstance(t, torch.Tensor) and t.requires_grad else [])]
    loss = sol.ys[sol.mask].square().sum()
    loss = loss + (sol.dense(torch.full((len(Y0),), 0.4, dtype=DOUBLE)).sum() if sol.dense else 0.0)
    loss = loss + sum(one.y.nan_to_num().sum() for one in sol.events or ())
    return sol, torch.autograd.grad(loss, wrt)


def assert_same(**options):
    (eager, right), (sol, own) = (results(mode, **options) for mode in (False, "steps"))
    assert (sol.stats.executor, eager.stats.executor) == ("steps", "eager")
    assert sol.status == eager.status
    assert torch.equal(sol.mask, eager.mask)
    assert torch.equal(sol.stats.samples.accepted, eager.stats.samples.accepted)
    assert torch.equal(sol.stats.samples.rejected, eager.stats.samples.rejected)
    torch.testing.assert_close(sol.ys, eager.ys, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(own, right, rtol=1e-9, atol=1e-9)
    return sol


@pytest.mark.parametrize("method", STAGED)
def test_every_method_of_a_table(method, backend, monkeypatch):
    if backend != "inductor":
        without_code("eager", monkeypatch)  # one half of the compiler less, which takes most of the time
    assert_same(method=method, **({"rtol": 1e-4} if METHODS[method].adaptive else {"n_steps": 20}))


OPTIONS = {
    "grid": {"method": "rk4", "grid": [0.0, 0.3, 2.0], "t": torch.tensor([0.0, 1.0, 2.0], dtype=DOUBLE)},
    "direct": {"gradient": "direct"},
    "states alone": {"gradient": ACA(checkpoints="all")},
    "no checkpoints": {"gradient": ACA(checkpoints="none")},
    "substeps": {"gradient": ACA(substeps=2)},
    "dense": {"dense": True, "t": torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)},
    "events": {
        "events": aca.Event(lambda t, y, mu: y[..., 0] - 1.2),
        "t": torch.tensor([0.0, 2.0], dtype=DOUBLE),
    },
    "tolerances": {"rtol": torch.tensor([[1e-4], [1e-6], [1e-8], [1e-5]], dtype=DOUBLE)},
    "max norm": {"norm": "max"},
    "budget": {"max_steps": 12, "on_failure": "status"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options):
    assert_same(**options)


def test_derivatives_by_times():
    t = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0], [0.0, 0.1, 0.2], [0.2, 0.7, 3.0]], dtype=DOUBLE)
    assert_same(t=t.T.contiguous().T.requires_grad_())


def test_derivatives_by_times_alone():
    t = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.0, 0.1], [0.2, 0.7]], dtype=DOUBLE).requires_grad_()
    grads = []
    for mode in ("steps", False):
        sol = solve(van_der_pol, Y0, t, batch=1, rows=(MU,), compile=mode)
        grads += torch.autograd.grad(sol.ys.square().sum(), t)
    assert grads[0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_graphs_are_made_once(monkeypatch):
    """Also where samples are done earlier than others, and for other values of all kinds."""
    made, build = [], graphs._graph
    monkeypatch.setattr(graphs, "_graph", lambda *args: made.append(args) or build(*args))

    def own(t, y, mu):  # its graphs are new
        return van_der_pol(t, y, mu)

    def train(n, end, **options):
        y0, mu = (torch.cat([x, x])[:n].clone().requires_grad_() for x in (Y0, MU))
        t = torch.linspace(end / 5, end, n, dtype=DOUBLE)
        sol = solve(own, y0, torch.stack([0 * t, t], 1), batch=1, rows=(mu,), compile="steps", **options)
        sol.ys.sum().backward()
        return sol

    train(4, 2.0)
    once = len(made)
    with torch._dynamo.config.patch(error_on_recompile=True):
        sol = train(4, 3.0, rtol=1e-4)
    assert len(made) == once > 0
    assert sol.stats.samples.accepted.min() < sol.stats.samples.accepted.max()


def test_an_f_without_a_graph_warns_once():
    def f(t, y, mu):
        return van_der_pol(t, y, mu) if y.sum() < 1e9 else y

    with pytest.warns(UserWarning, match="compile='steps': .*cannot be traced.*runs without graphs") as seen:
        sol = solve(f, Y0, OWN_TIMES, batch=1, rows=(MU,), compile="steps")
    assert sum("compile=" in str(one.message) for one in seen) == 1
    torch.testing.assert_close(
        sol.ys, solve(f, Y0, OWN_TIMES, batch=1, rows=(MU,)).ys, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jump_ts": [0.3]}, "f that jump are not compiled step by step"),
        ({"method": "reversible_heun"}, "explicit Runge-Kutta methods"),
        ({"gradient": ACA(stagewise=True)}, "stagewise=True replays stages"),
        ({"compile": "cuda-graphs"}, "is for a GPU"),
        ({"compile": "loops"}, "with batch=1 use compile='native'.*or compile='steps'"),
        ({"compile": "quick"}, "compile is .* got 'quick'"),
    ],
)
def test_what_has_no_graphs(options, message):
    with pytest.raises(ValueError, match=message):
        solve(van_der_pol, Y0, [0.0, 1.0], batch=1, rows=(MU,), **{"compile": "steps", **options})


def test_explain():
    options = {"batch": 1, "rows": (MU,), "compile": "steps"}
    assert aca.explain(van_der_pol, Y0, [0.0, 1.0], **options).executor == "steps"
    with pytest.raises(ValueError, match="f that jump"):
        aca.explain(van_der_pol, Y0, [0.0, 1.0], jump_ts=[0.5], **options)
