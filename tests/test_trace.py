"""`debug=True`: where the gradient broke, by step, time and name; its norms; nothing of it when it is off."""

import copy
import math

import pytest
import torch
from gradient_cases import DOUBLE, Counter
from torch import nn

import torchaca as aca
from torchaca import ACA, NeuralODE, SolverError, solve
from torchaca.gradients import Facts

WALKING = {
    "aca": "aca",
    "sqrt": ACA(checkpoints="sqrt"),
    "stagewise": ACA(stagewise=True),
    "none": ACA(checkpoints="none"),
    "direct": "direct",
}


@pytest.fixture(params=WALKING.values(), ids=WALKING)
def gradient(request):
    return request.param


def net(n=2):
    return nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, n)).to(DOUBLE)


def stopped(loss):
    with pytest.raises(SolverError) as caught:
        loss.backward()
    error = caught.value
    assert (error.kind, error.backward) == ("gradient", True)
    return error, str(error)


# The norms.


@pytest.mark.parametrize("t", [[0.0, 1.0], [1.0, 0.0]], ids=["forwards", "backwards"])
def test_norms_are_those_of_the_cotangent(gradient, t):
    """y' = A y in n Euler steps: the cotangent of step i is (1 + h A^T)^(n - i) times the loss's."""
    a = torch.tensor([[0.5, 2.0], [-1.0, 0.1]], dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: a @ y,
        torch.ones(2, dtype=DOUBLE),
        t,
        gradient=gradient,
        method="euler",
        n_steps=4,
        debug=True,
    )
    assert (sol.trace.ts, sol.trace.norms, sol.trace.points) == ([], [], [])
    sol.ys[-1].sum().backward()
    h, lam, norms, shares = (t[1] - t[0]) / 4, torch.ones(2, dtype=DOUBLE), [], []
    with torch.no_grad():
        states = [torch.ones(2, dtype=DOUBLE)]
        for _ in range(4):
            states.append(states[-1] + h * a @ states[-1])
        for y in reversed(states[:-1]):
            norms.append(lam.norm().item())
            shares.append((h * torch.outer(lam, y)).norm().item())
            lam = lam + h * a.T @ lam
        norms.append(lam.norm().item())
    assert sol.trace.ts == pytest.approx([t[0] + i * h for i in range(5)])
    assert sol.trace.norms == pytest.approx(norms[::-1], rel=1e-12)
    assert [p.shares["a"] for p in sol.trace.points] == pytest.approx(shares, rel=1e-12)
    assert [p.step for p in sol.trace.points] == [3, 2, 1, 0]


def test_all_settings_see_the_same(gradient):
    f, y0 = net(), torch.randn(3, 2, dtype=DOUBLE)
    norms = {}
    for g in (gradient, "direct"):
        sol = solve(lambda t, y: f(y), y0, [0.0, 0.5, 1.0, 2.0], gradient=g, debug=True, n_steps=8)
        sol.ys.square().sum().backward()
        norms[g] = sol.trace.norms
        assert sol.trace.ts == pytest.approx(list(sol.steps))
        names = {"f.0.weight", "f.0.bias", "f.2.weight", "f.2.bias"}
        assert all(set(point.shares) == names for point in sol.trace.points)
    assert norms[gradient] == pytest.approx(norms["direct"], rel=1e-10)


@pytest.mark.parametrize("method", ["alf", "reversible_heun"])
def test_methods_that_hand_on_more_than_y(method):
    f, y0, seen = net(), torch.randn(3, 2, dtype=DOUBLE), {}
    call = {"method": method, "n_steps": 4, "debug": True}
    for g in ("aca", "mali", "direct", ACA(checkpoints="none")):
        sol = solve(lambda t, y: f(y), y0, [0.0, 1.0], gradient=g, **call)
        sol.ys[-1].square().sum().backward()
        seen[g] = sol.trace
    for trace in seen.values():
        assert trace.ts == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert trace.norms == pytest.approx(seen["aca"].norms, rel=1e-10)


def test_a_second_backward_pass_starts_anew(gradient):
    k = torch.ones((), dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: -k * y, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], gradient=gradient, n_steps=3, debug=True
    )
    sol.ys[-1].sum().backward(retain_graph=True)
    once = sol.trace.norms
    (2 * sol.ys[-1].sum()).backward()
    assert sol.trace.norms == pytest.approx([2 * norm for norm in once])
    assert len(sol.trace.points) == 3


# Where it broke.


class Masked(nn.Module):
    """From t = 0.5 on, a masked root whose derivative with respect to `inner.depth` is infinite times zero."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ParameterDict(
            {"depth": torch.zeros(2, dtype=DOUBLE), "rate": torch.ones(2, dtype=DOUBLE)}
        )

    def forward(self, t, y):
        root = self.inner["depth"].sqrt() * torch.cos(t)
        return -self.inner["rate"] * y + torch.where(t > 0.55, 0 * root, 0.0)


def test_a_gradient_that_becomes_nan_is_named(gradient):
    sol = solve(Masked(), torch.ones(2, dtype=DOUBLE), [0.0, 0.7], gradient=gradient, n_steps=7, debug=True)
    error, text = stopped(sol.ys[-1].sum())
    assert (
        "a gradient became nan or inf, that of y did not in step 7 of 7, t in [0.6, 0.7], in f.inner.depth"
        in text
    )
    assert "rate" not in text
    assert "try: " in text
    assert (error.t, error.dt) == (pytest.approx(0.7), pytest.approx(0.1))
    assert error.stats is sol.stats


def test_the_step_is_the_first_one_on_the_way_back(gradient):
    k = torch.ones((), dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return -k * y + (y - y.detach()).abs().sqrt() if abs(t - 0.35) < 0.1 else -k * y

    sol = solve(
        f, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], gradient=gradient, method="euler", n_steps=10, debug=True
    )
    _, text = stopped(sol.ys[-1].sum())
    assert "the cotangent of y became nan or inf in step 5 of 10, t in [0.4, 0.5]" in text
    assert "while the gradients of all tensors that f uses stayed finite" in text
    assert [point.step for point in sol.trace.points] == [9, 8, 7, 6, 5, 4]
    assert math.isfinite(sol.trace.points[-1].norm)


@pytest.mark.parametrize("output", [-1, 1], ids=["end", "inside"])
def test_a_loss_that_is_not_finite_is_told_from_the_solve(gradient, output):
    k = torch.ones((), dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: -k * y,
        torch.ones(2, dtype=DOUBLE),
        [0.0, 0.45, 1.0],
        gradient=gradient,
        n_steps=10,
        debug=True,
    )
    root = (sol.ys[output] - sol.ys[output].detach()).sqrt().sum()
    _, text = stopped(root)
    assert "the loss's own gradient with respect to the outputs is not finite" in text
    assert "look at the loss" in text


def test_many_tensors_are_counted():
    weights = [torch.zeros((), dtype=DOUBLE, requires_grad=True) for _ in range(5)]
    sol = solve(
        lambda t, y: y * sum(w.sqrt() for w in weights),
        torch.ones(1, dtype=DOUBLE),
        [0.0, 1.0],
        n_steps=2,
        debug=True,
    )
    _, text = stopped(sol.ys[-1].sum())
    assert ", in weights[0], weights[1], weights[2] and 2 more" in text


def test_without_debug_the_gradient_is_nan_and_nobody_says_so():
    model = Masked()
    sol = solve(model, torch.ones(2, dtype=DOUBLE), [0.0, 0.7], n_steps=7)
    sol.ys[-1].sum().backward()
    assert sol.trace is None
    assert model.inner["depth"].grad.isnan().all()


def test_an_explosion_is_a_warning(gradient):
    k = torch.full((), 20.0, dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return torch.where((t - 0.455).abs() < 0.0049, 1.5 * k, k) * y

    sol = solve(f, torch.ones(1, dtype=DOUBLE), [0.0, 0.5, 1.0], gradient=gradient, n_steps=100, debug=True)
    with pytest.warns(
        UserWarning,
        match=r"exploded: \|dL/dy\| grew .*e\+08-fold.* step 46 of 100, t in \[0.45, 0.46\] \(1.3-fold\); k got",
    ):
        sol.ys[-1].sum().backward()
    assert sol.trace.norms[0] > 1e8


def test_no_warning_where_the_outputs_add_up():
    k = torch.ones((), dtype=DOUBLE, requires_grad=True)
    sol = solve(lambda t, y: -k * y, torch.ones(1, dtype=DOUBLE), [0.0, 0.5, 1.0], n_steps=4, debug=True)
    (1e9 * sol.ys[1] + sol.ys[2]).sum().backward()
    assert max(sol.trace.norms) > 1e8


# What it leaves alone.


def test_the_gradient_is_the_same_and_f_is_undisturbed(gradient):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).to(DOUBLE)
    y0, results = torch.randn(4, 3, dtype=DOUBLE), []
    calls = []
    handle = model[0].weight.register_hook(calls.append)
    for debug in (False, True):
        own = copy.deepcopy(model.state_dict())
        torch.manual_seed(1)
        sol = solve(lambda t, y: model(y), y0, [0.0, 1.0], gradient=gradient, n_steps=3, debug=debug)
        grads = torch.autograd.grad(sol.ys[-1].square().sum(), list(model.parameters()))
        results.append((sol.stats.nfe, torch.get_rng_state(), *model.state_dict().values(), *grads))
        results[-1] = [x.clone() if isinstance(x, torch.Tensor) else x for x in results[-1]]
        model.load_state_dict(own)
    handle.remove()
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1:], results[1][1:]))
    assert len(calls) == 2


def test_random_steps_are_replayed_with_their_own_numbers(gradient):
    model, shares = First(net(), nn.Dropout(0.5)), []
    for g in (gradient, "aca"):
        torch.manual_seed(3)
        sol = solve(model, torch.ones(4, 2, dtype=DOUBLE), [0.0, 1.0], gradient=g, n_steps=4, debug=True)
        sol.ys[-1].square().sum().backward()
        shares.append([point.shares for point in sol.trace.points])
    for mine, theirs in zip(*shares):
        assert mine == pytest.approx(theirs, rel=1e-12)


def test_nothing_is_evaluated_for_it_when_it_is_off():
    evaluations = {}
    for debug in (False, True):
        counter = Counter(lambda t, y: -y)
        sol = solve(
            counter, torch.ones(1, requires_grad=True), [0.0, 1.0], gradient="direct", n_steps=3, debug=debug
        )
        sol.ys[-1].sum().backward()
        evaluations[debug] = counter.calls
        assert sol.stats.nfe_backward == counter.calls - sol.stats.nfe
    assert evaluations[False] < evaluations[True]


def test_the_module_keeps_the_trace():
    block = NeuralODE(First(net()), debug=True, n_steps=3)
    assert block.trace is None
    block(torch.randn(4, 2, dtype=DOUBLE)).sum().backward()
    assert len(block.trace.norms) == 4
    assert "f.0.0.weight" in block.trace.points[0].shares
    assert copy.deepcopy(block).trace.norms == block.trace.norms


class First(nn.Sequential):
    """A sequence of layers, of y alone."""

    def forward(self, t, y):
        return super().forward(y)


# What it refuses.


@pytest.mark.parametrize(
    "name", [name for name in aca.GRADIENTS if not Facts.of(aca.GRADIENTS[name]()).moves]
)
def test_others_refuse(name):
    with pytest.raises(ValueError, match=f"debug=True.*gradient='{name}'.*use gradient='aca' or 'direct'"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], gradient=name, debug=True)


def test_refused_inside_transforms():
    with pytest.raises(NotImplementedError, match=r"debug=True.*outside"):
        torch.func.grad(
            lambda y: solve(lambda t, y: -y, y, [0.0, 1.0], gradient="direct", debug=True).ys[-1].sum()
        )(torch.ones(1))


def test_a_value_that_was_bound_anew_is_put_back_for_the_trace(gradient):
    def traced(later):
        scale = 1.0
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        options = {"method": "euler", "n_steps": 3, "gradient": gradient, "debug": True}
        sol = solve(lambda t, y: -y * scale, y0, [0.0, 1.0], **options)
        scale = later
        sol.ys[-1].sum().backward()
        return sol.trace.norms, [point.growth for point in sol.trace.points]

    assert traced(1.0) == traced(5.0)
