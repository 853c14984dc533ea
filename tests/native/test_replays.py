"""ACA's settings natively: sub-steps, an error that is controlled, a budget. The gradients are the eager loop's."""

import weakref

import pytest
import torch
from resting import prey
from torch import nn

from torchaca import ACA, METHODS, solve
from torchaca.gradients import look
from torchaca.native import run, substeps
from torchaca.native.tables import has_table

DOUBLE = torch.float64
NATIVE = [name for name, method in METHODS.items() if has_table(method)]
SETTINGS = {
    "substeps": ACA(substeps=3),
    "many substeps": ACA(substeps=11),
    "substeps from a few states": ACA(substeps=2, checkpoints=3),
    "grad_rtol": ACA(grad_rtol=1e-2),
    "grad_rtol from a few states": ACA(grad_rtol=3e-2, checkpoints="sqrt"),
    "a budget": ACA(memory_budget="20KB"),
    "stagewise": ACA(stagewise=True),
    "stagewise in a budget": ACA(stagewise=True, memory_budget="10KB"),
}
STEPS = {
    "adaptive": {"rtol": 1e-3, "atol": 1e-5},
    "coarse": {"rtol": 0.03, "atol": 0.03},
    "fixed": {"n_steps": 9},
    "jumps": {"rtol": 1e-3, "jump_ts": [0.5, 1.1]},
}
TIMES = [0.0, 0.0, 0.3, 0.31, 1.0, 1.5]


class Net(nn.Module):
    def __init__(self, dtype=DOUBLE):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        self.register_buffer("gain", torch.tensor(0.7, dtype=dtype))

    def forward(self, t, y):
        return self.gain * self.net(y) * torch.cos(3 * t) - 0.2 * y


def kicked(t, y):
    """Jumps in time, twice."""
    return F[DOUBLE](t, y) + torch.where(t >= 0.5, 1.0, -1.0) - torch.where(t > 1.1, 3.0, 0.0)


F = {dtype: Net(dtype) for dtype in (torch.float32, DOUBLE)}  # one of each: PyTorch traces every object anew


@pytest.fixture(autouse=True)
def no_fallback(recwarn):
    yield
    assert [str(w.message) for w in recwarn if "compile=" in str(w.message)] == []


def assert_same(gradient, f=None, times=TIMES, dense=False, at=(0.1, 0.55, 1.2), tolerance=1e-10, **options):
    f, weights, found = f or F[DOUBLE], [*F[DOUBLE].parameters()], []
    for mode in (False, "native"):
        y0 = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(3, 2).requires_grad_()
        ts = torch.tensor(times, dtype=DOUBLE, requires_grad=True)
        sol = solve(f, y0, ts, gradient=gradient, compile=mode, dense=dense, **options)
        loss = sol.ys.square().sum()
        if dense:
            loss = loss + sol(torch.tensor(at, dtype=DOUBLE)).sin().sum()
        grads = torch.autograd.grad(loss, [y0, ts, *weights])
        assert sol.stats.executor == (mode or "eager")
        found.append((sol, grads))
    (want, wanted), (sol, grads) = found
    torch.testing.assert_close(sol.ys, want.ys, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(grads, wanted, rtol=tolerance, atol=tolerance)
    return sol.stats, want.stats


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_are_those_of_the_eager_loop(setting, steps):
    own, want = assert_same(SETTINGS[setting], f=kicked if steps == "jumps" else F[DOUBLE], **STEPS[steps])
    assert (own.accepted, own.rejected, own.nfe) == (want.accepted, want.rejected, want.nfe)
    if own.gradient_error is not None:
        assert own.gradient_error == pytest.approx(want.gradient_error, rel=1e-4)
        assert own.nfe_backward == want.nfe_backward  # the same levels, the same sub-steps


@pytest.mark.parametrize("method", NATIVE)
@pytest.mark.parametrize("gradient", [ACA(substeps=2), ACA(grad_rtol=0.2)], ids=["substeps", "grad_rtol"])
def test_methods(gradient, method):
    steps = STEPS["coarse" if METHODS[method].adaptive else "fixed"]
    assert_same(gradient, method=method, **steps)


@pytest.mark.parametrize("setting", SETTINGS)
def test_dense_output(setting):
    for method in ("dopri5", "dopri8"):
        assert_same(SETTINGS[setting], method=method, dense=True, **STEPS["adaptive"])


def test_outputs_beside_values_of_the_dense_output_in_other_steps():
    for gradient in ("direct", ACA(checkpoints="all"), ACA(checkpoints=3)):
        assert_same(gradient, dense=True, at=[1.2], rtol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_outputs_at_the_ends_of_steps_move_with_them(setting):
    assert_same(SETTINGS[setting], n_steps=15)
    assert_same(SETTINGS[setting], times=[1.5, 1.0, 0.2, 0.0], rtol=1e-4)


def test_sub_steps_whose_stages_are_many_are_not_kept(monkeypatch):
    want, _ = assert_same(ACA(substeps=3), rtol=1e-3)
    monkeypatch.setattr(substeps, "CHUNK", 10)
    own, _ = assert_same(ACA(substeps=3), rtol=1e-3)
    assert own.nfe_backward > want.nfe_backward


def test_states_beyond_a_budget_are_made_again(monkeypatch):
    monkeypatch.setattr(run, "FIRST_CHUNK", 300)
    f, y0 = F[DOUBLE], torch.ones(50, 2, dtype=DOUBLE, requires_grad=True)
    counts = []
    for gradient in (ACA(checkpoints="all"), ACA(memory_budget="300KB"), ACA(memory_budget="40KB")):
        sol = solve(f, y0, [0.0, 3.0], gradient=gradient, compile="native", rtol=1e-8, atol=1e-8)
        counts.append((torch.autograd.grad(sol.ys[-1].sum(), y0)[0], sol.stats.nfe_backward))
    grads, evaluations = zip(*counts, strict=True)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-12, atol=1e-12)
    assert evaluations[0] == evaluations[1] < evaluations[2]
    with pytest.raises(ValueError, match="less than the graph of one step"):
        solve(f, y0, [0.0, 3.0], gradient=ACA(memory_budget="1KB"), compile="native")


def test_steps_that_are_too_long_at_rest_are_repaired():
    y0, found = torch.ones(2, dtype=DOUBLE), []
    for mode in (False, "native"):
        y = y0.clone().requires_grad_()
        options = {"at_rest": "ignore", "rtol": 1e-6, "atol": 1e-9, "gradient": ACA(grad_rtol=1e-3)}
        sol = solve(prey, y, [0.0, 3.3, 10.0], compile=mode, **options)
        found.append((torch.autograd.grad(sol.ys.square().sum(), y)[0], sol.stats))
    (want, eager), (own, native) = found
    torch.testing.assert_close(own, want, rtol=1e-9, atol=1e-9)
    assert (native.nfe, native.nfe_backward, native.accepted) == (
        eager.nfe,
        eager.nfe_backward,
        eager.accepted,
    )


def test_no_step_in_parts_is_looked_at(monkeypatch):
    monkeypatch.setattr(look, "_TOLD", weakref.WeakKeyDictionary())
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    options = {"at_rest": "ignore", "rtol": 1e-6, "atol": 1e-9, "gradient": ACA(substeps=40)}
    solve(prey, y0, [0.0, 10.0], compile="native", **options).ys.sum().backward()


@pytest.mark.parametrize("setting", ["substeps", "grad_rtol"])
def test_second_derivatives_are_refused(setting):
    y0 = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    ys = solve(F[DOUBLE], y0, [0.0, 1.0], gradient=SETTINGS[setting], compile="native").ys
    (grad,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of a native solve"):
        grad.sum().backward()


def test_single_precision():
    f, found = F[torch.float32], []
    for mode in (False, "native"):
        y0 = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
        for gradient in (ACA(substeps=2), ACA(grad_rtol=0.1)):
            ys = solve(f, y0, [0.0, 0.4, 1.0], gradient=gradient, compile=mode).ys
            found.append(torch.autograd.grad(ys.square().sum(), [y0, *f.parameters()]))
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-4, atol=1e-5)
