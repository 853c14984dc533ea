"""Steps at rest: short enough for the derivative, at one evaluation each, the same in every loop."""

import math

import pytest
import torch
from resting import DOUBLE, MODELS, oscillator, prey
from stubs import CountOperations
from torch import nn

import torchaca as aca
from torchaca import Adaptive, solve
from torchaca.gradients import GRADIENTS
from torchaca.loops.rest import Slope
from torchaca.methods import METHODS
from torchaca.methods.stability import stability

ADAPTIVE = [method for method in METHODS.values() if method.adaptive]
LEAPING = {"alf", "reversible_heun"}
"""What they carry swings around a solution that decays, and grows as fast as it decays, in steps of any length."""

SPANS = [(model, span) for model in MODELS for span in model.spans]
each_span = pytest.mark.parametrize(("model", "span"), SPANS, ids=lambda x: getattr(x, "name", x))
every_method = pytest.mark.parametrize("method", ADAPTIVE, ids=lambda method: method.name)
unwarned = pytest.mark.filterwarnings("ignore:the step from t = :torchaca.errors.GradientWarning")
TOLERANCES = {"rtol": 1e-6, "atol": 1e-9}


def solved(model, span, dtype=DOUBLE, **options):
    """The gradient of a model's loss by its start, and the solution."""
    y0 = model.start(dtype)
    sol = solve(model.f, y0, [0.0, span], **{**TOLERANCES, **options})
    return torch.autograd.grad((model.weights.to(dtype) * sol.ys[-1]).sum(), y0)[0], sol


@each_span
def test_a_gradient_at_rest(model, span):
    grad, _ = solved(model, span)
    assert model.off(grad, span) < 0.03


@unwarned
@each_span
def test_steps_that_nobody_limits_are_wrong(model, span):
    grad, sol = solved(model, span, at_rest="ignore")
    assert sol.stats.accepted < 12
    assert span < 5.0 or model.name == "zero net" or model.off(grad, span) > 0.2


@every_method
def test_every_method_at_rest(method):
    for model in MODELS:
        for span in model.spans[:2]:
            if not (model.decays and method.name in LEAPING) and model.name != "heat":
                grad, sol = solved(model, span, method=method)
                assert model.off(grad, span) < 0.15, (model.name, span)
                assert sol.stats.accepted < 1100


@pytest.mark.slow
@every_method
@each_span
def test_every_method_at_rest_for_long(method, model, span):
    if model.decays and method.name in LEAPING:
        pytest.skip("it cannot follow a decay")
    grad, _ = solved(model, span, method=method)
    assert model.off(grad, span) < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_in_single_precision(model, dtype):
    """The distance to where f is evaluated is above the rounding of a state, and of the ones in f where that is 0."""
    span = model.spans[0]
    tolerances = {"rtol": 1e-4, "atol": 1e-6}
    shifted = type(model)(
        model.name, lambda t, y: model.f(t, (y + 1) - 1), model.y, model.spans, model.decays
    )
    for one in (model, shifted):
        grad, _ = solved(one, span, dtype, **tolerances)
        assert model.off(grad, span) < 0.1


def forced(gradient, span, **options):
    """d x(span) / d a of an oscillator at rest under a force a cos 3t, a = 0, over the exact one; the solution."""
    a = torch.zeros((), dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return oscillator(t, y) + torch.stack([torch.zeros_like(a), a * torch.cos(3 * t)])

    sol = solve(f, torch.zeros(2, dtype=DOUBLE), [0.0, span], gradient=gradient, **TOLERANCES, **options)
    whole = torch.zeros(4, 4, dtype=DOUBLE)  # x, x', cos 3t, sin 3t
    whole[0, 1], whole[1, 0], whole[1, 1], whole[1, 2] = 1.0, -1.0, -0.1, 1.0
    whole[2, 3], whole[3, 2] = -3.0, 3.0
    exact = torch.linalg.matrix_exp(span * whole)[0, 2]
    return torch.autograd.grad(sol.ys[-1, 0], a)[0] / exact, sol


@unwarned
@pytest.mark.parametrize("span", [10.0, 20.0, 50.0])
def test_the_derivative_by_a_force(span):
    assert abs(forced("aca", span)[0] - 1) < 0.15
    assert abs(forced("aca", span, at_rest="ignore")[0]) > 1e3


@pytest.mark.parametrize("name", GRADIENTS)
def test_values_do_not_depend_on_the_gradient(name):
    """Nor on whether anybody wants one."""
    method = "alf" if name == "mali" else "dopri5"
    alone = solve(prey, torch.ones(2, dtype=DOUBLE), [0.0, 7.0], method=method, **TOLERANCES)
    ratio, sol = forced(name, 7.0, method=method)
    assert abs(ratio - 1) < 0.15
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    sol = solve(prey, y0, [0.0, 7.0], method=method, gradient=name, **TOLERANCES)
    assert sol.steps == alone.steps
    assert sol.stats.nfe == alone.stats.nfe
    assert torch.equal(sol.ys.detach(), alone.ys)


def test_no_graph_of_the_evaluation_beside_the_state():
    """Only what the steps evaluate is recorded."""
    recorded = []

    def f(t, y):
        recorded.append(torch.is_grad_enabled())
        return prey(t, y)

    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, [0.0, 10.0], gradient="direct", **TOLERANCES)
    beside = sol.stats.accepted - 1  # at rest, after every step but the last
    assert recorded.count(False) == beside + 1  # and the first step's guess
    assert sol.stats.nfe == len(recorded) == 2 + 6 * sol.stats.accepted + beside


@every_method
def test_what_it_costs(method):
    """One evaluation for each step that says nothing, and f where the step ended if the next step does not start there.

    A method that carries something else evaluates that for nothing.
    """
    sol = solve(prey, torch.ones(2, dtype=DOUBLE), [0.0, 10.0], method=method, **TOLERANCES)
    steps, own = sol.stats.accepted, method.stages - 1
    assert sol.stats.rejected == 0
    if method.name in LEAPING:
        assert sol.stats.nfe == 2 + steps * own + 2 * (steps - 1)
    else:
        firsts = 1 if getattr(method, "fsal", False) else steps
        assert sol.stats.nfe == 1 + firsts + steps * own + steps - 1


def test_nothing_away_from_rest():
    """A solve whose every step is chosen by its error takes the steps of one that does not look."""
    decay = torch.tensor([0.5, 1.0, 1.5], dtype=DOUBLE)
    for method in ADAPTIVE:
        control = {"dt0": 0.05, "method": method, "rtol": 1e-3, "atol": 1e-3}

        def f(t, y):
            return -decay * y + torch.cos(5 * t)

        runs = [
            solve(f, torch.ones(3, dtype=DOUBLE), [0.0, 2.0], at_rest=x, **control)
            for x in ("resolve", "ignore")
        ]
        assert abs(runs[0].stats.nfe - runs[1].stats.nfe) <= 6


def test_the_last_step_is_not_looked_at():
    f = Counting(lambda t, y: torch.zeros_like(y))
    solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 1e-7], dt0=1.0)
    assert f.calls == 7


class Counting:
    def __init__(self, f):
        self.f, self.calls, self.times = f, 0, []

    def __call__(self, t, y):
        self.calls += 1
        self.times.append(float(t))
        return self.f(t, y)


def test_a_pulse_behind_a_rest_is_seen():
    def f(t, y):
        return torch.stack([y[1], -y[0] - 0.2 * y[1] + torch.exp(-((t - 30.0) ** 2))])

    y0 = torch.zeros(2, dtype=DOUBLE)
    truth = solve(f, y0, [0.0, 40.0], rtol=1e-9, atol=1e-12, dt_max=0.1).ys[-1]
    assert truth.norm() > 0.3
    found = solve(f, y0, [0.0, 40.0], **TOLERANCES).ys[-1]
    assert (found - truth).norm() < 1e-3 * truth.norm()


@every_method
def test_on_the_far_side_of_a_jump(method):
    """f is evaluated on the side of the step to come, not at the jump itself, and the step after it is a short one."""
    f = Counting(lambda t, y: torch.where(t < 2.0, -0.1, -40.0) * y)
    model = solve(f, torch.zeros(2, dtype=DOUBLE), [0.0, 3.0], method=method, jump_ts=[2.0], **TOLERANCES)
    assert 2.0 not in f.times
    steps = [b - a for a, b in zip(model.steps, model.steps[1:], strict=False)]
    after = steps[model.steps.index(2.0)]
    assert after <= 1.01 * stability(method).theta / 40


@pytest.mark.parametrize("bad", ["solve", None, 1])
def test_other_settings(bad):
    with pytest.raises(ValueError, match="at_rest is 'resolve' or 'ignore'"):
        Adaptive(at_rest=bad)


def test_no_effect_with_fixed_steps():
    with pytest.raises(ValueError, match="at_rest= has no effect with fixed steps"):
        solve(prey, torch.ones(2), [0.0, 1.0], n_steps=4, at_rest="ignore")


@unwarned
def test_odeint():
    y0, t = torch.ones(2, dtype=DOUBLE), torch.tensor([0.0, 20.0], dtype=DOUBLE)

    def grad(**options):
        start = y0.clone().requires_grad_()
        return torch.autograd.grad(aca.odeint(prey, start, t, **options)[-1, 0], start)[0]

    exact = torch.linalg.matrix_exp(20 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DOUBLE))[0]
    assert (grad() - exact).norm() < 0.02
    assert (grad(options={"at_rest": "resolve"}) - exact).norm() < 0.02
    assert (grad(options={"at_rest": "ignore"}) - exact).norm() > 1e3
    with pytest.warns(UserWarning, match="'at_rest' has no effect on euler"):
        aca.odeint(prey, y0, t, method="euler", options={"at_rest": "ignore", "step_size": 1.0})


def test_the_adjoint_s_backward_pass_does_not_look():
    """It is right at rest: its steps see the costate."""
    calls = []

    def f(t, y):
        calls.append(torch.is_grad_enabled())
        return prey(t, y)

    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, [0.0, 10.0], gradient="adjoint", **TOLERANCES)
    calls.clear()
    torch.autograd.grad(sol.ys[-1, 0], y0)
    assert len(calls) == sol.stats.nfe_backward
    stats = sol.stats
    trials = stats.accepted_backward + stats.rejected_backward
    assert stats.nfe_backward <= 6 * trials + 5


# What f leaves behind.


def test_an_f_that_draws_is_not_looked_at():
    f = Counting(lambda t, y: 0.0 * torch.rand(2, dtype=DOUBLE))
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="draws random numbers"):
        sol = solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], **TOLERANCES)
    assert sol.stats.accepted < 12
    after = torch.rand(3)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="draws random numbers"):
        solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], at_rest="ignore", **TOLERANCES)
    assert torch.equal(after, torch.rand(3))


def test_the_user_s_random_numbers_stay():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    solve(prey, torch.ones(2, dtype=DOUBLE), [0.0, 10.0], **TOLERANCES)
    assert torch.equal(torch.rand(4), expected)


class Remembers(nn.Module):
    """Reads a buffer that it moves in every call; at rest all the same."""

    def __init__(self):
        super().__init__()
        self.register_buffer("heat", torch.zeros((), dtype=DOUBLE))

    def forward(self, t, y):
        self.heat.add_(1.0)
        return (prey(t, y)) * (1 + 0.1 / self.heat)


def test_what_f_moves_and_reads_is_put_back():
    ends = []
    for at_rest in ("resolve", "ignore"):
        f, steps = Remembers(), Adaptive(1e-6, 1e-9, at_rest=at_rest, dt_max=0.5)
        sol = solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 3.0], control=steps)
        ends.append((float(f.heat), sol.stats.accepted))
    each = [(heat - 2) / accepted for heat, accepted in ends]
    assert each[0] == pytest.approx(each[1], abs=1.0)


class Normed(nn.Module):
    """Batch norm in training mode: its statistics move, and nobody reads them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2).double()

    def forward(self, t, y):
        return 0.0 * self.norm(y)


def test_statistics_count_the_evaluations_of_steps_alone():
    f = Normed().train()
    sol = solve(f, torch.randn(5, 2, dtype=DOUBLE), [0.0, 1.0], **TOLERANCES)
    other = Normed().train()
    plain = solve(other, torch.randn(5, 2, dtype=DOUBLE), [0.0, 1.0], at_rest="ignore", **TOLERANCES)
    assert sol.stats.nfe > plain.stats.nfe
    counts = [int(x.norm.num_batches_tracked) for x in (f, other)]
    assert counts == [1 + 6 * run.stats.accepted for run in (sol, plain)]


# The evaluation itself.


def test_the_direction_is_that_of_one_sample():
    y = torch.zeros(5, 3, dtype=DOUBLE)
    alone, rows = Slope.unknown(y[0]).direction, Slope.unknown(y, batch=1).direction
    assert all(torch.equal(row, alone) for row in rows)
    assert not torch.equal(Slope.unknown(y).direction[0], Slope.unknown(y).direction[1])
    assert alone.square().mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex128])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("largest", [-3.0, 3.0])
def test_the_power_iteration_finds_the_largest_eigenvalue(largest, dtype, size):
    eigenvalues = torch.tensor([largest, -1.0, -0.5, -0.1, 0.0], dtype=dtype)
    y = torch.full((5,), size, dtype=dtype)

    def f(t, y):
        return eigenvalues * (y - size) + (t - t)

    slope, eps = Slope.unknown(y), torch.finfo(dtype).eps
    seen = []
    for _ in range(12):
        slope = slope.looked(f, 0.0, y, f(0.0, y), 1e-9, eps)
        seen.append(float(slope.steepness))
    assert seen[-1] == pytest.approx(3.0, rel=0.02)
    assert 0.3 < seen[0] < 3.1


def test_nothing_is_learnt_from_what_is_not_finite_or_flat():
    y = torch.zeros(3, dtype=DOUBLE)
    before = Slope.unknown(y)
    for f in (lambda t, y: torch.full_like(y, math.nan), lambda t, y: torch.zeros_like(y)):
        after = before.looked(f, 0.0, y, torch.zeros_like(y), 1e-9, 2e-16)
        assert after.steepness == 0
        assert torch.equal(after.direction, before.direction)


def test_old_steepness_fades():
    y = torch.zeros(3, dtype=DOUBLE)
    slope = Slope(Slope.unknown(y).direction, 2.0)
    after = slope.looked(lambda t, y: torch.zeros_like(y), 0.0, y, torch.zeros_like(y), 1e-9, 2e-16)
    assert float(after.steepness) == pytest.approx(1.4)


def test_a_stiff_rest_does_not_fail():
    """Steps of this kind cannot resolve it, and a model that only stays where it is has to get by."""
    sol = solve(lambda t, y: -1e9 * y, torch.zeros(2, dtype=DOUBLE), [0.0, 10.0], **TOLERANCES)
    assert sol.status == "success"
    assert 4000 < sol.stats.accepted < 6000


def test_dt_min_is_kept():
    sol = solve(lambda t, y: -1e3 * y, torch.zeros(2, dtype=DOUBLE), [0.0, 1.0], dt_min=0.1, **TOLERANCES)
    assert sol.stats.accepted <= 11


# Lanes of vmap.

STARTS = torch.tensor([[1.0, 1.0], [1.0, 1.3], [1.0, 1.0], [2.0, 0.5]], dtype=DOUBLE)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_lanes_rest_by_themselves(method):
    """Each as if it were alone, whatever its mates do; those at rest with right gradients."""

    def end(y0):
        return solve(prey, y0, [0.0, 10.0], method=method, rtol=1e-4, atol=1e-6).ys[-1]

    together = torch.func.vmap(torch.func.jacrev(end))(STARTS)
    for y0, jacobian in zip(STARTS, together, strict=True):
        assert torch.equal(torch.func.vmap(torch.func.jacrev(end))(y0[None])[0], jacobian)
        torch.testing.assert_close(torch.func.jacrev(end)(y0), jacobian, rtol=1e-6, atol=1e-6)
    exact = torch.linalg.matrix_exp(10 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DOUBLE))
    assert (together[0] - exact).norm() < 0.1


def test_one_host_read_a_trial_of_lanes():
    """Beside those that bound a step at rest: one more, and where to go on then."""

    def end(y0):
        return solve(prey, y0, [0.0, 10.0], rtol=1e-6, atol=1e-9).ys[-1]

    with CountOperations() as counts:
        torch.func.vmap(end)(STARTS[:1])
    alone = solve(prey, STARTS[0], [0.0, 10.0], rtol=1e-6, atol=1e-9).stats
    assert counts.host_reads <= 3 * alone.accepted + 20
