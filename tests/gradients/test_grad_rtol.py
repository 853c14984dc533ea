"""`ACA(grad_rtol=...)`: a gradient that is right, an estimate that can be believed, and what it refuses."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from covering import covering
from gradient_cases import DOUBLE, Counter, Everything, assert_same, differences, gradients_of
from torch import Tensor, nn

import torchaca
from torchaca import ACA, METHODS, Adaptive, Solution, SolverError, solve
from torchaca.core import Problem
from torchaca.gradients import comparison
from torchaca.gradients.comparison import Found
from torchaca.lab.three_body.problem import ThreeBody, initial_state
from torchaca.loops.outputs import gather

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "squares": lambda ys: ys[-1].square().sum(),
    "one": lambda ys: ys[-1].reshape(-1)[0],
    "all outputs": lambda ys: (ys - 0.7).abs().mean(),
    "log": lambda ys: (1 + ys.square()).log().sum(),
}


@dataclass(frozen=True)
class Case:
    """A problem, the inputs whose gradients count, and a tolerance at which they are poor."""

    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    t: list[float]
    inputs: dict[str, Tensor]
    tolerance: float = 1e-3

    def solve(self, **options: Any) -> Solution:
        given = {"rtol": self.tolerance, "atol": self.tolerance, "at_rest": "ignore"}
        fixed = options.keys() & {"dt", "n_steps", "grid", "control", "rtol"}
        return solve(self.f, self.y0, self.t, **({} if fixed else given), **options)

    def gradient(self, sol: Solution, loss: str) -> list[Tensor]:
        """Those of all inputs in double precision."""
        leaves = list(self.inputs.values())
        return [g.double() for g in torch.autograd.grad(LOSSES[loss](sol.ys), leaves, retain_graph=True)]


def worst(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest relative error of a gradient over inputs."""
    return torch.stack([(a - b).norm() / b.norm() for a, b in zip(got, want, strict=True)]).max().item()


def leaf(*numbers: float, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.tensor(numbers if len(numbers) > 1 else numbers[0], dtype=dtype, requires_grad=True)


def network(dtype: torch.dtype = DOUBLE) -> Case:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    y0 = torch.randn(5, 4).to(dtype).requires_grad_()
    return Case(
        lambda t, y: 2 * net(y) * torch.cos(3 * t),
        y0,
        [0.0, 3.0],
        {"y0": y0, **dict(net.named_parameters())},
    )


def relaxation(dtype: torch.dtype = DOUBLE) -> Case:
    k, y0 = leaf(50.0, dtype=dtype), torch.ones(1, dtype=dtype)
    return Case(lambda t, y: -k * (y - torch.cos(t)), y0, [0.0, 2.0], {"k": k})


def pendulum(dtype: torch.dtype = DOUBLE) -> Case:
    """Backwards in time, with many outputs."""
    y0, p = leaf(1.0, 0.0, dtype=dtype), leaf(0.2, 0.5, dtype=dtype)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -torch.sin(y[0]) - p[0] * y[1] + p[1] * torch.cos(2 * t)])

    return Case(f, y0, torch.linspace(3.0, 0.0, 8).tolist(), {"y0": y0, "p": p})


def prey(dtype: torch.dtype = DOUBLE) -> Case:
    y0, k = leaf(1.5, 0.8, dtype=dtype), leaf(1.0, 1.0, dtype=dtype)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0] * (1 - k[0] * y[1]), y[1] * (k[1] * y[0] - 1)])

    return Case(f, y0, [0.0, 3.0, 8.0], {"y0": y0, "k": k})


def van_der_pol(dtype: torch.dtype = DOUBLE) -> Case:
    y0, mu = leaf(2.0, 0.0, dtype=dtype), leaf(0.15, dtype=dtype)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], (mu - y[0] ** 2) * y[1] - y[0]])

    return Case(f, y0, [0.0, 12.0], {"y0": y0, "mu": mu})


def decay(dtype: torch.dtype = DOUBLE) -> Case:
    """The gradient of the last output is tiny, and its relative error large."""
    y0, k = leaf(1.0, 2.0, dtype=dtype), leaf(-1.0, dtype=dtype)
    return Case(lambda t, y: k * y, y0, [0.0, 2.0, 10.0], {"y0": y0, "k": k})


CASES = {c.__name__.replace("_", " "): c for c in (network, relaxation, pendulum, prey, van_der_pol, decay)}


# --- what it promises ---


def test_three_bodies():
    """Every plain gradient is off by more than its own size."""
    system = ThreeBody(torch.ones(3, dtype=DOUBLE))

    def gradient(how: Any, **options: Any) -> tuple[Tensor, Solution]:
        sol = solve(system, initial_state(), [0.0, 1.0], gradient=how, **options)
        return torch.autograd.grad(sol.ys[-1, :3].square().sum(), system.masses)[0], sol

    true, _ = gradient("direct", method="dopri8", rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(true, torch.tensor([-1.36, -2.02, 3.54], dtype=DOUBLE), rtol=0, atol=0.01)
    plain, _ = gradient("aca", rtol=1e-5, atol=1e-5)
    assert (plain - true).norm() > 1.5 * true.norm()
    refined, sol = gradient(ACA(grad_rtol=1e-2), rtol=1e-5, atol=1e-5)
    error = ((refined - true).norm() / true.norm()).item()
    assert error < 0.01
    assert error / 3 < sol.stats.gradient_error < min(0.01, 10 * error)


def accurate(
    case: Case, goal: float, want: dict[str, list[Tensor]], honest: float = 3.0, **options: Any
) -> Solution:
    """A solve whose gradients are as accurate as they have to be and are said to be, each backward pass its own."""
    sol = case.solve(gradient=ACA(grad_rtol=goal), **options)
    assert sol.stats.gradient_error is None
    for loss, truth in want.items():
        error, estimate = worst(case.gradient(sol, loss), truth), sol.stats.gradient_error
        assert error <= goal, loss
        assert estimate is not None
        assert estimate <= goal
        assert estimate >= error / honest or error < goal / 100, (loss, error, estimate.parts)
    return sol


def truth(case: Case) -> dict[str, list[Tensor]]:
    """Steps end at the outputs, whose interpolation would be the largest error."""
    control = Adaptive(1e-10, 1e-10, stop_ts=tuple(case.t))
    sol = case.solve(gradient="direct", method="dopri8", control=control)
    return {loss: case.gradient(sol, loss) for loss in LOSSES}


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_the_error(name):
    case = CASES[name]()
    want = truth(case)
    accurate(case, 1e-3, want)
    plain = case.solve()
    assert max(worst(case.gradient(plain, loss), want[loss]) for loss in LOSSES) > 1e-3


@pytest.mark.parametrize("name", ["network", "decay"])
def test_single_precision(name):
    exact, single = CASES[name](), CASES[name](torch.float32)
    for mine, theirs in zip(single.inputs.values(), exact.inputs.values(), strict=True):
        theirs.data.copy_(mine)
    accurate(single, 1e-3, truth(exact))


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    """On its own steps where it can choose them, else on given ones."""
    case = pendulum()
    own = METHODS[method].adaptive
    goal = 0.1 if METHODS[method].order < 2 else 1e-2
    options = {"rtol": 1e-3, "atol": 1e-4} if own else {"n_steps": 12}
    accurate(case, goal, truth(case), method=method, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rk4", "n_steps": 3},
        {"method": "rk4", "dt": 0.28},
        {"method": "rk4", "dt": 7.0},
        {"method": "rk4", "control": torchaca.FixedSteps()},
        {"method": "dopri5", "grid": [3.0, 2.5, 1.5, 0.7, 0.0]},
        {"control": Adaptive(1e-2, 1e-2, dt_max=0.2)},
        {"control": Adaptive(1e-6, 1e-6, dt_min=0.5, accept_at_dt_min=True)},
        {"rtol": 1e-3, "jump_ts": [1.0, 0.5]},
    ],
    ids=str,
)
def test_steps_of_every_kind(options):
    """Adaptive ones, given ones, and those that are longer than the time span."""
    case = pendulum()
    sol = accurate(case, 5e-3, truth(case), **options)
    plain = case.solve(**options)
    assert set(plain.steps) <= set(sol.steps)


# --- where steps are too long for their derivative ---


def oscillator(**options: Any) -> tuple[float, Solution]:
    """d x(20) / d a of a damped oscillator at rest under a force a cos 3t, at a = 0: 0.134646."""
    force = leaf(0.0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + force * torch.cos(3 * t)])

    sol = solve(f, torch.zeros(2, dtype=DOUBLE), [0.0, 20.0], **options)
    return torch.autograd.grad(sol.ys[-1, 0], force)[0].item(), sol


@pytest.mark.parametrize("method", METHODS)
def test_at_rest(method):
    """Nothing moves, so that every step is right for y, and ten of them make 20 units of time."""
    own = METHODS[method].adaptive
    options = {"rtol": 1e-6, "atol": 1e-9, "dt0": 1e-3, "at_rest": "ignore"} if own else {"n_steps": 4}
    goal = 0.3 if METHODS[method].order < 2 else 0.05
    found, sol = oscillator(method=method, gradient=ACA(grad_rtol=goal), **options)
    assert abs(found / 0.134646 - 1) < goal
    assert sol.stats.gradient_error <= goal
    if METHODS[method].order > 3:
        assert found == pytest.approx(0.134646, rel=3 * sol.stats.gradient_error)


def test_the_parts_say_what_to_do():
    _, sol = oscillator(rtol=1e-6, atol=1e-9, at_rest="ignore", gradient=ACA(grad_rtol=1e-2))
    error = sol.stats.gradient_error
    assert error.largest == "steps too long for the derivative"
    assert "substeps" in error.remedy
    assert sum(error.parts.values()) == pytest.approx(error)
    again = pickle.loads(pickle.dumps(copy.deepcopy(error)))
    assert (again, again.parts) == (error, error.parts)


def test_a_small_gradient_does_not_hide_behind_a_large_one():
    strong, weak = leaf(1.0), leaf(3.0)

    def f(t: Tensor, y: Tensor) -> Tensor:  # the first is integrated exactly
        return torch.stack([1e6 * strong * t, torch.sin(weak * y[1] * t)])

    case = Case(f, torch.ones(2, dtype=DOUBLE), [0.0, 3.0], {"strong": strong, "weak": weak}, 1e-2)

    def error(sol: Solution) -> float:
        got, want = (torch.autograd.grad(s.ys[-1].sum(), weak, retain_graph=True)[0] for s in (sol, exact))
        return abs(got / want - 1).item()

    exact = case.solve(gradient="direct", rtol=1e-12, method="dopri8")
    assert error(case.solve()) > 1e-2
    assert error(case.solve(gradient=ACA(grad_rtol=1e-4))) < 1e-4


@pytest.mark.filterwarnings("ignore::torchaca.errors.GradientWarning")
def test_a_state_below_its_tolerance():
    """No step of the solve is resolved, and coarse levels of its outputs agree by accident."""
    y0, force = leaf(-9.7e-11, -7.6e-11), leaf(3e-11)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + force * torch.cos(2 * t)])

    case = Case(f, y0, [0.0, 20.0], {"y0": y0, "force": force})
    exact = case.solve(gradient="direct", method="dopri8", n_steps=80)
    want = case.gradient(exact, "squares")
    assert worst(case.gradient(case.solve(rtol=1e-8, atol=1e-9, at_rest="ignore"), "squares"), want) > 1
    for goal in (1e-1, 1e-2, 1e-3):
        sol = case.solve(rtol=1e-8, atol=1e-9, at_rest="ignore", gradient=ACA(grad_rtol=goal))
        error = worst(case.gradient(sol, "squares"), want)
        assert error <= goal
        assert sol.stats.gradient_error >= error / 3


@pytest.mark.filterwarnings("ignore:SolverError")
@pytest.mark.parametrize("goal", [0.1, 0.01])
def test_a_gradient_that_is_small_beside_its_summands(goal):
    """It is as much more wrong than the outputs as it is smaller: the part of these is what they make of it."""
    k, rate = leaf(1.0), torch.tensor([1.0, -0.5], dtype=DOUBLE)
    case = Case(
        lambda t, y: k * rate * y * torch.cos(k * t), torch.ones(2, dtype=DOUBLE), [0.0, 4.0], {"k": k}
    )
    exact = case.solve(gradient="direct", method="dopri8", n_steps=40)
    up, down = (torch.autograd.grad(exact.ys[-1, i] ** 2, k, retain_graph=True)[0] for i in range(2))

    def gradient(sol: Solution) -> Tensor:  # 3 % of its two summands
        loss = sol.ys[-1, 0] ** 2 / up - 0.97 * sol.ys[-1, 1] ** 2 / down
        return torch.autograd.grad(loss, k)[0]

    sol = case.solve(gradient=ACA(grad_rtol=goal), method="bosh3", on_failure="status")
    error = abs(gradient(sol) / gradient(exact) - 1).item()
    assert sol.stats.gradient_error >= error / 6
    assert error <= goal or sol.stats.gradient_error.largest == "outputs"


def test_a_conserved_sum_of_squares():
    """The gradient of the first probe would be zero, and its relative error would never fall."""
    w = leaf(1.0, -2.0)
    y0 = torch.tensor([1, 0.5 + 0.5j], dtype=torch.complex128, requires_grad=True)

    def gradients(**options: Any) -> dict[str, Any]:
        sol = solve(lambda t, y: 1j * w * y * (1 + 0.3 * y.abs().square()), y0, [0.0, 3.0], **options)
        return gradients_of(sol.ys[-1], {"w": w, "y0": y0})

    want = gradients(rtol=1e-10, atol=1e-10, gradient="direct")
    assert_same(gradients(rtol=1e-2, max_steps=100, gradient=ACA(grad_rtol=1e-3)), want, 1e-3)


# --- of what it is the gradient ---


@pytest.fixture
def found(monkeypatch):
    """What the backward passes found."""
    seen: list[Found] = []
    settled = comparison.Comparison.settled

    def noted(self: comparison.Comparison) -> Found:
        seen.append(settled(self))
        return seen[-1]

    monkeypatch.setattr(comparison.Comparison, "settled", noted)
    return seen


@dataclass(frozen=True)
class Redone:
    """A gradient that records the steps of which another one was the derivative."""

    march: Any
    name: str = "redone"
    exact, records = False, True

    def __call__(self, p: Problem, inputs: Any) -> Any:
        return gather(p, self.march(p))


TIMES = {"inside": [0.0, 0.1, 0.6, 1.5], "decreasing": [1.5, 0.7, 0.3, 0.0], "end": [0.0, 1.5]}
SETTINGS = [{}, {"checkpoints": 4}, {"checkpoints": "binomial"}, {"checkpoints": "sqrt", "stagewise": True}]


@pytest.mark.parametrize(
    ("method", "times", "wanted", "setting", "fixed"),
    covering(METHODS, TIMES, [True, False], range(len(SETTINGS)), [True, False], strength=2),
)
def test_it_is_the_gradient_of_its_last_sweep(found, method, times, wanted, setting, fixed):
    """Nested state, arguments, captured tensors with and without history, times; repaired steps or finer ones."""
    options = {"n_steps": 3} if fixed or not METHODS[method].adaptive else {"rtol": 1e-2, "atol": 1e-2}
    case = Everything(TIMES[times], wanted)
    sol = case.solve(ACA(grad_rtol=0.3, **SETTINGS[setting]), method=method, **options)
    got = gradients_of(sol.ys, case.inputs)
    values = {name: y.detach() for name, y in sol.ys.items()}
    (last,) = found
    again = case.solve(Redone(last.redone), method=method, **options)
    ys = {name: y + (values[name] - y).detach() for name, y in again.ys.items()}
    assert_same(got, gradients_of(ys, case.inputs), 1e-10)
    assert sol.stats.nfe_backward > 0


@pytest.mark.parametrize("fixed", [True, False])
def test_dense_output_and_times(fixed):
    case = Everything([0.0, 0.1, 0.6, 1.5])
    options = {"n_steps": 4} if fixed else {"rtol": 1e-3, "atol": 1e-3}
    sol = case.solve(ACA(grad_rtol=1e-3), dense=True, **options)
    got = gradients_of((sol.ys, sol(0.83)), case.inputs)
    fine = case.solve("direct", n_steps=200, dense=True)
    assert max(differences(got, gradients_of((fine.ys, fine(0.83)), case.inputs)).values()) < 5e-3


@pytest.mark.parametrize("options", [{}, {"n_steps": 5}], ids=["adaptive", "fixed"])
def test_second_derivatives(found, options):
    case = prey()
    sol = case.solve(gradient=ACA(grad_rtol=1e-2), **options)
    wanted = torch.tensor(
        [0.7, -1.3], dtype=DOUBLE
    )  # of a loss that is linear: another one asks for two sweeps
    first = torch.autograd.grad((wanted * sol.ys[-1]).sum(), case.y0, create_graph=True)[0]
    again = case.solve(gradient=Redone(found[0].redone), **options)
    ys = again.ys + (sol.ys - again.ys).detach()
    want = torch.autograd.grad((wanted * ys[-1]).sum(), case.y0, create_graph=True)[0]
    got, right = (gradients_of(x.square().sum(), case.inputs, lambda x: x) for x in (first, want))
    assert_same(got, right, 1e-9)


def test_second_derivatives_of_dense_output_are_refused():
    case = prey()
    sol = case.solve(gradient=ACA(grad_rtol=1e-1), dense=True)
    (first,) = torch.autograd.grad(sol(1.3).sum(), case.y0, create_graph=True)
    with pytest.raises(NotImplementedError, match="give these times in t"):
        first.sum().backward()


def test_several_at_once_are_refused():
    case = prey()
    sol = case.solve(gradient=ACA(grad_rtol=1e-1))
    with pytest.raises(NotImplementedError, match="several are asked for at once"):
        torch.autograd.grad(sol.ys[-1], case.y0, torch.eye(2, dtype=DOUBLE), is_grads_batched=True)


# --- what it costs ---


def test_every_evaluation_counts():
    case = pendulum()
    f = Counter(case.f)
    sol = solve(f, case.y0, [3.0, 0.0], rtol=1e-4, gradient=ACA(grad_rtol=1e-3))
    forward = f.calls
    assert (sol.stats.nfe, sol.stats.nfe_backward) == (forward, 0)
    assert sol.stats.accepted == len(sol.steps) - 1
    sol.ys[-1].sum().backward()
    assert sol.stats.nfe_backward == f.calls - forward
    assert sol.stats.accepted == len(sol.steps) - 1


def test_the_price_where_the_gradient_is_right_anyway():
    """Half of the steps again, forward and backward, and the last stage of the pair."""
    case = network()
    costs = []
    for gradient in (ACA(checkpoints="all"), ACA(grad_rtol=0.1)):
        sol = case.solve(gradient=gradient, rtol=1e-5, atol=1e-5)
        sol.ys[-1].square().sum().backward()
        costs.append(sol.stats.nfe + sol.stats.nfe_backward)
    assert sol.stats.accepted >= 8
    assert costs[1] < 1.8 * costs[0]


def test_finer_levels_cost_an_evaluation_a_stage_while_their_graphs_fit():
    options = {"method": "rk4", "n_steps": 4}
    (one, held), (other, replayed) = (
        oscillator(gradient=ACA(grad_rtol=1e-2, checkpoints=kept), **options) for kept in ("auto", "all")
    )
    assert one == pytest.approx(other, rel=1e-12)
    assert held.stats.nfe == replayed.stats.nfe
    assert held.stats.nfe_backward < 0.7 * replayed.stats.nfe_backward


def test_without_a_gradient_it_costs_nothing():
    case = pendulum()
    with torch.no_grad():
        plain, asked = case.solve(), case.solve(gradient=ACA(grad_rtol=1e-3))
    assert plain.stats == asked.stats
    assert asked.stats.gradient_error is None
    assert torch.equal(plain.ys, asked.ys)


def test_random_numbers_and_hooks_are_left_alone():
    case, fired = network(), []
    for x in case.inputs.values():
        x.register_hook(fired.append)
    state = torch.get_rng_state()
    runs = [case.solve(gradient=ACA(grad_rtol=1e-3)) for _ in range(2)]
    for sol in runs:
        torch.autograd.grad(sol.ys[-1].sum(), case.y0)
    assert torch.equal(state, torch.get_rng_state())
    assert runs[0].stats == runs[1].stats
    assert torch.equal(runs[0].ys, runs[1].ys)
    assert len(fired) == len(runs)  # of what was asked for
    assert all(x.grad is None for x in case.inputs.values())


def test_running_statistics_move_with_the_final_solve_only():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3).double()
    y0 = torch.randn(8, 3, dtype=DOUBLE, requires_grad=True)
    sol = solve(lambda t, y: torch.tanh(norm(y)), y0, [0.0, 1.0], rtol=1e-3, gradient=ACA(grad_rtol=1e-3))
    refined = norm.num_batches_tracked.item()
    norm.reset_running_stats()
    solve(lambda t, y: torch.tanh(norm(y)), y0, [0.0, 1.0], grid=sol.steps)
    assert refined == norm.num_batches_tracked.item()


# --- what it refuses ---


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])


def test_what_cannot_be_reached_is_said():
    """At the end of the forward pass if it is the outputs, in the backward pass if it is the gradient."""
    y0 = torch.tensor([1.0, 1.0, 20.0], requires_grad=True)
    options = {"rtol": 1e-4, "max_steps": 100, "gradient": ACA(grad_rtol=1e-5)}
    with pytest.raises(SolverError, match="could not be estimated on") as e:
        solve(lorenz, y0, [0.0, 2.0], **options)
    assert e.value.kind == "gradient-error"
    for words in (
        "grad_rtol=1e-05 was not reached",
        "finer steps are more than max_steps=100",
        "Try float64",
    ):
        assert words in str(e.value)
    sol = solve(lorenz, y0, [0.0, 2.0], on_failure="status", **options)
    assert sol.status == "gradient-error"
    assert sol.ys.shape == (2, 3)
    assert torch.autograd.grad(sol.ys[-1].sum(), y0)[0].isfinite().all()
    assert sol.stats.gradient_error > 1e-5


def steep(on_failure: str) -> tuple[Tensor, Solution]:
    """A gradient that is worse than its outputs."""
    system = ThreeBody(torch.ones(3, dtype=DOUBLE))
    options = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 200, "on_failure": on_failure}
    sol = solve(system, initial_state(), [0.0, 1.0], gradient=ACA(grad_rtol=0.05), **options)
    return torch.autograd.grad(sol.ys[-1, :3].square().sum(), system.masses)[0], sol


def test_what_cannot_be_reached_backwards_is_said():
    with pytest.raises(
        SolverError, match=r"is estimated as \S+ on \d+ steps \(most of it: steps too long"
    ) as e:
        steep("raise")
    assert (e.value.kind, e.value.backward) == ("gradient-error", True)
    assert "max_steps=200" in str(e.value)
    with pytest.warns(UserWarning, match="was not reached"):
        found, sol = steep("status")
    assert sol.status == "success"
    assert found.isfinite().all()
    assert sol.stats.gradient_error > 0.05


def test_rounding_is_a_floor():
    """Where two solves differ by rounding alone, the estimate is not zero."""
    case = decay(torch.float32)
    sol = solve(lambda t, y: torch.ones_like(y), case.y0, [0.0, 1.0], gradient=ACA(grad_rtol=1e-2))
    sol.ys[-1].sum().backward()
    assert torch.finfo(torch.float32).eps <= sol.stats.gradient_error < 1e-4


def test_a_field_that_changes_under_the_solve():
    noise = torch.Generator().manual_seed(1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * (1 + 0.1 * torch.rand((), generator=noise, dtype=DOUBLE))

    sol = solve(f, leaf(1.0, 2.0), [0.0, 1.0], n_steps=8, method="rk4", gradient=ACA(grad_rtol=0.5))
    with pytest.raises(RuntimeError, match="f gave other values"):
        sol.ys.sum().backward()


def test_a_failure_of_the_solve_is_its_own():
    messages = []
    for gradient in ("aca", ACA(grad_rtol=1e-2)):
        with pytest.raises(SolverError) as e:
            solve(lambda t, y: y**2, leaf(1.0, 0.5), [0.0, 2.0], gradient=gradient)
        messages.append((e.value.kind, e.value.t, e.value.stats.rejected))
    assert messages[0] == messages[1]
    with pytest.raises(SolverError, match="they are not finite"):
        solve(lambda t, y: y**3, leaf(5.0, 5.0), [0.0, 2.0], n_steps=8, gradient=ACA(grad_rtol=1e-2))


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ({"grad_rtol": 0.0}, ValueError, "between 0 and 1"),
        ({"grad_rtol": 2}, ValueError, "between 0 and 1"),
        ({"grad_rtol": float("nan")}, ValueError, "between 0 and 1"),
        ({"grad_rtol": "1e-2"}, TypeError, "relative error such as 1e-2"),
        ({"grad_rtol": True}, TypeError, "relative error such as 1e-2"),
        ({"grad_rtol": 1e-2, "checkpoints": "none"}, ValueError, "checkpoints='none' replays nothing"),
    ],
    ids=str,
)
def test_settings_at_the_door(setting, error, words):
    with pytest.raises(error, match=words):
        ACA(**setting)


T = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)


@pytest.mark.parametrize(
    ("f", "dtype", "t", "options", "words"),
    [
        (lambda t, y: -y, torch.float32, T, {"goal": 1e-6}, "float32 can resolve .* or float64"),
        (nn.Dropout(0.5).forward, DOUBLE, T, {"n_steps": 4}, r"model.eval\(\)"),
        (lambda t, y: -y, DOUBLE, T, {"grid": T.clone().requires_grad_()}, r"grid.detach\(\)"),
    ],
    ids=["float32", "random", "grid"],
)
def test_problems_at_the_door(f, dtype, t, options, words):
    model = f if not hasattr(f, "__self__") else lambda t, y: f(y)
    goal = options.pop("goal", 1e-2) if "goal" in options else 1e-2
    with pytest.raises(ValueError, match=words):
        solve(
            model, torch.ones(3, dtype=dtype, requires_grad=True), t, gradient=ACA(grad_rtol=goal), **options
        )


def test_transforms_are_refused():
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.grad(
            lambda y: solve(lambda t, y: -y, y, [0.0, 1.0], gradient=ACA(grad_rtol=0.01)).ys[-1].sum()
        )(torch.ones(2))
