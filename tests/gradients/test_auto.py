"""`ACA(checkpoints="auto")`, the default: recorded while the graphs fit, replayed as a whole if they do not."""

import gc
import warnings
import weakref

import pytest
import torch
from covering import pairs
from gradient_cases import DOUBLE, Everything, assert_same, gradients_of
from peak import Peak
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchaca import ACA, METHODS, solve
from torchaca.gradients import fitting

TIMES = [0.0, 0.1, 0.2, 0.7, 1.1, 1.5]
FITS = {"nothing": 0.0, "one step": 1.5, "half": 0.5, "all but one": -0.5, "all": 1.0}
"""Steps whose graphs fit: a number from 1 on, else a part of all; a negative one is left over."""
STEPS = {"fixed": {"n_steps": 6}, "adaptive": {"rtol": 1e-2, "atol": 1e-3, "dt0": 0.3}}
fits = pytest.mark.parametrize("fit", FITS)


def mlp():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def taken(monkeypatch, call):
    """Bytes of a step, and of all of them, in a solve that fits."""
    made = []
    init = fitting.Budget.__init__

    def spy(self, *args):
        init(self, *args)
        made.append(self)

    with monkeypatch.context() as m:
        m.setattr(fitting.Budget, "__init__", spy)
        call()
    return made[0].step, fitting.BUDGET - made[0].left


def limit(monkeypatch, fit, call):
    """Make the budget one that fits so much of the solve that `call` makes."""
    step, everything = taken(monkeypatch, call)
    part = FITS[fit]
    room = everything if part == 1 else part * step if part > 1 else part * everything
    monkeypatch.setattr(fitting, "BUDGET", int(room if part >= 0 else everything + part * step))


@pytest.mark.parametrize("wanted", [True, False], ids=["times-wanted", "times-constant"])
@pytest.mark.parametrize(("method", "fit"), pairs(METHODS, FITS))
def test_the_gradient_is_that_of_direct_wherever_the_budget_ends(method, fit, wanted, monkeypatch):
    case = Everything(TIMES, wanted)
    for options in STEPS.values():
        if "rtol" in options and not METHODS[method].adaptive:
            continue
        options = {**options, "method": method}
        limit(monkeypatch, fit, lambda options=options: case.solve("aca", **options))
        sol, right = (case.solve(name, **options) for name in ("aca", "direct"))
        assert (sol.stats.nfe, sol.steps) == (right.stats.nfe, right.steps)
        assert_same(gradients_of(sol.ys, case.inputs), gradients_of(right.ys, case.inputs), 1e-11)
        assert (sol.stats.nfe_backward == 0) == (fit == "all")
        monkeypatch.undo()


@fits
@pytest.mark.parametrize("dense", [False, True])
def test_second_derivatives_and_dense_output(fit, dense, monkeypatch):
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE, requires_grad=True)
    inputs = {"y0": y0, **dict(net.named_parameters())}

    def solved(name):
        sol = solve(lambda t, y: net(y), y0, TIMES, gradient=name, n_steps=4, dense=dense)
        return sol(torch.tensor([0.05, 0.9], dtype=DOUBLE)) if dense else sol.ys

    def grads(name):
        first = torch.autograd.grad(solved(name).square().sum(), list(inputs.values()), create_graph=True)
        return gradients_of(sum(g.square().sum() for g in first), inputs)

    limit(monkeypatch, fit, lambda: solved("aca"))
    assert_same(grads("aca"), grads("direct"), 1e-9)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_what_fits_costs_what_direct_costs():
    """Not one operation more, and nothing is evaluated again."""
    net, y0 = mlp(), torch.ones(4, 3, dtype=DOUBLE, requires_grad=True)

    def operations(gradient, n):
        with Operations() as seen:
            sol = solve(
                lambda t, y: net(y), y0, [0.0, 0.4, 1.0], gradient=gradient, n_steps=n, method="dopri5"
            )
            sol.ys.sum().backward()
        assert sol.stats.nfe_backward == 0
        return seen.count

    for n in (2, 12):
        assert operations("aca", n) == operations("direct", n)


def test_memory_beyond_the_budget_grows_by_one_state_a_step(monkeypatch):
    size = 200
    w = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)

    def peaks(n):
        y0 = torch.ones(size, dtype=DOUBLE, requires_grad=True)
        with Peak([y0, w]) as most:
            ys = solve(lambda t, y: torch.tanh(w * y).sin(), y0, [0.0, 1.0], method="rk4", n_steps=n).ys
            forward, between = most.peak, most.now
            ys[-1].sum().backward()
            total = most.peak
        return [x / size for x in (forward, between, total)]

    y0 = torch.ones(size, dtype=DOUBLE, requires_grad=True)
    step, _ = taken(
        monkeypatch,
        lambda: solve(lambda t, y: torch.tanh(w * y).sin(), y0, [0.0, 1.0], method="rk4", n_steps=2),
    )
    monkeypatch.setattr(fitting, "BUDGET", 10 * step)
    few, many = peaks(40), peaks(90)
    assert [x - y for x, y in zip(many, few, strict=True)] == pytest.approx([50] * 3)
    assert few[1] < 40 + 4  # of the graphs nothing is left
    assert max(few[0], few[2]) < step * 10 / (8 * size) + 40 + 20


@fits
@pytest.mark.parametrize(
    "layer", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(3)], ids=["dropout", "norm"]
)
def test_side_effects_of_f_mean_the_same(layer, fit, monkeypatch):
    net, y0 = nn.Sequential(mlp(), layer()).double(), torch.ones(5, 3, dtype=DOUBLE, requires_grad=True)
    start = {name: x.clone() for name, x in net.state_dict().items()}
    inputs = {"y0": y0, **dict(net.named_parameters())}

    def solved(name):
        net.load_state_dict(start)
        torch.manual_seed(1)
        return solve(lambda t, y: net(y), y0, [0.0, 0.4, 1.0], method="rk4", n_steps=6, gradient=name).ys

    limit(monkeypatch, fit, lambda: solved("aca"))
    found = {}
    for name in ("aca", "direct"):
        ys = solved(name)
        found[name] = {**gradients_of(ys, inputs), "ys": ys.detach(), "next": torch.rand(3)}
        found[name] |= {f"buffer {key}": x.double().clone() for key, x in net.named_buffers()}
    assert_same(found["aca"], found["direct"], 1e-11)


@fits
def test_a_weight_changed_in_place_is_told_of(fit, monkeypatch):
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE)

    def solved():
        return solve(lambda t, y: net(y), y0, TIMES, n_steps=4).ys

    limit(monkeypatch, fit, solved)
    ys = solved()
    with torch.no_grad():
        net[0].weight.add_(1.0)
        net[2].weight.add_(1.0)
    with pytest.raises(RuntimeError, match=r"was changed in place.*call backward\(\) first"):
        ys.sum().backward()


def test_a_change_that_the_first_evaluation_alone_saw_is_told_of():
    """Its graph is the one that is weighed."""
    w, early = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (0.5, 2.0))
    ys = solve(
        lambda t, y: w * y * early if t == 0 else w * y, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], n_steps=2
    ).ys
    with torch.no_grad():
        early.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"call backward\(\) first"):
        ys.sum().backward()


@fits
def test_a_buffer_changed_in_place_is_told_of(fit, monkeypatch):
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE)
    net.register_buffer("gain", torch.ones(3, dtype=DOUBLE))

    def solved():
        return solve(lambda t, y: net(y) * net.gain, y0, TIMES, n_steps=4).ys

    limit(monkeypatch, fit, solved)
    ys = solved()
    net.gain.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"was changed in place|f gave other values"):
        ys.sum().backward()


@fits
def test_states_and_graphs_can_be_offloaded(fit, monkeypatch):
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE, requires_grad=True)
    inputs = {"y0": y0, **dict(net.named_parameters())}

    def solved():
        return solve(lambda t, y: net(y), y0, TIMES, n_steps=4).ys

    limit(monkeypatch, fit, solved)
    want = gradients_of(solved(), inputs)
    with torch.autograd.graph.save_on_cpu():
        ys = solved()
    assert_same(gradients_of(ys, inputs), want, 1e-14)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        ys = solved()
    assert packed
    assert_same(gradients_of(ys, inputs), want, 1e-14)


def collecting(net, since):
    held = []

    def f(t, y):
        k = net(y)
        if t >= since:
            held.append(k.square().mean())
        return k

    return f, held


@fits
def test_values_that_f_keeps_from_its_first_evaluation_on_replay_all_steps(fit, monkeypatch):
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE)
    limit(monkeypatch, fit, lambda: solve(lambda t, y: net(y), y0, TIMES, n_steps=4))
    f, held = collecting(net, 0.0)
    with pytest.warns(UserWarning, match="f keeps held"):
        sol = solve(f, y0, TIMES, n_steps=4)
    assert [x.requires_grad for x in held] == [True] + [False] * (len(held) - 1)
    sol.ys.sum().backward()
    assert sol.stats.nfe_backward > 0


@fits
def test_values_that_f_keeps_later_are_told_of_where_some_have_no_graph(fit, monkeypatch):
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE)
    limit(monkeypatch, fit, lambda: solve(lambda t, y: net(y), y0, TIMES, n_steps=6))
    f, held = collecting(net, 0.3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(f, y0, TIMES, n_steps=6)
    recorded = {x.requires_grad for x in held}
    assert recorded != {True, False} or "f keeps held" in str(caught[0].message)
    assert recorded != {True} or not caught


@pytest.mark.parametrize(
    "setting", [{"stagewise": True}, {"memory_budget": "1MB"}, {"grad_rtol": 0.5}], ids=str
)
def test_other_settings_replay(setting):
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE)
    sol = solve(lambda t, y: net(y), y0, TIMES, n_steps=8, gradient=ACA(**setting))
    sol.ys.sum().backward()
    assert sol.stats.nfe_backward > 0


@fits
@pytest.mark.parametrize("on_failure", ["status", "nan"])
def test_the_prefix_of_a_failed_solve(fit, on_failure, monkeypatch):
    y0 = torch.tensor([1.0], dtype=DOUBLE, requires_grad=True)

    def solved(name):
        return solve(
            lambda t, y: y * y,
            y0,
            [0.0, 0.3, 0.6, 2.0],
            gradient=name,
            on_failure=on_failure,
            rtol=1e-6,
            atol=1e-6,
        )

    limit(monkeypatch, fit, lambda: solved("aca"))
    grads = [torch.autograd.grad(solved(name).ys[2].sum(), y0)[0] for name in ("aca", "direct")]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=0)


@fits
@pytest.mark.parametrize("backward", [True, False])
def test_nothing_survives(fit, backward, monkeypatch):
    case = Everything(TIMES)
    limit(monkeypatch, fit, lambda: case.solve("aca", n_steps=4))
    gc.collect()
    gc.disable()
    try:
        sol = case.solve("aca", n_steps=4, dense=True)
        if backward:
            sol.ys["z"].sum().backward()
        refs = [weakref.ref(thing) for thing in (sol.ys["z"], sol.stats, sol)]
        del sol
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


def test_it_is_the_default_and_runs_are_reproducible():
    assert ACA() == ACA(checkpoints="auto")
    net, y0 = mlp(), torch.ones(3, dtype=DOUBLE)
    found = []
    for _ in range(2):
        net.zero_grad()
        sol = solve(lambda t, y: net(y), y0, TIMES, rtol=1e-3)
        sol.ys.sum().backward()
        found.append((sol.stats.nfe, sol.stats.nfe_backward, [p.grad.clone() for p in net.parameters()]))
    assert found[0][:2] == found[1][:2]
    assert all(map(torch.equal, found[0][2], found[1][2]))


FIELDS = {
    "vjp": lambda t, y: torch.func.vjp(torch.tanh, y)[1](y)[0],
    "grad": lambda t, y: torch.func.grad(lambda z: torch.tanh(z).sum())(y),
    "jvp": lambda t, y: torch.func.jvp(torch.tanh, (y,), (y,))[1],
    "sparse": lambda t, y: torch.sparse.mm(torch.eye(2, dtype=DOUBLE).to_sparse(), y.tanh()[:, None])[:, 0],
    "checkpoint": lambda t, y: torch.utils.checkpoint.checkpoint(
        lambda z: torch.tanh(z).sin(), y, use_reentrant=False
    ),
}


@pytest.mark.parametrize("field", FIELDS)
def test_weighing_a_graph_disturbs_nothing(field):
    """Neither saved-tensor hooks, which torch.func refuses, nor an evaluation of what a checkpoint computes again."""
    calls = []

    def f(t, y):
        calls.append(1)
        return FIELDS[field](t, y)

    y0 = torch.tensor([0.3, -0.7], dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, [0.0, 1.0], n_steps=2, method="rk4")
    assert len(calls) == sol.stats.nfe
    want = solve(FIELDS[field], y0, [0.0, 1.0], n_steps=2, method="rk4", gradient="direct").ys
    got = torch.autograd.grad(sol.ys[-1].sum(), y0)[0]
    torch.testing.assert_close(got, torch.autograd.grad(want[-1].sum(), y0)[0])


def test_who_waits_for_all_parameters_hears_of_those_that_f_does_not_use():
    """As DistributedDataParallel does, which waits for each of them before it averages any."""
    net, heard = mlp(), []
    net.spare = nn.Parameter(torch.ones(2, dtype=DOUBLE))
    for x in net.parameters():
        node = x.view_as(x).grad_fn.next_functions[0][0]
        node.register_hook(lambda *_, x=x: heard.append(id(x)))
        net.__dict__.setdefault("nodes", []).append(node)  # which lives as long as somebody holds it
    solve(
        lambda t, y: net(y) if net.spare is not None else y, torch.ones(3, dtype=DOUBLE), TIMES
    ).ys.sum().backward()
    assert sorted(heard) == sorted(map(id, net.parameters()))
    assert net.spare.grad is None
