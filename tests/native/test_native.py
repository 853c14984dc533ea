"""Native solves beside the eager loop: the same decisions, outputs, gradients and costs."""

import weakref

import pytest
import torch
from covering import pairs
from resting import prey
from torch import nn

from torchaca import ACA, METHODS, solve
from torchaca.control import PI_CONTROL, PID_CONTROL, Adaptive, FixedSteps
from torchaca.errors import GradientWarning
from torchaca.gradients import look
from torchaca.native import executor, run
from torchaca.native.tables import has_table

DOUBLE = torch.float64
NATIVE = [name for name, method in METHODS.items() if has_table(method)]
ADAPTIVE = [name for name in NATIVE if METHODS[name].adaptive]


class Net(nn.Module):
    """Depends on t, a buffer and two layers."""

    def __init__(self, dtype=DOUBLE):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        self.register_buffer("gain", torch.tensor(0.7, dtype=dtype))

    def forward(self, t, y):
        return self.gain * self.net(y) * torch.cos(t) - 0.2 * y


F = {dtype: Net(dtype) for dtype in (torch.float32, DOUBLE)}
STEPS = ACA(grad_rtol=0.1)  # goes from step to step itself
TIMES = {
    "ends": [0.0, 1.5],
    "outputs": [0.0, 0.0, 0.3, 0.31, 1.0, 1.5, 1.5],
    "backwards": [1.5, 1.0, 0.2, 0.0],
}


def solved(mode, times, dtype=DOUBLE, f=None, y0=None, wrt=None, **options):
    f = f or F[dtype]
    y0 = torch.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2) if y0 is None else y0
    y = torch.utils._pytree.tree_map(lambda x: x.detach().clone().requires_grad_(), y0)
    sol = solve(f, y, times, compile=mode, **options)
    leaves = [*torch.utils._pytree.tree_leaves(y), *(f.parameters() if wrt is None else wrt)]
    loss = sum(x.square().sum() for x in torch.utils._pytree.tree_leaves(sol.ys))
    return sol, torch.autograd.grad(loss, leaves, allow_unused=True)


def assert_same(times, tolerance=1e-12, **options):
    (want, grads), (sol, own) = (solved(mode, times, **options) for mode in (False, "native"))
    near = 1e-6 if want.ys.dtype == DOUBLE else 1e-3
    torch.testing.assert_close(
        *(torch.tensor(x.steps, dtype=DOUBLE) for x in (sol, want)), rtol=near, atol=near
    )
    torch.testing.assert_close(sol.ys, want.ys, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(own, grads, rtol=10 * tolerance, atol=10 * tolerance)
    assert sol.stats == want.stats


@pytest.fixture(autouse=True)
def no_fallback(recwarn):
    yield
    assert [str(w.message) for w in recwarn if "compile=" in str(w.message)] == []


@pytest.mark.parametrize(("method", "times"), pairs(ADAPTIVE, TIMES))
def test_adaptive_steps(method, times):
    tolerance = 10.0 ** -min(METHODS[method].order, 5)  # an error far above rounding
    for gradient in (ACA(checkpoints="all"), "direct"):
        assert_same(TIMES[times], method=method, gradient=gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("method", "times"), pairs(NATIVE, TIMES))
def test_fixed_steps(method, times):
    for gradient in (ACA(checkpoints="all"), "direct"):
        assert_same(TIMES[times], method=method, gradient=gradient, n_steps=7)


@pytest.mark.parametrize("control", [PI_CONTROL, PID_CONTROL], ids=["PI", "PID"])
def test_controllers(control):
    assert_same(TIMES["outputs"], control=Adaptive(rtol=1e-7, atol=1e-7, pid=control))


@pytest.mark.parametrize("options", [{"norm": "max"}, {"rtol": torch.tensor([1e-4, 1e-6])}, {"dt_max": 0.05}])
def test_measures_of_the_error(options):
    assert_same(TIMES["ends"], **options)


def test_single_precision():
    assert_same(TIMES["outputs"], tolerance=1e-5, dtype=torch.float32, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", [ACA(checkpoints="all"), "direct"], ids=["all", "direct"])
@pytest.mark.parametrize("method", ["dopri5", "heun3", "dopri8", "bosh3"])
@pytest.mark.parametrize("steps", ["adaptive", "n_steps", "grid", "outputs"])
def test_times_are_differentiated(method, steps, gradient):
    if steps == "adaptive" and not METHODS[method].adaptive:
        pytest.skip("no error estimate")
    grid = torch.tensor([0.0, 0.2, 0.5, 1.2, 1.5], dtype=DOUBLE, requires_grad=True)
    times = torch.tensor(TIMES["outputs"], dtype=DOUBLE, requires_grad=True)
    options = {"adaptive": {"rtol": 1e-5}, "n_steps": {"n_steps": 4}, "grid": {"grid": grid}, "outputs": {}}[
        steps
    ]
    if steps == "outputs":
        options = {"control": FixedSteps()}
    wrt = [times, *([grid] if steps == "grid" else []), *F[DOUBLE].parameters()]
    assert_same(times, wrt=wrt, method=method, gradient=gradient, **options)


def kicked(t, y):
    """Jumps in time, twice."""
    return F[DOUBLE](t, y) + torch.where(t >= 0.5, 1.0, -1.0) - torch.where(t > 1.1, 3.0, 0.0)


@pytest.mark.parametrize("gradient", [ACA(checkpoints="all"), "direct"], ids=["all", "direct"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "fehlberg2"])
@pytest.mark.parametrize("times", TIMES)
def test_jumps(method, times, gradient):
    options = {"jump_ts": [0.5, 1.1, 0.0], "wrt": list(F[DOUBLE].parameters()), "rtol": 1e-5}
    assert_same(TIMES[times], f=kicked, method=method, gradient=gradient, **options)
    moving = torch.tensor(TIMES[times], dtype=DOUBLE, requires_grad=True)
    options["wrt"] = [moving, *options["wrt"]]
    assert_same(moving, f=kicked, method=method, gradient=gradient, **options)


@pytest.mark.parametrize("gradient", [ACA(checkpoints="all"), "direct"], ids=["all", "direct"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
@pytest.mark.parametrize("options", [{"n_steps": 5}, {"rtol": 1e-5}, {"jump_ts": [0.7]}])
def test_dense_output(method, gradient, options):
    found = []
    for mode in (False, "native"):
        y0 = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
        sol = solve(
            F[DOUBLE],
            y0,
            [0.0, 0.4, 1.0],
            dense=True,
            method=method,
            gradient=gradient,
            compile=mode,
            **options,
        )
        values = sol(torch.tensor([0.0, 0.1, 0.55, 1.0], dtype=DOUBLE))
        loss = values.square().sum() + sol.ys.sum()
        found += [(values, *torch.autograd.grad(loss, [y0, *F[DOUBLE].parameters()])), sol.stats]
    torch.testing.assert_close(found[2], found[0], rtol=1e-11, atol=1e-11)
    assert found[3] == found[1]


@pytest.mark.parametrize("norm", ["rms", "mixed"])
def test_nested_states_and_arguments(norm):
    k = torch.tensor([0.3, 0.7], dtype=DOUBLE, requires_grad=True)
    scale = {"a": [torch.tensor(1.1, dtype=DOUBLE, requires_grad=True)], "b": 3}

    def f(t, state, k, scale):
        y, z = state["y"], state["z"]
        return {"y": -k * y + z.sum(), "z": torch.sin(t) * z * scale["a"][0] - y.mean() ** scale["b"]}

    y0 = {"y": torch.ones(3, 2, dtype=DOUBLE), "z": torch.linspace(0, 1, 4, dtype=DOUBLE)}
    found = []
    for mode in (False, "native"):
        start = {name: x.clone().requires_grad_() for name, x in y0.items()}
        sol = solve(f, start, [0.0, 0.3, 1.0], args=(k, scale), compile=mode, norm=norm, gradient="direct")
        loss = sol.ys["y"].square().sum() + sol.ys["z"].sum()
        grads = torch.autograd.grad(loss, [*start.values(), k, scale["a"][0]])
        found.append(([*sol.ys.values(), *grads], sol.stats))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-11, atol=1e-11)
    assert found[1][1] == found[0][1]


@pytest.mark.parametrize(
    "options", [{}, {"gradient": ACA(checkpoints="all")}, {"batch": 1}, {"gradient": STEPS}]
)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_what_f_reads_may_be_in_another_dtype(dtype, options):
    """A weight and a rate, finer or coarser than the state, have the gradients of the eager loop."""
    other = DOUBLE if dtype == torch.float32 else torch.float32
    weight = torch.tensor([[0.3, -1.0], [1.0, 0.2]], dtype=other, requires_grad=True)
    rate = torch.tensor(0.5, dtype=other, requires_grad=True)

    def f(t, y):
        return y @ weight.to(y.dtype) - rate * y

    times, wrt = [0.0, 0.4, 1.0], [weight, rate]
    found = [solved(mode, times, dtype, f, wrt=wrt, rtol=1e-5, **options) for mode in (False, "native")]
    assert found[1][0].stats.executor == "native"
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-4)


def test_without_gradients():
    for times in TIMES.values():
        with torch.no_grad():
            want, sol = (
                solve(F[DOUBLE], torch.ones(3, 2, dtype=DOUBLE), times, compile=x) for x in (False, "native")
            )
        torch.testing.assert_close(sol.ys, want.ys, rtol=1e-12, atol=1e-12)
        assert sol.stats == want.stats


def test_stages_that_do_not_fit_the_budget_are_not_kept(monkeypatch):
    options = {"rtol": 1e-9, "atol": 1e-9, "method": "bosh3", "wrt": list(F[DOUBLE].parameters())}
    want, grads = solved("native", TIMES["outputs"], **options)
    assert want.stats.nfe_backward == 0
    monkeypatch.setattr(executor, "BUDGET", 1000)
    monkeypatch.setattr(run, "FIRST_CHUNK", 5000)
    sol, own = solved("native", TIMES["outputs"], **options)
    assert sol.stats.nfe_backward >= 3 * sol.stats.accepted
    torch.testing.assert_close(own, grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [1, 3, 7, "sqrt", "binomial"])
@pytest.mark.parametrize("times", TIMES)
def test_states_that_were_not_kept_are_made_again(times, kept, monkeypatch):
    monkeypatch.setattr(run, "FIRST_CHUNK", 300)
    monkeypatch.setattr(run, "CHUNK", 300)
    options = {"method": "bosh3", "rtol": 1e-7, "atol": 1e-7, "gradient": ACA(checkpoints=kept)}
    assert_same(TIMES[times], **options, jump_ts=[0.6])
    assert_same(TIMES[times], method="dopri8", n_steps=9, gradient=ACA(checkpoints=kept))


@pytest.mark.parametrize("room", [300, 2**19], ids=["chunks", "one chunk"])
@pytest.mark.parametrize("kept", ["all", "none", 3, "direct"])
@pytest.mark.parametrize("times", [[0.0, 10.0], [0.0, 3.3, 7.0, 10.0]], ids=["end", "inside"])
def test_the_warning_of_a_step_that_is_not_resolved(times, kept, room, monkeypatch):
    """In the same words, after the same evaluations, wherever in a chunk the suspect is."""
    monkeypatch.setattr(run, "FIRST_CHUNK", room)
    monkeypatch.setattr(run, "CHUNK", room)
    gradient = kept if kept == "direct" else ACA(checkpoints=kept)
    options = {"gradient": gradient, "at_rest": "ignore", "rtol": 1e-6, "atol": 1e-9}
    said, y0 = [], torch.ones(2, dtype=DOUBLE)
    for mode in (False, "native"):
        monkeypatch.setattr(look, "_TOLD", weakref.WeakKeyDictionary())
        with pytest.warns(GradientWarning) as caught:
            sol, (grad,) = solved(mode, times, f=prey, y0=y0, wrt=[], **options)
        said.append((str(caught[0].message), sol.stats, grad))
    (*eager, want), (*native, grad) = said
    assert native == eager
    torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-9)


def test_stats_say_who_solved_it():
    y0 = torch.ones(2, dtype=DOUBLE)
    assert solve(lambda t, y: -y, y0, [0.0, 1.0]).stats.executor == "eager"
    assert solve(lambda t, y: -y, y0, [0.0, 1.0], compile=True).stats.executor == "native"
    with pytest.raises(ValueError, match="gradient"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], compile=True, dense=True, gradient="adjoint")


@pytest.mark.parametrize("kept", ["all", "none", 2])
def test_backward_passes_may_be_repeated_and_others_are_refused(kept):
    y0 = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    ys = solve(F[DOUBLE], y0, [0.0, 0.3, 1.0], compile="native", gradient=ACA(checkpoints=kept)).ys
    first, second = (torch.autograd.grad(ys.sum(), y0, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(NotImplementedError, match="several cotangents at once"):
        torch.autograd.grad(
            ys, y0, torch.ones(4, *ys.shape, dtype=DOUBLE), is_grads_batched=True, retain_graph=True
        )
    (grad,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of a native solve"):
        grad.sum().backward()
