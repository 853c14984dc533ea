"""The adaptive checkpoint adjoint: what it replays, what it keeps, what it costs, and what it refuses."""

import copy
import gc
import tracemalloc
import weakref

import pytest
import torch
from gradient_cases import (
    ADAPTIVE,
    DOUBLE,
    Counter,
    Everything,
    assert_same,
    gradients_of,
    loss_of,
)
from stubs import evaluations_of
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import torchaca
from torchaca import I_CONTROL, METHODS, PI_CONTROL, PID_CONTROL, Adaptive, SolverError
from torchaca.core import Carrying
from torchaca.gradients.drift import nan_where

REPLAYED = torchaca.ACA(checkpoints="all")
"""The paper's algorithm, which this file is about: "aca" stands for it here."""


def solve(*args, gradient="aca", **options):
    return torchaca.solve(*args, gradient=REPLAYED if gradient == "aca" else gradient, **options)


TIMES = [0.0, 0.1, 0.2, 0.3, 1.1, 1.5]
STEPS = {"fixed": {"n_steps": 3}, "adaptive": {"rtol": 1e-2, "dt0": 0.9}}


def field(dtype=DOUBLE, n=3):
    """A nonlinear f that depends on time, and its parameter."""
    w = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(9)).requires_grad_()
    return (lambda t, y: torch.tanh(y @ w) * torch.cos(7 * t) - 0.1 * y), w


# --- the replay ---


@pytest.mark.parametrize("wanted", [False, True], ids=["times-constant", "times-wanted"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_replays_meet_the_bits_of_the_forward_pass(method, dtype, wanted):
    row = METHODS[method]
    variants = [{"n_steps": 4}, {"dt": 0.4}]
    if row.adaptive:
        variants.append({"rtol": 1e-3, "dt0": 1.4})
    for options in variants:
        f = Counter(field(dtype)[0])
        times = torch.tensor([0.0, 0.33, 1.5], dtype=DOUBLE, requires_grad=wanted)
        sol = solve(f, torch.ones(3, dtype=dtype, requires_grad=True), times, method=method, **options)
        forward, f.seen = f.seen, []
        sol.ys.sum().backward()
        assert len(f.seen) >= evaluations_of(row, sol.stats.accepted)
        for t, y in f.seen:
            assert any(t == other and torch.equal(y, state) for other, state in forward), (t, y)
        if isinstance(row, Carrying):  # its stages lie elsewhere
            continue
        # Backwards over the steps, forwards within each.
        starts = [t for t, _ in f.seen if t in sol.steps[:-1]]
        assert sorted(set(starts), reverse=True) == list(dict.fromkeys(starts))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_replays_see_every_accepted_state_once(dtype):
    f = Counter(field(dtype)[0])
    sol = solve(f, torch.ones(3, dtype=dtype, requires_grad=True), [0.0, 1.5], rtol=1e-4, dt0=1.0)
    assert sol.stats.rejected > 0
    ends = torch.tensor(sol.steps, dtype=DOUBLE)
    again = solve(field(dtype)[0], torch.ones(3, dtype=dtype), ends, rtol=1e-4, dt0=1.0)
    assert again.steps == sol.steps
    f.seen = []
    sol.ys[-1].sum().backward()
    first_stages = f.seen[::6]  # dopri5
    assert len(f.seen) == 6 * sol.stats.accepted
    for (t, y), start, state in zip(
        first_stages, reversed(sol.steps[:-1]), reversed(again.ys[:-1]), strict=True
    ):
        assert t == torch.tensor(start, dtype=dtype).item()
        assert torch.equal(y, state)


@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("method", ["dopri5", "heun_euler", "bosh3", "dopri8"])
def test_equals_torch_checkpoint_on_the_accepted_grid(method, options):
    f, w = field()
    y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, [0.0, 1.5], method=method, **options)
    want = gradients_of(sol.ys, {"y0": y0, "w": w})

    def step(t0, t1, y):
        return METHODS[method].step(lambda t, y: f(torch.as_tensor(t, dtype=DOUBLE), y), t0, t1, y).y1

    y, states = y0, [y0]
    for t0, t1 in zip(sol.steps, sol.steps[1:], strict=False):
        y = checkpoint(step, t0, t1, y, use_reentrant=False)
        states.append(y)
    ys = torch.stack([y0, y])
    torch.testing.assert_close(ys, sol.ys, rtol=1e-14, atol=1e-14)
    assert_same(gradients_of(ys, {"y0": y0, "w": w}), want, 1e-13)


# --- what it costs ---


@pytest.mark.parametrize("method", METHODS)
def test_one_replay_an_accepted_step(method):
    row = METHODS[method]
    variants = [{"n_steps": 3}] + ([{"rtol": 1e-3, "dt0": 1.4}] if row.adaptive else [])
    for options in variants:
        f, _ = field()
        sol = solve(f, torch.ones(3, dtype=DOUBLE, requires_grad=True), [0.0, 1.5], method=method, **options)
        sol.ys.sum().backward()
        assert sol.stats.nfe_backward == evaluations_of(row, sol.stats.accepted)
        assert (sol.stats.accepted_backward, sol.stats.rejected_backward) == (0, 0)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_backward_evaluations_do_not_depend_on_the_number_of_outputs(method):
    row = METHODS[method]
    costs = {}
    for n in (2, 500):
        f, _ = field()
        times = torch.linspace(0, 4, n, dtype=DOUBLE)
        sol = solve(f, torch.ones(3, dtype=DOUBLE, requires_grad=True), times, method=method, rtol=1e-3)
        sol.ys.sum().backward()
        costs[n] = sol.stats
    assert costs[2].accepted == costs[500].accepted
    extra = costs[500].nfe_backward - costs[2].nfe_backward
    if method == "dopri8":  # its interpolant has stages of its own
        assert extra == costs[2].accepted * (len(row.nodes) - row.stages)
    else:
        assert extra <= 1  # f at the end of the last step
        assert extra < 0.1 * costs[2].nfe_backward


def test_a_second_backward_pass_is_counted_apart_from_the_forward_one():
    f, w = field()
    sol = solve(f, torch.ones(3, dtype=DOUBLE, requires_grad=True), [0.0, 1.5], rtol=1e-3)
    forward = copy.copy(sol.stats)
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), w, create_graph=True)
    assert sol.stats.nfe_backward > 0
    once = sol.stats.nfe_backward
    g.pow(2).sum().backward()
    assert sol.stats.nfe_backward > once
    assert (sol.stats.nfe, sol.stats.accepted, sol.stats.rejected) == (
        forward.nfe,
        forward.accepted,
        forward.rejected,
    )


def test_second_derivatives_are_no_backward_integration():
    f, w = field()
    sol = solve(f, torch.ones(3, dtype=DOUBLE, requires_grad=True), [0.0, 1.5], rtol=1e-3)
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), w, create_graph=True)
    g.pow(2).sum().backward()
    assert (sol.stats.accepted_backward, sol.stats.rejected_backward) == (0, 0)


# --- what it keeps ---


def saved_by(run):
    """What autograd saves during `run()`, and its result."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        result = run()
    return saved, result


@pytest.mark.parametrize("method", ["dopri5", "heun_euler", "dopri8"])
def test_one_state_an_accepted_step_is_saved(method):
    f, w = field()
    y0 = torch.ones(5, 3, dtype=DOUBLE, requires_grad=True)
    probe, _ = saved_by(lambda: f(torch.tensor(0.0, dtype=DOUBLE), y0))
    for options in ({"n_steps": 7}, {"rtol": 1e-3, "dt0": 1.5}, {"rtol": 1e-5, "dt0": 1.5}):
        saved, sol = saved_by(lambda options=options: solve(f, y0, TIMES, method=method, **options))
        if "rtol" in options:
            assert sol.stats.rejected > 0
        mine = saved[len(probe) :]
        inputs = [y0, w]
        assert len(mine) == sol.stats.accepted + len(inputs)
        size = sum(x.numel() for x in mine) - sum(x.numel() for x in inputs)
        assert size == sol.stats.accepted * y0.numel()


class Alive(TorchDispatchMode):
    """The most tensors of `numel` numbers that were alive at one time, views counted once."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.refs, self.peak = numel, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.numel() == self.numel:
                storage = x.untyped_storage()
                self.refs[storage._cdata] = StorageWeakRef(storage)
        self.refs = {key: ref for key, ref in self.refs.items() if not ref.expired()}
        self.peak = max(self.peak, len(self.refs))
        return out


GROWTH = {"aca": 1, "adjoint": 0}


@pytest.mark.parametrize("gradient", GROWTH)
def test_memory_grows_as_claimed(gradient):
    f, _ = field()

    def peak(n):
        y0 = torch.ones(41, 3, dtype=DOUBLE, requires_grad=True)
        with Alive(y0.numel()) as alive:
            sol = solve(f, y0, [0.0, 1.5], gradient=gradient, n_steps=n)
            forward = alive.peak
            sol.ys[-1].sum().backward()
        return forward, alive.peak

    forward, total = zip(*(peak(n) for n in (5, 25)), strict=True)
    assert forward[1] - forward[0] == GROWTH[gradient] * 20
    assert total[1] - total[0] == GROWTH[gradient] * 20


def test_the_graph_of_direct_does_grow():
    f, _ = field()
    peaks = []
    for n in (5, 25):
        y0 = torch.ones(41, 3, dtype=DOUBLE, requires_grad=True)
        with Alive(y0.numel()) as alive:
            solve(f, y0, [0.0, 1.5], gradient="direct", n_steps=n)
        peaks.append(alive.peak)
    assert peaks[1] - peaks[0] > 20 * 6


@pytest.mark.parametrize("gradient", ["aca", "adjoint"])
def test_the_forward_pass_builds_no_graph(gradient):
    modes = []
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        k = -w * y
        modes.append(k.requires_grad)
        return k

    sol = solve(f, torch.ones(2, dtype=DOUBLE, requires_grad=True), [0.0, 0.5, 1.0], gradient=gradient)
    assert modes == [True] + [False] * (sol.stats.nfe - 1)  # the first one looks for captured tensors
    (first,) = {node for node in graph_of(sol.ys) if "Solve" in node.name()}
    assert len(first.next_functions) < 8
    assert len(graph_of(sol.ys)) < 8


def graph_of(tensor):
    nodes, pending = set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            pending.extend(other for other, _ in node.next_functions)
    return nodes


SETTINGS = {
    "none": torchaca.ACA(checkpoints="none"),
    "sqrt": torchaca.ACA(checkpoints="sqrt"),
    "binomial": torchaca.ACA(checkpoints="binomial"),
    "1": torchaca.ACA(checkpoints=1),
    "3": torchaca.ACA(checkpoints=3),
    "budget": torchaca.ACA(memory_budget="20KB"),
    "stagewise": torchaca.ACA(stagewise=True),
    "stagewise-2": torchaca.ACA(stagewise=True, checkpoints=2),
}


@pytest.mark.parametrize("wanted", [True, False], ids=["times-wanted", "times-constant"])
@pytest.mark.parametrize("options", [{"n_steps": 9, "method": "rk4"}, {"rtol": 1e-3, "dt0": 0.9}], ids=STEPS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_gives_the_same_gradient(setting, options, wanted):
    case = Everything(TIMES, wanted)
    queries = torch.tensor([0.05, 0.6, 1.4], dtype=DOUBLE)

    def grads(gradient):
        sol = case.solve(gradient, dense=True, **options)
        return gradients_of((sol.ys, sol(queries)), case.inputs)

    assert_same(grads(setting), grads("direct"), 1e-11)
    assert_same(case.gradients(setting, **options), case.gradients("direct", **options), 1e-11)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_so_many_states_and_no_more(count):
    f, _ = field()
    peaks = []
    for n in (8, 60):
        y0 = torch.ones(41, 3, dtype=DOUBLE, requires_grad=True)
        saved, sol = saved_by(
            lambda n=n, y0=y0: solve(f, y0, [0.0, 1.5], gradient=torchaca.ACA(checkpoints=count), n_steps=n)
        )
        assert sum(x.shape == y0.shape for x in saved) <= count + 4  # y0 itself, and what the probe saved
        with Alive(y0.numel()) as alive:
            sol.ys.sum().backward()
        peaks.append(alive.peak)
    assert peaks[1] - peaks[0] <= count


NOISY = {"dropout": lambda: nn.Dropout(0.5), "batch-norm": lambda: nn.BatchNorm1d(8)}


@pytest.mark.parametrize(
    "setting", [torchaca.ACA(), REPLAYED, *SETTINGS.values()], ids=["auto", "all", *SETTINGS]
)
@pytest.mark.parametrize("layer", NOISY.values(), ids=NOISY)
def test_side_effects_of_f_are_replayed_and_not_repeated(layer, setting):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), layer(), nn.Tanh(), nn.Linear(8, 3)).double()
    start = copy.deepcopy(net.state_dict())
    y0 = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)
    inputs = {"y0": y0, **dict(net.named_parameters())}

    def solved(gradient):
        net.load_state_dict(start)
        torch.manual_seed(1)
        sol = solve(lambda t, y: net(y), y0, [0.0, 0.4, 1.0], method="rk4", n_steps=6, gradient=gradient)
        after = [torch.rand(3, generator=None), *(b.double().clone() for b in net.buffers())]
        torch.manual_seed(2)
        grads = gradients_of(sol.ys, inputs)
        after += [torch.rand(3), *(b.double().clone() for b in net.buffers())]
        return grads, {str(i): x for i, x in enumerate([sol.ys.detach(), *after])}

    (got, effects), (want, right) = solved(setting), solved("direct")
    assert_same(got, want, 1e-11)
    assert_same(effects, right, 1e-14)


PLAIN = ("aca", "adjoint", "direct", "naive")


@pytest.mark.parametrize("options", [{"method": "rk4", "n_steps": 5}, {"rtol": 1e-5, "dt0": 1.0}], ids=STEPS)
@pytest.mark.parametrize("gradient", [*PLAIN, *SETTINGS.values()], ids=[*PLAIN, *SETTINGS])
def test_batch_norm_counts_accepted_evaluations_once(gradient, options):
    torch.manual_seed(0)
    layers = (nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    net = nn.Sequential(*layers).double()
    y0 = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)
    sol = solve(lambda t, y: 3 * net(y), y0, [0.0, 0.3, 1.0], gradient=gradient, **options)
    stages, stats = 4 if "method" in options else 6, sol.stats
    assert (stats.rejected > 0) == ("rtol" in options)
    first = int("rtol" in options)  # the first stage of all
    assert net[1].num_batches_tracked == stages * stats.accepted + first
    moved = [buffer.clone() for buffer in net.buffers()]
    sol.ys.sum().backward()
    for buffer, before in zip(net.buffers(), moved, strict=True):
        assert torch.equal(buffer, before)
    net.eval()
    solve(lambda t, y: net(y), y0, [0.0, 1.0], gradient=gradient, **options).ys.sum().backward()
    for buffer, before in zip(net.buffers(), moved, strict=True):
        assert torch.equal(buffer, before)


@pytest.mark.filterwarnings("ignore:f draws random numbers")
@pytest.mark.parametrize(
    "gradient", [torchaca.ACA(), "aca", *SETTINGS.values()], ids=["auto", "all", *SETTINGS]
)
def test_adaptive_dropout_leaves_the_generator_where_direct_does(gradient):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    y0 = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)

    def solved(gradient):
        torch.manual_seed(1)
        sol = solve(lambda t, y: 3 * net(y), y0, [0.0, 1.0], rtol=0.1, atol=0.1, dt0=1.0, gradient=gradient)
        grads = gradients_of(sol.ys, {"y0": y0, **dict(net.named_parameters())})
        assert sol.stats.rejected > 0
        return {**grads, "ys": sol.ys.detach(), "next": torch.rand(3)}

    assert_same(solved(gradient), solved("direct"), 1e-11)


# --- safety ---


@pytest.mark.parametrize("gradient", ["aca", "adjoint"])
@pytest.mark.parametrize("what", ["parameter", "argument", "y0", "captured history"])
def test_a_change_in_place_before_backward_is_noticed(gradient, what):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    arg = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    history = w * 1
    sol = solve(
        lambda t, y, a: -w * y * y * history + a * a * y, y0, [0.0, 1.0], args=(arg,), gradient=gradient
    )
    with torch.no_grad():
        {"parameter": w, "argument": arg, "y0": y0, "captured history": history}[what].add_(1)
    with pytest.raises(
        RuntimeError, match=r"optimizer\.step\(\).*call backward\(\) first.*modified by an inplace"
    ):
        sol.ys[-1].sum().backward()


def test_a_change_in_place_before_the_second_backward_pass_is_noticed():
    f, w = field()
    ys = solve(f, torch.ones(3, dtype=DOUBLE), [0.0, 1.0], n_steps=2).ys
    (slope,) = torch.autograd.grad(ys.square().sum(), w, create_graph=True)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match=r"call backward\(\) first.*modified by an inplace"):
        slope.sum().backward()


def test_changed_outputs_do_not_reach_the_checkpoints():
    f, w = field()
    grads = []
    for change in (False, True):
        y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        sol = solve(f, y0, [0.0, 0.75, 1.5], n_steps=2)
        out = sol.ys[-1].sum() + sol.ys[1].sum()
        if change:
            with torch.no_grad():
                sol.ys.zero_()
        grads.append(torch.autograd.grad(out, (y0, w)))
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("gradient", ["aca", "adjoint", "direct", "naive"])
def test_backward_twice(gradient):
    f, w = field()
    y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, TIMES, gradient=gradient)
    one = torch.autograd.grad(loss_of(sol.ys), (y0, w), retain_graph=True)
    two = torch.autograd.grad(loss_of(sol.ys), (y0, w))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss_of(sol.ys), (y0, w))


def test_two_losses_of_one_solve_add_up():
    case = Everything(TIMES)
    sol = case.solve(REPLAYED, n_steps=3)
    both = gradients_of(sol.ys, case.inputs, lambda ys: ys["z"].sum() + 3 * ys["l"][2].sum())
    sol = case.solve(REPLAYED, n_steps=3)
    for x in case.inputs.values():
        x.grad = None
    sol.ys["z"].sum().backward(retain_graph=True)
    (3 * sol.ys["l"][2].sum()).backward()
    assert_same({name: x.grad for name, x in case.inputs.items()}, both, 1e-12)


@pytest.mark.parametrize("gradient", ["aca", "adjoint"])
def test_checkpoints_can_be_offloaded(gradient):
    case = Everything(TIMES)
    options = {"gradient": gradient, "rtol": 1e-2}
    want = case.gradients(**options)
    with torch.autograd.graph.save_on_cpu():
        sol = case.solve(**options)
    assert_same(gradients_of(sol.ys, case.inputs), want, 1e-13)

    packed, unpacked = [], []

    def pack(x):
        packed.append(x)
        return x.numpy().copy() if not x.requires_grad else x

    def unpack(x):
        unpacked.append(x)
        return x if isinstance(x, torch.Tensor) else torch.from_numpy(x)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        sol = case.solve(**options)
        assert_same(gradients_of(sol.ys, case.inputs), want, 1e-13)
    assert unpacked


@pytest.mark.parametrize("gradient", ["aca", "adjoint", "direct", "naive"])
@pytest.mark.parametrize("backward", [True, False], ids=["after-backward", "without-backward"])
def test_nothing_survives_its_solve(gradient, backward):
    case = Everything(TIMES)
    gc.collect()
    gc.disable()
    try:
        sol = case.solve(gradient, rtol=1e-2, dense=gradient != "adjoint")
        if backward:
            loss_of(sol.ys).backward()
        refs = [weakref.ref(thing) for thing in (sol.ys["z"], sol.stats, sol)]
        del sol
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("gradient", ["aca", "adjoint", "direct", "naive"])
@pytest.mark.parametrize("on_failure", ["status", "nan", "raise"])
def test_nothing_survives_a_failed_solve(gradient, on_failure):
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    refs = []

    def f(t, y):
        k = y * y
        refs.extend(weakref.ref(x) for x in (y, k) if x is not y0)
        return k

    gc.collect()
    gc.disable()
    try:
        try:
            sol = solve(f, y0, [0.0, 0.5, 2.0], gradient=gradient, on_failure=on_failure, rtol=1e-2)
            refs.append(weakref.ref(sol.ys))
            assert sol.status != "success"
            del sol
        except SolverError as error:
            assert on_failure == "raise"
            refs.append(weakref.ref(error))
        assert [ref for ref in refs if ref() is not None] == []
    finally:
        gc.enable()


def live_tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("gradient", ["aca", "adjoint", "direct", "naive"])
def test_memory_is_flat_over_many_iterations(gradient):
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    x = torch.ones(4, 3, dtype=DOUBLE)
    sizes, counts = [], []
    tracemalloc.start()
    try:
        for i in range(25):
            optimizer.zero_grad()
            sol = solve(lambda t, y: net(y), x, [0.0, 0.7, 1.0], gradient=gradient, n_steps=2, method="bosh3")
            sol.ys.pow(2).sum().backward()
            optimizer.step()
            if i in (9, 24):
                gc.collect()
                counts.append(live_tensors())
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert counts[1] <= counts[0]
    assert sizes[1] - sizes[0] < 30_000  # torch keeps a few words an iteration


# --- autocast ---


class Watched(nn.Module):
    """A linear f that notes in which dtypes it is called and computes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seen = []

    def forward(self, t, y):
        k = torch.tanh(self.linear(y)) * torch.cos(t)
        self.seen.append((t.dtype, y.dtype, k.dtype))
        return k


def autocast(enabled=True, **options):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled, **options)


@pytest.mark.parametrize("gradient", ["aca", "adjoint", "direct", "naive"])
@pytest.mark.parametrize("y_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_computes_in_the_precision_of_forward(gradient, y_dtype):
    f = Watched()
    y0 = torch.randn(5, 4, dtype=y_dtype, requires_grad=True)
    with autocast():
        sol = solve(f, y0, [0.0, 1.0], gradient=gradient, method="rk4", n_steps=3)
    assert sol.ys.dtype == y_dtype
    forward, f.seen = set(f.seen), []
    assert {(t, y) for t, y, _ in forward} == {(torch.float32, y_dtype)}
    assert torch.bfloat16 in {k for *_, k in forward} or y_dtype == torch.float32
    sol.ys.float().pow(2).sum().backward()
    assert set(f.seen) <= forward
    assert (gradient in {"direct", "naive"}) == (not f.seen)
    assert f.linear.weight.grad.dtype == torch.float32
    assert y0.grad.dtype == y_dtype


def test_gradients_under_autocast_equal_direct():
    f = Watched()
    grads = []
    for gradient in ("aca", "direct"):
        with autocast():
            sol = solve(f, torch.ones(5, 4), [0.0, 0.3, 1.0], gradient=gradient, method="rk4", n_steps=3)
        grads.append(gradients_of(sol.ys, dict(f.named_parameters())))
    assert_same(*grads, 2e-2)


def test_a_replay_keeps_autocast_off_where_it_was_off():
    f = Watched()
    sol = solve(f, torch.ones(5, 4), [0.0, 1.0], method="rk4", n_steps=3)
    forward, f.seen = set(f.seen), []
    with autocast():
        sol.ys.sum().backward()
    assert set(f.seen) == forward == {(torch.float32,) * 3}


@pytest.mark.parametrize("gradient", ["aca", "adjoint"])
def test_two_solves_under_one_autocast(gradient):
    f = Watched()
    with autocast():
        one = solve(f, torch.ones(5, 4), [0.0, 1.0], gradient=gradient, method="rk4", n_steps=3)
        two = solve(f, one.ys[-1], [0.0, 1.0], gradient=gradient, method="rk4", n_steps=3)
    two.ys[-1].sum().backward()
    got = f.linear.weight.grad.clone()
    f.linear.weight.grad = None
    with autocast(cache_enabled=False):
        one = solve(f, torch.ones(5, 4), [0.0, 1.0], gradient="direct", method="rk4", n_steps=3)
        two = solve(f, one.ys[-1], [0.0, 1.0], gradient="direct", method="rk4", n_steps=3)
    two.ys[-1].sum().backward()
    assert_same({"w": got}, {"w": f.linear.weight.grad}, 5e-2)


# --- derivatives of derivatives ---


def second_derivative(gradient, w):
    ys = solve(
        lambda t, y: -w * y * y, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], n_steps=2, gradient=gradient
    ).ys
    (first,) = torch.autograd.grad(ys[-1].sum(), w, create_graph=True)
    return torch.autograd.grad(first, w, create_graph=True)[0]


@pytest.mark.parametrize("call", ["backward", "grad"])
def test_third_derivatives_are_refused_in_words(call):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    second, right = (second_derivative(gradient, w) for gradient in ("aca", "direct"))
    torch.testing.assert_close(second, right, rtol=1e-12, atol=0)
    total = second + w.sin()
    differentiate = {"backward": total.backward, "grad": lambda: torch.autograd.grad(total, w)}
    with pytest.raises(NotImplementedError, match="gradient='direct'"):
        differentiate[call]()
    torch.autograd.grad(right, w)


def test_a_gradient_penalty_trains():
    f, w = field()
    y0 = torch.ones(4, 3, dtype=DOUBLE, requires_grad=True)
    grads = []
    for gradient in ("aca", "direct"):
        ys = solve(f, y0, [0.0, 0.4, 1.0], gradient=gradient, rtol=1e-2).ys
        (slope,) = torch.autograd.grad(ys.pow(2).sum(), y0, create_graph=True)
        grads.append({"w": torch.autograd.grad((slope.norm(dim=1) - 1).pow(2).mean() + ys.sum(), w)[0]})
    assert_same(*grads, 1e-10)


def test_hooks_run_once_in_second_derivatives():
    grads = []
    for gradient in ("aca", "direct"):
        w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        w.register_hook(lambda g: 2 * g)
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        ys = solve(lambda t, y, w=w: -w * y * y, y0, [0.0, 1.0], n_steps=2, gradient=gradient).ys
        (slope,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
        grads.append({"w": torch.autograd.grad(slope.sum(), w)[0]})
    assert_same(*grads, 1e-12)


def test_several_cotangents_at_once():
    f, w = field()
    y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    jacobians = []
    for gradient in ("aca", "direct"):
        ys = solve(f, y0, [0.0, 0.4, 1.0], n_steps=2, gradient=gradient).ys
        rows = torch.eye(3, dtype=DOUBLE)
        jacobians.append(dict(enumerate(torch.autograd.grad(ys[-1], (y0, w), rows, is_grads_batched=True))))
    assert_same(*jacobians, 1e-11)


def test_hessian_by_torch():
    def energy(y, gradient):
        return (
            solve(lambda t, y: torch.sin(y.flip(0) * 2), y, [0.0, 1.0], n_steps=2, gradient=gradient)
            .ys[-1]
            .sum()
        )

    y = torch.tensor([0.3, 0.8, -0.4], dtype=DOUBLE)
    one, two = (torch.autograd.functional.hessian(lambda y, g=g: energy(y, g), y) for g in ("aca", "direct"))
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


# --- accuracy ---


def contracting(gradient, dtype, **options):
    """dy/dt = -k (y - b cos t), k = 50: d y(2) / d (k, b)."""
    k, b = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (50.0, 1.0))
    y0 = torch.tensor([1.0], dtype=dtype, requires_grad=True)
    sol = solve(lambda t, y: -k * (y - b * torch.cos(t)), y0, [0.0, 2.0], gradient=gradient, **options)
    return torch.stack(torch.autograd.grad(sol.ys[-1].sum(), (k, b))).double()


def test_a_contracting_problem_in_float32():
    """Steps that stability limits leave 3 to 10 % of dy/dk at the default tolerances; float32 adds next to nothing."""
    exact = contracting("direct", DOUBLE, rtol=1e-10, atol=1e-12)
    default, tight = contracting("aca", torch.float32), contracting("aca", torch.float32, rtol=1e-5)
    torch.testing.assert_close(default[1], exact[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(default, contracting("aca", DOUBLE), rtol=2e-3, atol=0)
    torch.testing.assert_close(tight, exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(contracting("aca", torch.float32, rtol=1e-4), exact, rtol=1e-2, atol=0)


def van_der_pol(gradient, **options):
    """d|y(25)|^2 / dy0 of the van der Pol oscillator, and its solution."""

    def f(t, y):
        return torch.stack([y[1], (0.15 - y[0] ** 2) * y[1] - y[0]])

    y0 = torch.tensor([2.0, 0.0], dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, [0.0, 25.0], gradient=gradient, **options)
    return torch.autograd.grad(sol.ys[-1].square().sum(), y0)[0], sol


def test_the_van_der_pol_oscillator():
    """At rtol = atol = 1e-5; ACA's error is that of the computed solution, which the controller decides on."""
    true, _ = van_der_pol("direct", method="dopri8", rtol=1e-12, atol=1e-12)
    off = {}
    for name, pid in (("I", I_CONTROL), ("PI", PI_CONTROL), ("PID", PID_CONTROL)):
        control = Adaptive(rtol=1e-5, atol=1e-5, pid=pid)
        found = {g: van_der_pol(g, control=control) for g in ("aca", "direct", "adjoint")}
        assert found["aca"][1].steps == found["direct"][1].steps
        torch.testing.assert_close(found["aca"][0], found["direct"][0], rtol=1e-11, atol=0)
        off[name] = {g: ((grad - true).norm() / true.norm()).item() for g, (grad, _) in found.items()}
        print(name, {g: f"{error:.2g}" for g, error in off[name].items()})
    assert off["PI"]["aca"] <= 1.5e-4
    assert off["PID"]["aca"] <= 1.5e-4
    assert off["I"]["aca"] <= 3e-4  # the default: the final angle of the oscillator is the coarsest
    assert all(errors["adjoint"] > 1e-2 for errors in off.values())


def toy(gradient, span, **options):
    """The relative error of dL/dz0 for z' = k z, L = z(T)^2 (Zhuang et al. 2020, section 4.1)."""
    z0 = torch.tensor([1.0], requires_grad=True)
    k = torch.tensor(1.0)
    sol = solve(lambda t, z: k * z, z0, [0.0, span], gradient=gradient, rtol=1e-5, atol=1e-5, **options)
    (g,) = torch.autograd.grad(sol.ys[-1].pow(2).sum(), z0)
    exact = 2 * torch.exp(torch.tensor(2.0 * span, dtype=DOUBLE)).item()
    return abs(g.item() - exact) / exact


def test_the_toy_problem_of_the_paper():
    assert toy("aca", 20.0) <= 1.1e-4


@pytest.mark.parametrize("gradient", ["aca", "adjoint", "direct", "naive"])
def test_the_toy_problem_runs_under_every_gradient(gradient):
    for span in (1.0, 5.0, 15.0):
        assert toy(gradient, span) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_toy_problem_runs_under_every_method(method):
    for gradient in ("aca", "direct", "naive"):
        assert toy(gradient, 15.0, method=method) < 0.1
    if isinstance(
        METHODS[method], Carrying
    ):  # undamped, useless where the solution contracts: backwards it does
        with pytest.raises(SolverError, match=r"(?s)carries swings around f.*ALF\(eta=0\.9\)"):
            toy("adjoint", 15.0, method=method)
    else:
        assert toy("adjoint", 15.0, method=method) < 0.1


def test_the_name_and_the_object_are_the_same():
    for gradient in ("aca", torchaca.ACA(), REPLAYED):
        case = Everything(TIMES)
        assert_same(case.gradients(gradient, n_steps=2), case.gradients("direct", n_steps=2), 1e-11)


def test_gradients_of_a_replay_that_drifted_are_nan_without_a_read():
    grads = [torch.ones(2), None, torch.ones(3, dtype=torch.float64), torch.ones(1, dtype=torch.complex64)]
    right, wrong = (nan_where(torch.tensor(drifted), grads) for drifted in (False, True))
    assert [g is None for g in wrong] == [g is None for g in right] == [False, True, False, False]
    for good, bad, grad in zip(right, wrong, grads, strict=True):
        if grad is not None:
            assert torch.equal(good, grad)
            assert bad.isnan().all()
            assert good.dtype == bad.dtype == grad.dtype


def test_a_gradient_that_a_replay_lost_is_nan_too():
    """Of a tensor that f used and that requires one; a sparse one stays sparse."""
    rows = torch.sparse_coo_tensor([[0, 2]], [[1.0, 2.0], [3.0, 4.0]], (4, 2), check_invariants=True)
    inputs = [torch.ones(4, 2, requires_grad=True), None, torch.ones(2, requires_grad=True), torch.ones(3)]
    right, wrong = (
        nan_where(torch.tensor(drifted), [rows, None, None, None], inputs) for drifted in (False, True)
    )
    assert torch.equal(right[0].to_dense(), rows.to_dense())
    assert wrong[0].coalesce().values().isnan().all()
    assert torch.equal(right[2], torch.zeros(2))
    assert wrong[2].isnan().all()
    assert right[1] is wrong[1] is right[3] is wrong[3] is None
