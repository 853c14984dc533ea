"""The compiled loops' arithmetic against the eager loop, run by Python (see `interpreted`); no compiler needed."""

import math
from dataclasses import replace

import pytest
import torch
from compiled_helpers import Net, assert_equal, both
from covering import covering, pairs

import torchaca
from torchaca import METHODS, Adaptive, RungeKutta, SolverError
from torchaca.compiled import compiler, run

pytestmark = pytest.mark.usefixtures("interpreted")

ADAPTIVE = {"rtol": 1e-4}
COARSE = {"heun_euler": {"rtol": 1e-2, "atol": 1e-3}, "fehlberg2": {"rtol": 1e-2, "atol": 1e-3}}
TIMES = {
    "two": [0.0, 2.0],
    "backwards": [2.0, 0.0],
    "inside": [0.0, 0.3, 0.31, 1.0, 1.7, 2.0],
    "inside, backwards": [2.0, 1.99, 0.5, 0.0],
    "repeated": [0.0, 0.0, 0.4, 0.4, 2.0, 2.0],
    "many": torch.linspace(0, 2, 50, dtype=torch.float64),
}


def net():
    f = Net()
    return f, tuple(f.parameters()), torch.randn(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "times"), pairs(["heun_euler", "fehlberg2", "bosh3", "fehlberg5", "dopri5", "tsit5"], TIMES)
)
def test_adaptive_solves_equal_the_eager_loop(method, times):
    f, weights, y0 = net()
    assert_equal(*both(f, y0, TIMES[times], weights, method=method, **COARSE.get(method, ADAPTIVE)))


@pytest.mark.parametrize(
    ("steps", "times"),
    pairs([{"rtol": 1e-9, "atol": 1e-9, "dt0": 0.3}, {"n_steps": 3}], ["two", "inside", "inside, backwards"]),
    ids=str,
)
def test_an_interpolant_with_stages_of_its_own(times, steps):
    f, weights, y0 = net()
    assert_equal(*both(f, y0, TIMES[times], weights, method="dopri8", **steps), 1e-11)


RALSTON3 = RungeKutta(
    name="ralston3",
    order=3,
    c="0 1/2 3/4",
    a="1/2\n0 3/4",
    b="2/9 1/3 4/9",
    b_hat="1/3 0 2/3",
    embedded_order=2,
    dense="1 -7/9\n0 1/3\n0 4/9",
    dense_order=2,
)
BOSH3 = METHODS["bosh3"]
LONGER = replace(BOSH3, name="longer", dense_c="1/2", dense_a="1/2 0 0 0", dense=BOSH3.dense + "\n1 -1 0")


@pytest.mark.parametrize(
    ("method", "steps", "times"),
    covering(
        [RALSTON3, LONGER],
        [{"rtol": 1e-4}, {"n_steps": 3}],
        ["inside", "inside, backwards"],
        strength=2,
    ),
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_a_method_of_your_own(method, steps, times):
    f, weights, y0 = net()
    assert_equal(*both(f, y0, TIMES[times], weights, method=method, **steps))


@pytest.mark.parametrize(
    ("method", "steps", "times"),
    covering(
        ["rk4", "dopri5", "fehlberg5"],
        [{"n_steps": 7}, {"dt": 0.3}, {"grid": [0.0, 0.3, 0.7, 1.9, 2.0]}],
        ["two", "inside", "inside, backwards", "repeated"],
        strength=2,
    ),
    ids=str,
)
def test_fixed_steps_equal_the_eager_loop(method, steps, times):
    f, weights, y0 = net()
    if "grid" in steps and TIMES[times][0] == 2.0:
        steps = {"grid": steps["grid"][::-1]}
    assert_equal(*both(f, y0, TIMES[times], weights, method=method, **steps))


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if not m.adaptive])
def test_every_fixed_step_method(method):
    f, weights, y0 = net()
    assert_equal(*both(f, y0, TIMES["inside"], weights, method=method, n_steps=3))


@pytest.mark.parametrize(
    ("method", "times"), pairs(["dopri5", "heun_euler"], ["two", "inside", "inside, backwards"])
)
def test_chunks_join_without_a_seam(method, times, monkeypatch):
    monkeypatch.setattr(run, "CHUNK_BYTES", 1)  # eight steps a chunk
    f, weights, y0 = net()
    eager, compiled = both(f, y0, TIMES[times], weights, method=method, dt_max=0.1)
    assert compiled[0].stats.accepted > 16
    assert_equal(eager, compiled)
    assert_equal(*both(f, y0, TIMES[times], weights, method=method, n_steps=21))


@pytest.mark.parametrize(
    "options",
    [
        {"dt0": 0.01, "dt_max": 0.1},
        {"dt_min": 0.02, "rtol": 1e-3},
        {"norm": "max"},
        {"rtol": torch.tensor([1e-3, 1e-6], dtype=torch.float64)},
        {"control": Adaptive(rtol=1e-4, pid=torchaca.PI_CONTROL)},
        {"control": Adaptive(rtol=1e-5, pid=torchaca.PID_CONTROL, safety=0.8, factor_max=3.0)},
        {"control": Adaptive(rtol=1e-9, dt_min=0.1, accept_at_dt_min=True)},
        {"control": Adaptive(rtol=1e-4, stop_ts=(0.5, 0.505))},
    ],
    ids="-".join,
)
def test_controls_equal_the_eager_loop(options):
    f, weights, y0 = net()
    assert_equal(*both(f, y0, TIMES["inside"], weights, **options))


def test_rejected_steps_are_counted_and_leave_nothing():
    k = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64)
    for method in ("dopri5", "heun_euler", "fehlberg5"):
        options = {"method": method, "rtol": 1e-3, "dt0": 0.5}
        eager, compiled = both(lambda t, y: -k * torch.cos(k * t) * y, y0, TIMES["inside"], (k,), **options)
        assert compiled[0].stats.rejected >= 1
        assert_equal(eager, compiled)


@pytest.mark.parametrize("norm", ["rms", "mixed"])
def test_nested_states(norm):
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = {"x": torch.ones(2), "v": (torch.randn(3, 2, dtype=torch.float64),)}

    def f(t, y):
        return {"x": -k.float() * y["x"], "v": (y["v"][0] * torch.sin(t) - k,)}

    assert_equal(*both(f, y0, TIMES["inside"], (k,), norm=norm), 1e-6)


def test_everything_that_f_may_read():
    captured = torch.randn(2, dtype=torch.float64, requires_grad=True)
    made = captured.exp()  # a tensor with a history, captured beside what it was made from
    frozen = torch.randn(2, dtype=torch.float64)
    scale, unused = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y0 = torch.randn(3, 2, dtype=torch.float64)

    def f(t, y, inputs, shift):
        return -made * y * inputs["scale"] + captured * frozen * t - shift * y0

    options = {"args": ({"scale": scale, "unused": unused}, 0.3)}
    assert_equal(*both(f, y0, TIMES["inside"], (captured, scale, unused), **options))


FAILURES = {
    "max-steps": (lambda t, y: -y, {"max_steps": 7, "rtol": 1e-9}),
    "blow-up": (lambda t, y: y * y, {}),
    "f": (lambda t, y: torch.sqrt(1 - t) * y, {}),
    "dt-min": (lambda t, y: torch.cos(40 * t) * y, {"dt_min": 0.3, "rtol": 1e-9, "atol": 1e-9}),
}


def test_an_f_that_jumps_where_the_solution_is_is_noticed():
    """As in the eager loop: long before the steps are used up, at the end of a chunk."""

    def f(t, y):
        return torch.sin(t) - 10 * torch.sign(y)

    y0 = torch.tensor([0.5, 0.3], dtype=torch.float64)
    eager, compiled = (
        torchaca.solve(f, y0, [0.0, 2.0], on_failure="status", compile=c) for c in (False, "loops")
    )
    assert compiled.status == eager.status == "jump"
    assert "it jumps where the solution is" in str(compiled.failure)
    assert compiled.stats.accepted < 2000


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_are_those_of_the_eager_loop(kind):
    f, options = FAILURES[kind]
    y0 = torch.full((2,), 1.5, dtype=torch.float64)
    eager, compiled = both(f, y0, [0.0, 0.1, 0.2, 2.0], on_failure="status", **options)
    assert compiled[0].status == eager[0].status == kind
    assert str(compiled[0].failure)[:60] == str(eager[0].failure)[:60]
    assert all(len(sol.steps) == sol.stats.accepted + 1 for sol, _ in (eager, compiled))
    if kind == "f":  # the last steps before the edge are as small as the rounding of t: one more or less
        torch.testing.assert_close(compiled[0].ys, eager[0].ys, rtol=1e-12, atol=0)
    else:
        assert_equal(eager, compiled)
    with pytest.raises(SolverError) as raised:
        torchaca.solve(f, y0, [0.0, 0.1, 0.2, 2.0], compile="loops", **options)
    assert len(raised.value.partial.ys) == len(eager[0].ys)


def test_no_graph_where_nothing_needs_a_gradient():
    y0 = torch.ones(2, dtype=torch.float64)
    f = Net()
    with torch.no_grad():
        eager, compiled = (torchaca.solve(f, y0, TIMES["many"], compile=c) for c in (False, "loops"))
    torch.testing.assert_close(eager.ys, compiled.ys, rtol=1e-13, atol=0)
    assert eager.stats == compiled.stats
    assert not compiled.ys.requires_grad


def test_a_solve_is_two_calls_and_a_step_hands_on_few_tensors(monkeypatch):
    """One more after the first step, which the first guess has made so short that its error says nothing."""
    carried, calls = [], []
    loop, call = compiler.while_loop, run.CompiledSolve.call
    monkeypatch.setattr(
        compiler, "while_loop", lambda c, b, state: carried.append(len(state)) or loop(c, b, state)
    )
    monkeypatch.setattr(run.CompiledSolve, "call", lambda *args: calls.append(args[1]) or call(*args))
    f, weights, y0 = net()
    for times in ("two", "inside"):
        for _ in range(2):
            carried.clear()
            calls.clear()
            grads_of(torchaca.solve(f, y0, TIMES[times], rtol=1e-4, compile="loops").ys, weights)
        assert calls == ["search", "search", ("sweep", (False, *(True,) * len(weights)))]
        # y, f0 and the numbers of the search; backward n, lam, weights, and f0 where outputs inside steps need it
        assert carried == [3, 3, 2 + len(weights) + (times == "inside")]


@pytest.mark.filterwarnings("ignore:t holds a single time")
def test_equal_times_and_a_single_time():
    y0 = torch.ones(2, dtype=torch.float64)
    for t in ([1.0], [1.0, 1.0]):
        assert torch.equal(torchaca.solve(Net(), y0, t, compile="loops").ys, y0.expand(len(t), 2))


def grads_of(ys, wrt, **options):
    return torch.autograd.grad(ys.square().sum(), wrt, **options)


def test_the_graph_can_be_walked_twice_but_not_differentiated():
    f, weights, y0 = net()
    sol = torchaca.solve(f, y0.requires_grad_(), TIMES["inside"], compile="loops")
    first = grads_of(sol.ys, weights, retain_graph=True)
    cost = sol.stats.nfe_backward
    assert all(torch.equal(a, b) for a, b in zip(first, grads_of(sol.ys, weights, retain_graph=True)))
    assert sol.stats.nfe_backward == 2 * cost
    (grad,) = grads_of(sol.ys, y0, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of a compiled solve"):
        grad.sum().backward()


def test_weights_that_changed_before_backward_are_an_error():
    f, weights, y0 = net()
    ys = torchaca.solve(f, y0, [0.0, 1.0], compile="loops").ys
    with torch.no_grad():
        weights[0].add_(1.0)
    with pytest.raises(
        RuntimeError, match=r"changed in place.*call backward\(\) first.*modified by an inplace"
    ):
        grads_of(ys, weights)


def test_the_other_doors_compile_as_well():
    f, _, y0 = net()
    block = torchaca.NeuralODE(f, t=(0.0, 2.0), rtol=1e-5, compile="loops")
    torch.testing.assert_close(block(y0), torchaca.NeuralODE(f, t=(0.0, 2.0), rtol=1e-5)(y0))
    t, pair = torch.linspace(0, 1, 4), (torch.ones(2), torch.ones(3))
    found = [
        torchaca.odeint(lambda t, y: (-y[0], y[1].sin()), pair, t, rtol=1e-4, atol=1e-4, compile=compiled)
        for compiled in ("loops", False)
    ]
    torch.testing.assert_close(*found)
    plain = torchaca.odeint(f, y0, t.double(), method="rk4", compile="loops")
    torch.testing.assert_close(plain, torchaca.odeint(f, y0, t.double(), method="rk4"))


def test_a_captured_initial_state_stays_a_constant():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ends = [
        torchaca.solve(lambda t, y: y0 - y, 1.0 * y0, [0.0, 1.0], compile=c).ys[-1] for c in ("loops", False)
    ]
    grads = [torch.autograd.grad(end.sum(), y0)[0] for end in ends]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=0)
    same = torchaca.solve(lambda t, y: 2 * y0 - y, y0, [0.0, 1.0], compile="loops").ys[-1]
    torch.testing.assert_close(same, torchaca.solve(lambda t, y: 2 * y0 - y, y0, [0.0, 1.0]).ys[-1])


NEAR = [0.5 + i * math.ulp(0.5) for i in range(-2, 12)]


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.5, 0.0], [0.5, 0.5 + math.ulp(0.5)]], ids=str)
def test_jumps_and_ends_as_near_as_rounding(times):
    y0 = torch.ones(2, dtype=torch.float64)
    assert_equal(*both(lambda t, y: torch.where(t < 0.5, 1.0, -2.0) * y, y0, times, jump_ts=NEAR))


@pytest.mark.parametrize("options", [{}, {"n_steps": 5}], ids=str)
def test_times_that_float32_cannot_resolve(options):
    f, y0 = Net(dtype=torch.float32), torch.zeros(2)
    with pytest.warns(UserWarning, match="cannot tell the stages of a step apart") as caught:
        torchaca.solve(f, y0, [1.7e9, 1.7e9 + 10.0], compile="loops", **options)
    assert len(caught) == 1


def test_the_first_step_is_one_that_the_time_resolves():
    y0 = torch.zeros(2, dtype=torch.float64)
    assert_equal(*both(lambda t, y: 1 - y, y0, [1.7e9, 1.7e9 + 10.0], rtol=1e-5))
