"""Rows natively: samples of a batch with steps of their own equal those of the eager loops, and solves of their own."""

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchaca as aca
from torchaca import ACA, METHODS, SolverError, solve
from torchaca.native import build, driver
from torchaca.native.rows import block, passes, plan

DOUBLE = torch.float64
MU = torch.tensor([0.5, 1.0, 2.0, 5.0], dtype=DOUBLE)
Y0 = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.5, 0.0], [2.0, -1.0]], dtype=DOUBLE)
T = torch.tensor([0.0, 0.7, 0.7, 2.0], dtype=DOUBLE)
RAGGED = [[0.0, 0.1, 0.1, 0.2, 2.0], [1.0, 0.5], [0.5], [0.0, 3.0, 3.0]]
TABLES = [name for name, method in METHODS.items() if not hasattr(method, "resume")]
OPTIONS = {
    "shared": {},
    "ragged": {"t": RAGGED},
    "max norm": {"norm": "max"},
    "own tolerances": {"rtol": torch.tensor([[1e-4], [1e-6], [1e-8], [1e-5]], dtype=DOUBLE)},
    "tolerances of entries": {"atol": torch.tensor([1e-3, 1e-8], dtype=DOUBLE)},
    "first step": {"dt0": 0.3, "dt_max": 0.4},
    "a grid": {"method": "rk4", "grid": [2 * (i / 50) ** 1.2 for i in range(51)]},
    "controller": {"control": aca.Adaptive(rtol=1e-5, pid=aca.PI_CONTROL)}
    if hasattr(aca, "PI_CONTROL")
    else {},
}


def van_der_pol(t, y, mu):
    x, v = y[..., 0], y[..., 1]
    return torch.stack([v, mu * (1 - x * x) * v - x + torch.cos(t[..., 0])], -1)


def results(
    mode, f: Any = van_der_pol, y0=Y0, rows=(MU,), t: Any = T, wrt=(), at: Any = slice(None), **options
):
    y, *own = (x.clone().requires_grad_() for x in (y0, *rows))
    sol = solve(f, y, t, batch=1, rows=tuple(own), compile=mode, **options)
    assert sol.stats.executor == (mode or "eager")
    grads = torch.autograd.grad(sol.ys[:, at].square().sum(), [y, *own, *wrt])
    return sol, grads


def steps_of(sol):
    """How many each sample has accepted, and how many trials were rejected."""
    counts: Any = sol.stats.samples
    return counts.accepted, counts.rejected


def assert_same(near=1e-9, **options):
    (eager, right), (native, own) = (results(mode, **options) for mode in (False, "native"))
    torch.testing.assert_close(native.ys, eager.ys, rtol=near, atol=near)
    assert (native.mask == eager.mask).all()
    assert native.status == eager.status
    assert all(map(torch.equal, steps_of(native), steps_of(eager)))
    for mine, its in zip(own, right, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e3 * near, atol=1e3 * near)
    return native


@pytest.mark.parametrize("method", TABLES)
def test_every_method(method):
    adaptive = METHODS[method].adaptive
    assert_same(method=method, t=RAGGED, **({"rtol": 1e-4} if adaptive else {"n_steps": 60}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options):
    assert_same(**options)


@pytest.mark.parametrize("steps", [{"n_steps": 40}, {"dt": 0.07}], ids=str)
@pytest.mark.parametrize("t", [T, RAGGED], ids=["shared", "ragged"])
def test_fixed_steps(steps, t):
    assert_same(method="rk4", t=t, **steps)


@pytest.mark.parametrize("method", [name for name in TABLES if METHODS[name].adaptive])
def test_jumps_of_f(method, monkeypatch):
    monkeypatch.setattr(block, "FIRST_CHUNK", 2000)

    def kicked(t, y, mu):
        column = mu[:, None]
        return torch.where(t >= 0.6, -column * y, column + 0.1 * y) + torch.where(t >= 1.5, 2.0, 0.0)

    t = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.7, 0.1], [0.6, 1.5, 1.7], [0.2, 0.3, 0.6]], dtype=DOUBLE)
    assert_same(f=kicked, t=t, method=method, jump_ts=[0.6, 1.5], rtol=1e-4)


@pytest.mark.parametrize("gradient", ["aca", "direct", ACA("all")], ids=str)
def test_chunks_of_few_steps(gradient, monkeypatch):
    monkeypatch.setattr(block, "FIRST_CHUNK", 100)
    monkeypatch.setattr(block, "CHUNK", 100)
    assert_same(t=RAGGED, gradient=gradient, rtol=1e-8)
    assert_same(gradient=gradient, rtol=1e-8)


def test_stages_beyond_a_budget_are_made_again(monkeypatch):
    monkeypatch.setattr("torchaca.native.rows.executor.BUDGET", 1000)
    monkeypatch.setattr(block, "FIRST_CHUNK", 2000)
    monkeypatch.setattr(block, "CHUNK", 2000)
    native = assert_same(f=Net(), rtol=1e-8)
    assert native.stats.nfe_backward > 0


def test_threads(monkeypatch):
    monkeypatch.setattr(passes, "FEWEST_ROWS", 1)
    before = torch.get_num_threads()
    weight = torch.tensor([[0.3, -1.0], [1.0, -0.2]], dtype=DOUBLE, requires_grad=True)

    def f(t, y, mu):
        return y @ weight.T * mu[:, None] - y**3 + torch.sin(t)

    torch.set_num_threads(3)
    try:
        assert_same(f=f, wrt=(weight,), t=RAGGED)
    finally:
        torch.set_num_threads(before)


def test_a_module_and_a_nested_state():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def f(t, state, rate):
        out = net(torch.cat([state["a"], state["b"], rate], -1))
        return {"a": out[..., :2], "b": out[..., 2:] + torch.sin(t)}

    start = torch.randn(5, 3, dtype=DOUBLE)
    rate, t = torch.randn(5, 1, dtype=DOUBLE), [0.0, 0.5, 1.0]
    found = []
    for mode in (False, "native"):
        y, own = start.clone().requires_grad_(), rate.clone().requires_grad_()
        sol = solve(f, {"a": y[:, :2], "b": y[:, 2:]}, t, batch=1, rows=(own,), compile=mode)
        loss = sol.ys["a"].square().sum() + sol.ys["b"].sum()
        found.append([sol.ys["a"], sol.ys["b"], *torch.autograd.grad(loss, [y, own, *net.parameters()])])
        assert sol.stats.executor == (mode or "eager")
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-9)


def test_each_is_its_own_solve_beside_any_other():
    """63 easy samples do not notice a hard one, and nobody the number of samples."""
    mu = torch.cat([torch.linspace(0.1, 1, 63, dtype=DOUBLE), torch.tensor([50.0], dtype=DOUBLE)])
    y0 = torch.tensor([2.0, 0.0], dtype=DOUBLE).expand(64, 2)
    options = {"t": [0.0, 1.0, 5.0], "rtol": 1e-6, "atol": 1e-8}
    with_it, grads = results("native", y0=y0, rows=(mu,), **options)
    without, own = results("native", y0=y0[:63], rows=(mu[:63],), **options)
    assert torch.equal(with_it.ys[:, :63], without.ys)
    assert torch.equal(steps_of(with_it)[0][:63], steps_of(without)[0])
    assert all(torch.equal(g[:63], h) for g, h in zip(grads, own, strict=True))
    assert steps_of(with_it)[0][63] > 3 * steps_of(without)[0].max()


def test_samples_at_rest_are_bounded():
    def f(t, y, depth):
        pulse = torch.exp(-(((t - 30) / 0.5) ** 2))
        return -y + depth[:, None] * pulse

    depth = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=DOUBLE)
    y0 = torch.zeros(4, 3, dtype=DOUBLE)
    sol = assert_same(f=f, y0=y0, rows=(depth,), t=[0.0, 20.0, 60.0], rtol=1e-6, atol=1e-9)
    ignoring, _ = results(
        "native", f=f, y0=y0, rows=(depth,), t=[0.0, 20.0, 60.0], rtol=1e-6, atol=1e-9, at_rest="ignore"
    )
    assert (steps_of(sol)[0] > steps_of(ignoring)[0]).all()


def test_samples_that_fail_alone():
    def f(t, y, power):
        return y**2 * power[:, None]

    y0 = torch.tensor([[0.1], [1.0], [0.2]], dtype=DOUBLE)
    options = {"f": f, "y0": y0, "rows": (torch.ones(3, dtype=DOUBLE),), "t": [0.0, 0.5, 2.0]}
    (eager, right), (sol, own) = (
        results(mode, **options, on_failure="status", at=[0, 2]) for mode in (False, "native")
    )
    torch.testing.assert_close(sol.ys[:, [0, 2]], eager.ys[:, [0, 2]])
    torch.testing.assert_close(own, right)
    assert (sol.mask == eager.mask).all()
    assert sol.status == ("success", "blow-up", "success")
    with pytest.raises(SolverError, match=r"sample 1 stopped at t = (1|0.999)"):
        results("native", **options)
    blank = solve(f, y0, options["t"], batch=1, rows=options["rows"], on_failure="nan", compile="native")
    assert blank.ys[-1].isnan()[:, 0].tolist() == [False, True, False]


def test_a_start_that_is_not_finite():
    y0 = Y0.clone()
    y0[1, 0] = math.nan
    sol = assert_same_states(y0)
    assert sol.status[1] == "y0"


def assert_same_states(y0):
    eager, native = (
        solve(van_der_pol, y0, T, batch=1, rows=(MU,), compile=mode, on_failure="status")
        for mode in (False, "native")
    )
    torch.testing.assert_close(native.ys, eager.ys, equal_nan=True)
    assert native.status == eager.status
    return native


def test_float32():
    y0, mu = Y0.float(), MU.float()
    (eager, right), (native, own) = (
        results(mode, y0=y0, rows=(mu,), rtol=1e-4) for mode in (False, "native")
    )
    torch.testing.assert_close(native.ys, eager.ys, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own, right, rtol=1e-2, atol=1e-3)


def test_nothing_is_compiled_anew(monkeypatch):
    def f(t, y, mu):
        return torch.sin(y) * mu[:, None] - y

    results("native", f=f)
    made = []
    monkeypatch.setattr(build.Build, "_make", lambda *args: made.append(args))
    results("native", f=f, t=[0.0, 3.0], rtol=1e-9)
    results("native", f=f, y0=Y0[:3], rows=(MU[:3],), t=RAGGED[:3], n_steps=3, method="rk4")
    assert not made


CAPTURED = torch.linspace(0.5, 1.0, 4, dtype=DOUBLE)
UNFIT = {
    "mixes samples": lambda t, y, mu: y - y.mean(0),
    "reads rows outside of rows=": lambda t, y, mu: CAPTURED[: len(y), None] * y,
    "reads all rows": lambda t, y, mu: CAPTURED[:, None] * y,
}


@pytest.mark.parametrize("f", UNFIT.values(), ids=UNFIT)
def test_an_f_that_is_not_of_one_sample_runs_in_the_eager_loop(f):
    options = {"batch": 1, "rows": (MU,), "check_rows": False}
    with pytest.warns(UserWarning, match="this batch runs in the eager loop"):
        sol = solve(f, Y0, T, compile=True, **options)
    assert sol.stats.executor == "eager"
    assert sol.stats.passed_over == aca.explain(f, Y0, T, compile=True, **options).passed_over
    assert "native" in sol.stats.passed_over
    torch.testing.assert_close(sol.ys, solve(f, Y0, T, **options).ys)
    alike = aca.explain(f, Y0[:1].expand(4, 2), T, compile=True, **options)
    assert alike.executor == "eager"


MADE_AGAIN = {
    "dense output": {"dense": True},
    "states at two steps": {"gradient": ACA(checkpoints=2)},
    "a memory budget": {"gradient": ACA(memory_budget=2000)},
    "substeps": {"gradient": ACA(substeps=2)},
    "a gradient that is refined": {"gradient": ACA(grad_rtol=1e-3), "t": torch.tensor([0.0, 2.0])},
    "derivatives by times": {
        "t": torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0], [0.0, 0.1, 0.2], [0.2, 0.7, 3.0]])
    },
}
"""What takes the steps that are found in C, and makes them in Python."""


@pytest.mark.parametrize("options", MADE_AGAIN.values(), ids=MADE_AGAIN)
def test_steps_that_are_found_in_c_and_made_again(options):
    options, own = dict(options), ()
    if "t" in options and options["t"].ndim > 1:
        options["t"] = options["t"].double().requires_grad_()
        own = (options["t"],)
    sol = assert_same(wrt=own, **options)
    assert sol.stats.stepwise.startswith("the steps of samples are found in C, and made again in Python for ")
    t = options.pop("t", T)
    told = aca.explain(van_der_pol, Y0, t, batch=1, rows=(MU,), **options)
    assert told.executor == "native"
    assert told.stepwise == sol.stats.stepwise
    assert told.stepwise in str(told)
    if sol.dense is not None:
        at = torch.full((4,), 0.3, dtype=DOUBLE)
        eager = solve(van_der_pol, Y0, t, batch=1, rows=(MU,), **options)
        torch.testing.assert_close(sol.dense(at), eager.dense(at), rtol=1e-9, atol=1e-9)


def test_samples_that_fail_where_steps_are_made_again():
    """At the places, and with the kinds, of the loop in Python."""
    options = {"batch": 1, "rows": (MU,), "max_steps": 14, "on_failure": "status", "dense": True}
    native, eager = (solve(van_der_pol, Y0, T, compile=mode, **options) for mode in ("native", False))
    assert "max-steps" in native.status
    assert native.status == eager.status
    assert torch.equal(native.mask, eager.mask)
    torch.testing.assert_close(native.ys, eager.ys)
    with pytest.raises(SolverError, match="stopped at t"):
        solve(van_der_pol, Y0, T, compile="native", **{**options, "on_failure": "raise"})


def test_times_alone_have_derivatives():
    t = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.0, 0.1], [0.2, 0.7]], dtype=DOUBLE).requires_grad_()
    grads = []
    for mode in ("native", False):
        sol = solve(van_der_pol, Y0, t, batch=1, rows=(MU,), compile=mode)
        grads += torch.autograd.grad(sol.ys.square().sum(), t)
    assert grads[0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_nothing_is_made_again_for_nobody():
    sol = solve(van_der_pol, Y0, T, batch=1, rows=(MU,), compile="native", gradient=ACA(checkpoints=2))
    assert not sol.stats.stepwise


def test_refusals():
    options = {"batch": 1, "rows": (MU,)}
    with pytest.raises(ValueError, match="with steps that are known beforehand, take the loop in Python"):
        solve(van_der_pol, Y0, T, compile="native", method="rk4", n_steps=3, dense=True, **options)
    with pytest.raises(ValueError, match="which has those of each sample"):
        solve(van_der_pol, Y0, T, compile="loops", **options)
    with pytest.raises(NotImplementedError, match="leave out batch=1"):
        solve(van_der_pol, Y0, T, compile=True, steps="joint", **options)
    y0 = Y0.clone().requires_grad_()
    ys = solve(van_der_pol, y0, T, compile="native", **options).ys
    (grad,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of a native solve"):
        grad.sum().backward()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_heard(threads, monkeypatch):
    """Between two slices of time, by all threads."""
    monkeypatch.setattr(passes, "FEWEST_ROWS", 1)
    monkeypatch.setattr(block, "SLICE", 1e-3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    timer, chunk = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)), block.Forward._chunk
    once = iter([timer.start])

    def started(*args):
        next(once, int)()
        return chunk(*args)

    monkeypatch.setattr(block.Forward, "_chunk", started)
    try:
        with pytest.raises(KeyboardInterrupt):
            solve(van_der_pol, Y0, [0.0, 1e9], batch=1, rows=(MU,), compile="native", max_steps=10**9)
    finally:
        timer.cancel()
        torch.set_num_threads(before)


class Net(nn.Module):
    """An f whose products are the library's."""

    def __init__(self, n=2, hidden=64):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(n, hidden).double(), nn.Linear(hidden, n).double()

    def forward(self, t, y, mu):
        return self.outer(torch.tanh(self.inner(y))) - mu[:, None] * y + torch.sin(t)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dopri8", "rk4"])
def test_products_keep_their_stages(method, monkeypatch):
    """Also those that lanes whose outputs are elsewhere do not have."""
    monkeypatch.setattr(block, "FIRST_CHUNK", 2000)
    options = {"rtol": 1e-6} if METHODS[method].adaptive else {"n_steps": 40}
    f = Net()
    native = assert_same(f=f, t=RAGGED, wrt=tuple(f.parameters()), method=method, **options)
    assert native.stats.nfe_backward == 0


def test_a_large_state_has_a_lane_of_its_own():
    n, f = 4000, Net(2)
    y0 = torch.randn(3, n, 2, dtype=DOUBLE)

    def wide(t, y, mu):
        return f.outer(torch.tanh(f.inner(y))) - mu * y

    mu = torch.rand(3, 1, 1, dtype=DOUBLE)
    assert_same(f=wide, y0=y0, rows=(mu,), t=[0.0, 0.3], rtol=1e-4)


def test_python_and_c_agree_where_the_stages_of_lanes_start():
    text = (Path(driver.__file__).parent / "rows.c").read_text()
    names = text.split("enum {")[1].split("}")[0].split(",")
    assert names[plan.FIRST_STAGE].strip() == "FIRST_STAGE"


def test_what_a_sample_reads_may_have_any_shape():
    """Tables, whose samples stay first in memory, and views that join the samples' dimension to another."""
    torch.manual_seed(2)
    table, wide = torch.randn(4, 5, 3, dtype=DOUBLE), torch.randn(4, 6, dtype=DOUBLE)

    def f(t, y, table, wide):
        place = (2 * t[:, 0]).floor().long().clamp(0, 4)
        own = table.gather(1, place[:, None, None].expand(-1, 1, 3))[:, 0]
        return (
            own[:, :2] * torch.cos(t)
            - y.view(-1).tanh().view(-1, 2)
            + wide.view(-1, 2).sin().view(-1, 3, 2).sum(1)
        )

    assert_same(f=f, rows=(table, wide), t=RAGGED, n_steps=40, method="rk4")


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("f", [van_der_pol, Net()], ids=["cheap", "products"])
def test_no_matter_in_which_lane(f, dtype):
    torch.manual_seed(1)
    f = f.to(dtype) if isinstance(f, nn.Module) else f
    y0, mu, order = torch.randn(37, 2, dtype=dtype), torch.rand(37, dtype=dtype) * 5, torch.randperm(37)
    options = {"t": [0.0, 1.0, 2.0], "rtol": 1e-4, "atol": 1e-4}
    one, grads = results("native", f=f, y0=y0, rows=(mu,), **options)
    other, own = results("native", f=f, y0=y0[order], rows=(mu[order],), **options)
    alone, its = results("native", f=f, y0=y0[5:6], rows=(mu[5:6],), **options)
    assert torch.equal(one.ys[:, order], other.ys)
    assert torch.equal(one.ys[:, 5:6], alone.ys)
    assert all(torch.equal(g[order], h) for g, h in zip(grads, own, strict=True))
    assert all(torch.equal(g[5:6], h) for g, h in zip(grads, its, strict=True))
