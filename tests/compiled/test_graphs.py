"""`compile="steps"`: the eager loop with graphs for steps, against the eager loop."""

import warnings

import pytest
import torch
from compiled_helpers import Conv, Net, assert_equal, both, loss_of
from covering import pairs
from torch import nn

import torchaca
from torchaca import ACA, METHODS, SolverError, solve
from torchaca.compiled import graphs

DOUBLE = torch.float64
interpreted = pytest.mark.usefixtures("interpreted")


def assert_same(f, y0, wrt=(), t=(0.0, 0.4, 1.0), tolerance=1e-12, **options):
    assert_equal(*both(f, y0, list(t), wrt, "steps", **options), tolerance)


def start(*shape, dtype=DOUBLE):
    return torch.randn(*(shape or (3, 2)), dtype=dtype)


@interpreted
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if hasattr(method, "weights")])
def test_every_method(name):
    f = Net()
    fixed = {} if METHODS[name].adaptive else {"n_steps": 5}
    assert_same(f, start(), tuple(f.parameters()), method=name, **fixed)


@interpreted
@pytest.mark.parametrize("name", ["dopri5", "dopri8", "heun_euler"])
def test_fixed_steps(name):
    f = Net()
    assert_same(f, start(), tuple(f.parameters()), method=name, n_steps=4)
    assert_same(f, start(), tuple(f.parameters()), method=name, grid=[0.0, 0.3, 0.35, 1.0])


@interpreted
@pytest.mark.parametrize(
    ("name", "gradient"),
    pairs(
        ["dopri5", "heun_euler"],
        ["direct", "naive", *(ACA(checkpoints=kept) for kept in ("none", "sqrt", "binomial", 3))],
    ),
    ids=str,
)
def test_gradients(gradient, name):
    f = Net()
    assert_same(f, start(), tuple(f.parameters()), method=name, rtol=1e-4, gradient=gradient)


@interpreted
def test_refined_until_the_gradient_is_accurate():
    f = Net()
    eager, compiled = both(
        f, start(), [0.0, 1.0], tuple(f.parameters()), "steps", gradient=ACA(grad_rtol=1e-5), rtol=1e-2
    )
    stats = [solution.stats for solution, _ in (eager, compiled)]
    errors = [one.gradient_error for one in stats]
    assert errors[1] == pytest.approx(errors[0], rel=1e-6)
    stats[1].gradient_error = errors[0]
    assert_equal(eager, compiled, 1e-11)


@interpreted
def test_backwards_in_time_with_rejections_in_small_steps():
    f = Net()
    eager, compiled = both(f, 4 * start(), [1.0, 0.0], tuple(f.parameters()), "steps", rtol=1e-7, dt0=1.0)
    assert eager[0].stats.rejected > 0
    assert_equal(eager, compiled)


@interpreted
def test_nested_states_and_arguments():
    weight = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    rate, shift = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (0.7, 0.2))

    def f(t, y, rate, rest):
        return {"a": torch.tanh(y["a"] @ weight) * rate, "b": (y["a"].sum() - y["b"]) * rest["shift"][0] * t}

    y0 = {"a": start(), "b": torch.tensor(1.0, dtype=DOUBLE)}
    assert_same(f, y0, (weight, rate, shift), args=(rate, {"shift": [shift, 3]}))


@interpreted
def test_convolutions_with_buffers_and_parametrizations():
    f = Conv().double().eval()
    y0 = start(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert_same(f, y0, tuple(f.parameters()), method="heun_euler", rtol=1e-2)


@interpreted
def test_an_argument_that_f_captures_as_well():
    rate = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    assert_same(lambda t, y, k: rate * y + torch.sin(k * y), start(), (rate,), args=(rate,))


@interpreted
def test_a_captured_tensor_with_a_history():
    """As a captured tensor it is for the eager loop, as an argument it is not."""
    rate = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    square = rate * rate
    y0 = start().requires_grad_()
    with pytest.warns(UserWarning, match="f captures a tensor computed from others"):
        sol = solve(lambda t, y: torch.sin(square * y) * t, y0, [0.0, 1.0], compile="steps")
    grads = torch.autograd.grad(sol.ys[-1].sum(), (y0, rate), retain_graph=True)
    f = lambda t, y, k: torch.sin(k * y) * t  # noqa: E731
    sol = solve(f, y0, [0.0, 1.0], args=(square,), compile="steps")
    torch.testing.assert_close(torch.autograd.grad(sol.ys[-1].sum(), (y0, rate)), grads)


@interpreted
@pytest.mark.parametrize("options", [{}, {"n_steps": 3}])
def test_gradients_of_times(options):
    times = torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE, requires_grad=True)
    f = Net()
    found = []
    for how in (False, "steps"):
        own = {"gradient": ACA(checkpoints="all"), "compile": how, **options}
        sol = solve(f, torch.ones(3, 2, dtype=DOUBLE), times, **own)
        found.append((sol, torch.autograd.grad(loss_of(sol.ys), (times, *f.parameters()))))
    assert_equal(*found)


@interpreted
def test_dense_output_debugging_and_norms_of_your_own():
    f = Net()
    options = {"dense": True, "debug": True, "norm": lambda y: y.abs().amax()}
    (a, _), (b, _) = both(f, start(), [0.0, 1.0], tuple(f.parameters()), "steps", **options)
    torch.testing.assert_close(b([0.3, 0.9]), a([0.3, 0.9]), rtol=1e-12, atol=1e-12)


@interpreted
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    f, y0 = Net(), start()
    with context():
        eager, compiled = (solve(f, y0, [0.0, 1.0], compile=how) for how in (False, "steps"))
    assert compiled.stats == eager.stats
    torch.testing.assert_close(compiled.ys, eager.ys, rtol=1e-12, atol=1e-12)


@interpreted
def test_errors_are_those_of_the_eager_loop():
    with pytest.raises(SolverError) as eager:
        solve(lambda t, y: y * y, torch.ones(1), [0.0, 2.0])
    with pytest.raises(SolverError) as compiled:
        solve(lambda t, y: y * y, torch.ones(1), [0.0, 2.0], compile="steps")
    assert compiled.value.kind == eager.value.kind


# With the compiler:


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        pytest.param(DOUBLE, {"method": "rk4", "n_steps": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_with_autograd(dtype, options):
    f = Net(dtype=dtype)
    tolerance = 1e-12 if dtype == DOUBLE else 1e-6
    assert_same(f, start(dtype=dtype), tuple(f.parameters()), tolerance=tolerance, **options)


@pytest.mark.usefixtures("either_backend")
def test_compiled_once(monkeypatch):
    """Other times, tolerances, weights and, after the second, batch sizes: no other graphs."""
    made, build = [], graphs._graph
    monkeypatch.setattr(graphs, "_graph", lambda *args: made.append(args) or build(*args))

    class Own(Net):  # its graphs are new
        pass

    f = Own()

    def train(y0, t, **options):
        loss_of(solve(f, y0, t, compile="steps", **options).ys).backward()
        with torch.no_grad():
            for p in f.parameters():
                p -= 0.01 * p.grad

    train(start(3, 2), [0.0, 1.0])
    assert len(made) == 2  # a trial, a replay
    train(start(3, 2), [1.0, 0.0], rtol=1e-5, dt0=0.01)
    train(start(3, 2), [0.0, 0.3, 0.6])
    assert len(made) == 2
    train(start(5, 2), [0.0, 1.0])
    train(start(8, 2), [0.0, 1.0])
    train(start(13, 2), [0.0, 1.0])
    assert len(made) == 4


@pytest.mark.usefixtures("either_backend")
def test_a_solution_that_is_differentiated_twice():
    """A loss goes back as often as it likes; second derivatives are refused in words."""
    f = Net()
    assert_same(f, start(), tuple(f.parameters()), method="heun2", n_steps=3)  # `both` retains the graph
    for gradient in ("direct", "aca"):
        ys = solve(f, start(), [0.0, 1.0], method="heun2", n_steps=3, compile="steps", gradient=gradient).ys
        loss, weights = loss_of(ys), tuple(f.parameters())
        once, again = (torch.autograd.grad(loss, weights, retain_graph=True) for _ in range(2))
        torch.testing.assert_close(again, once, rtol=0, atol=0)
        with pytest.raises(NotImplementedError, match=r"second derivatives .* use compile=False"):
            torch.autograd.grad(loss, weights, create_graph=True)[0].sum().backward()


@pytest.mark.usefixtures("either_backend")
def test_whatever_requires_gradients():
    """A graph for each case: none of them is compiled a second time, which PyTorch does a few times only."""
    f = Net(hidden=3)

    def check(y0, times, wanted):
        found = []
        for how in (False, "steps"):
            ys = solve(f, y0, times, method="euler", n_steps=3, gradient="direct", compile=how).ys
            found.append(torch.autograd.grad(loss_of(ys), wanted))
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)

    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for i in (None, 0):
            for n, weight in enumerate(f.parameters()):
                weight.requires_grad_(n != i)
            check(start(), [0.0, 1.0], [weight for weight in f.parameters() if weight.requires_grad])
        times = torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
        for y0 in (start(), start().requires_grad_()):
            check(y0, times, [times])


@pytest.mark.usefixtures("either_backend")
def test_one_graph_for_all_sizes_of_a_batch():
    """Also where the state of a step is what another graph has returned."""
    f = Net(hidden=3)
    for n in (4, 7, 9):  # the second one shows that sizes change
        y0 = torch.randn(n, 2, dtype=DOUBLE)
        with torch._dynamo.config.patch(recompile_limit=1 if n > 7 else 2, fail_on_recompile_limit_hit=True):
            ys = solve(f, y0, [0.0, 1.0], method="euler", n_steps=3, gradient="direct", compile="steps").ys
        torch.autograd.grad(ys.sum(), tuple(f.parameters()))


@pytest.mark.usefixtures("either_backend")
def test_under_autocast():
    f = Net(dtype=torch.float32)
    y0 = start(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (a, grads), (b, compiled) = both(
            f, y0, [0.0, 1.0], tuple(f.parameters()), "steps", method="rk4", n_steps=3
        )
    torch.testing.assert_close(b.ys, a.ys, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(compiled, grads, rtol=5e-2, atol=5e-2)
    assert a.stats == b.stats


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda t, y: -y if y.sum() > 0 else y, "cannot be traced"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()).double(), "draws random numbers"),
    ],
)
def test_what_cannot_be_traced_runs_without_graphs(f, why):
    g = f if not isinstance(f, nn.Module) else lambda t, y: f(y)
    with pytest.warns(
        UserWarning, match=f"compile='steps': .*{why}.*; this solve runs without graphs"
    ) as seen:
        sol = solve(g, torch.ones(3, 2, dtype=DOUBLE), [0.0, 0.1], method="rk4", n_steps=4, compile="steps")
    assert sol.stats.accepted == 4
    assert sum("compile=" in str(w.message) for w in seen) == 1


def test_a_compiler_that_fails(monkeypatch):
    def fail(function, *, forward):
        def call(*args):
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(graphs.compiler, "compiled", fail)

    def f(t, y):
        return -y * t

    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    for _ in range(2):
        with pytest.warns(UserWarning, match="the compiler failed .no compiler here."):
            sol = solve(f, y0, [0.0, 1.0], compile="steps")
    assert sol.stats == solve(f, y0, [0.0, 1.0]).stats


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"compile": "step"}, "compile is True, False, 'native', 'loops', 'steps' or 'cuda-graphs', got"),
        ({"compile": "cuda-graphs"}, "is for a GPU, and y0 is on 'cpu'"),
        ({"gradient": "adjoint"}, "gradient='adjoint' integrates backwards"),
        ({"gradient": "mali", "method": "reversible_heun", "n_steps": 3}, "explicit Runge-Kutta methods"),
        ({"gradient": ACA(stagewise=True)}, "stagewise=True replays stages"),
        ({"jump_ts": [0.5]}, "f that jump"),
    ],
)
def test_what_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], **{"compile": "steps", **options})


@pytest.mark.usefixtures("either_backend")
def test_the_other_front_doors():
    y0, t = start(), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    f = Net()
    block = torchaca.NeuralODE(f, t=[0.0, 1.0], compile="steps", rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(block(y0), solve(f, y0, t, rtol=1e-4).ys[-1], rtol=1e-10, atol=1e-10)
        tampered = block(y0)
        got = torchaca.odeint(f, y0, t, rtol=1e-4, compile="steps")
        torch.testing.assert_close(got, torchaca.odeint(f, y0, t, rtol=1e-4), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        next(f.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match=r"changed in place.*call backward\(\) first"):
        tampered.sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", ["steps", "cuda-graphs"])
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "n_steps": 6}], ids=["adaptive", "fixed"])
def test_on_a_gpu(how, options):
    f = Net().cuda()
    for _ in range(3):  # a CUDA graph is recorded in the second call
        assert_equal(*both(f, start().cuda(), [0.0, 0.4, 1.0], tuple(f.parameters()), how, **options), 1e-10)
