"""`ACA(grad_rtol=...)`: steps fine enough for the gradient, an estimate that can be believed, and what it refuses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gradient_cases import DOUBLE, Counter, Everything, assert_same, gradients_of
from torch import Tensor, nn

import torchaca
from torchaca import ACA, Adaptive, Solution, SolverError, solve
from torchaca.core import Times
from torchaca.gradients import refinement
from torchaca.lab.three_body.problem import ThreeBody, initial_state

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
        given = {"rtol": self.tolerance, "atol": self.tolerance}
        fixed = options.keys() & {"dt", "n_steps", "grid", "control", "rtol"}
        return solve(self.f, self.y0, self.t, **({} if fixed else given), **options)

    def gradients(self, sol: Solution) -> dict[str, list[Tensor]]:
        """By loss, those of all inputs in double precision."""
        leaves = list(self.inputs.values())
        return {
            name: [g.double() for g in torch.autograd.grad(loss(sol.ys), leaves, retain_graph=True)]
            for name, loss in LOSSES.items()
        }


def worst(got: dict[str, list[Tensor]], want: dict[str, list[Tensor]]) -> float:
    """The largest relative error of a gradient over losses and inputs."""
    errors = [(a - b).norm() / b.norm() for loss in want for a, b in zip(got[loss], want[loss], strict=True)]
    return torch.stack(errors).max().item()


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


def accurate(case: Case, goal: float, want: dict[str, list[Tensor]], **options: Any) -> Solution:
    """A solve whose gradients are as accurate as they have to be and are said to be."""
    sol = case.solve(gradient=ACA(grad_rtol=goal), **options)
    error, estimate = worst(case.gradients(sol), want), sol.stats.gradient_error
    assert error <= goal
    assert estimate is not None
    assert estimate <= goal
    assert error / 3 <= estimate <= 40 * error
    return sol


def truth(case: Case) -> dict[str, list[Tensor]]:
    """Steps end at the outputs, whose interpolation would be the largest error."""
    control = Adaptive(1e-10, 1e-10, stop_ts=tuple(case.t))
    return case.gradients(case.solve(gradient="direct", method="dopri8", control=control))


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_the_error(name):
    case = CASES[name]()
    want = truth(case)
    accurate(case, 1e-3, want)
    assert worst(case.gradients(case.solve()), want) > 1e-3


@pytest.mark.parametrize("name", ["network", "decay"])
def test_single_precision(name):
    exact, single = CASES[name](), CASES[name](torch.float32)
    for mine, theirs in zip(single.inputs.values(), exact.inputs.values(), strict=True):
        theirs.data.copy_(mine)
    accurate(single, 1e-3, truth(exact))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "heun_euler"},
        {"method": "bosh3"},
        {"method": "dopri8"},
        {"method": "rk4", "n_steps": 12},
        {"method": "rk4", "dt": 0.28},
        {"method": "dopri5", "grid": [3.0, 2.5, 1.5, 0.7, 0.0]},
        {"control": Adaptive(1e-2, 1e-2, dt_max=0.2)},
        {"control": Adaptive(1e-6, 1e-6, dt_min=0.5, accept_at_dt_min=True)},
        {"rtol": 1e-3, "jump_ts": [1.0, 0.5]},
    ],
    ids=str,
)
def test_steps_of_every_kind(options):
    """Adaptive ones, given ones, and those that smaller tolerances do not change."""
    case = pendulum()
    sol = accurate(case, 5e-3, truth(case), **options)
    plain = case.solve(**options)
    assert len(sol.steps) > 1.2 * len(plain.steps)
    if options.keys() & {"n_steps", "grid"}:
        assert set(plain.steps) < set(sol.steps)


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


def test_a_conserved_sum_of_squares():
    """The gradient of the first probe would be zero, and its relative error would never fall."""
    w = leaf(1.0, -2.0)
    y0 = torch.tensor([1, 0.5 + 0.5j], dtype=torch.complex128, requires_grad=True)

    def gradients(**options: Any) -> dict[str, Any]:
        sol = solve(lambda t, y: 1j * w * y * (1 + 0.3 * y.abs().square()), y0, [0.0, 3.0], **options)
        return gradients_of(sol.ys[-1], {"w": w, "y0": y0})

    want = gradients(rtol=1e-10, atol=1e-10, gradient="direct")
    assert_same(gradients(rtol=1e-2, max_steps=100, gradient=ACA(grad_rtol=1e-3)), want, 1e-3)


# --- what it leaves as it was ---


@pytest.mark.parametrize(
    "setting", [{}, {"checkpoints": 4}, {"checkpoints": "sqrt", "stagewise": True}], ids=str
)
def test_the_gradient_is_exact_on_the_final_steps(setting):
    """Nested state, arguments, captured tensors with and without history, times."""
    problem = Everything([0.0, 0.1, 0.6, 1.5])
    sol = problem.solve(ACA(grad_rtol=1e-3, **setting), rtol=1e-2, atol=1e-2)
    assert sol.stats.gradient_error < 1e-3
    got = gradients_of(sol.ys, problem.inputs)
    assert_same(got, problem.gradients("direct", grid=sol.steps), 1e-11)
    assert sol.stats.nfe_backward > 0


def test_times_move_with_equal_steps():
    problem = Everything([0.0, 0.1, 0.6, 1.5])
    sol = problem.solve(ACA(grad_rtol=1e-3), n_steps=4, dense=True)
    n = len(sol.steps) - 1
    assert n % 8 == 0
    want = problem.solve("direct", n_steps=n, dense=True)
    got, right = (gradients_of((s.ys, s(0.83)), problem.inputs) for s in (sol, want))
    assert_same(got, right, 1e-11)


def test_second_derivatives():
    case = prey()
    sol = case.solve(gradient=ACA(grad_rtol=1e-2))
    want = case.solve(gradient="direct", grid=sol.steps)
    firsts = [torch.autograd.grad(s.ys[-1].prod(), case.y0, create_graph=True)[0] for s in (sol, want)]
    got, right = (gradients_of(first.square().sum(), case.inputs, lambda x: x) for first in firsts)
    assert_same(got, right, 1e-9)


def test_every_evaluation_counts():
    case = pendulum()
    f = Counter(case.f)
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        sol = solve(f, case.y0, [3.0, 0.0], rtol=1e-4, gradient=ACA(grad_rtol=1e-3))
    stats, n = sol.stats, len(sol.steps) - 1
    assert stats.nfe == f.calls
    assert (stats.accepted, stats.nfe_backward) == (n, 0)
    assert len([x for x in kept if x.shape == case.y0.shape]) <= n + 3  # of the final steps alone
    # A solve and three products on all steps, the final one once more without products: see docs/gradients.md.
    plain = solve(case.f, case.y0, [3.0, 0.0], rtol=1e-4)
    levels = 6 * (len(plain.steps) - 1 + n)
    assert stats.nfe <= 4 * levels + 6 * n + 7 * stats.rejected + 5
    sol.ys[-1].sum().backward()
    assert stats.nfe_backward == 6 * n


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
    assert torch.equal(state, torch.get_rng_state())
    assert runs[0].stats == runs[1].stats
    assert torch.equal(runs[0].ys, runs[1].ys)
    assert not fired
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
    y0 = torch.tensor([1.0, 1.0, 20.0], requires_grad=True)
    options = {"rtol": 1e-4, "max_steps": 100, "gradient": ACA(grad_rtol=1e-5)}
    with pytest.raises(SolverError, match=r"relative error of the gradients is estimated as \S+ on \d+") as e:
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
    assert sol.stats.gradient_error > 1e-5
    assert f"{sol.stats.gradient_error:.1e}" in str(e.value)
    assert torch.autograd.grad(sol.ys[-1].sum(), y0)[0].isfinite().all()


def test_rounding_is_a_floor():
    """Where two solves differ by rounding alone, the estimate is not zero."""
    case = decay(torch.float32)
    sol = case.solve(gradient=ACA(grad_rtol=1e-2), method="euler", n_steps=1, on_failure="status")
    assert sol.status == "gradient-error"
    sol = solve(lambda t, y: torch.ones_like(y), case.y0, [0.0, 1.0], gradient=ACA(grad_rtol=1e-2))
    assert sol.stats.gradient_error >= torch.finfo(torch.float32).eps


def test_a_field_that_changes_under_the_solve():
    noise = torch.Generator().manual_seed(1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * (1 + 0.1 * torch.rand((), generator=noise, dtype=DOUBLE))

    with pytest.raises(RuntimeError, match="f gave other values"):
        solve(f, leaf(1.0, 2.0), [0.0, 1.0], n_steps=8, method="rk4", gradient=ACA(grad_rtol=1e-4))


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
        (lambda t, y: -y, DOUBLE, T.clone().requires_grad_(), {"control": torchaca.FixedSteps()}, "n_steps="),
    ],
    ids=["float32", "random", "grid", "outputs"],
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


# --- the estimate by itself ---


def test_richardson():
    assert (
        refinement.extrapolated(0.9, float("inf"), 1 / 32) == 0.9
    )  # far apart: no statement about the finer one
    assert refinement.extrapolated(0.31, float("inf"), 1 / 32) == pytest.approx(0.31 * 3 / 29)
    assert refinement.extrapolated(0.1, 0.3, 1 / 32) == pytest.approx(0.05)  # slower than in theory
    assert refinement.extrapolated(0.1, 0.1, 1 / 32) == 0.1


def test_probes_leave_out_what_is_exact():
    """An output that is y0 has an exact gradient, beside which that of the others may be small."""
    ys = torch.ones(4, 2, dtype=torch.complex128)
    found = refinement.probes(Times((0.0, 0.0, 1.0, 2.0)), ys)
    assert [[bool(x.any()) for x in probe] for probe in found] == [
        [False, False, True, True],
        [False, False, True, True],
        [False, False, False, True],
    ]
    assert len(refinement.probes(Times((0.0, 1.0)), ys[:2])) == 2


def test_differences_count_by_input():
    big, small = torch.full((2,), 1e6, dtype=DOUBLE), torch.full((2,), 1e-3, dtype=DOUBLE)
    ones = torch.ones(2, dtype=DOUBLE)

    def apart(coarse: list[Tensor | None], fine: list[Tensor | None], noise: Tensor = 0 * ones) -> float:
        return refinement.difference([coarse, [noise] * 2], [fine, [noise] * 2])

    assert apart([big, 1.1 * small], [big, small]) == pytest.approx(0.1, rel=1e-3)
    assert apart([big, 1e-9 * small], [big, 2e-9 * small]) < 1e-6  # rounding beside the other
    assert apart([None, 0 * small], [None, 0 * small]) == 0
    assert apart([big / 0, small], [big, small]) == float("inf")
    # A sum of squares that may be conserved: its gradient counts as a tenth of the noise's at least.
    assert apart([0 * ones, ones], [1e-6 * ones, ones], noise=ones) == pytest.approx(1e-5)
