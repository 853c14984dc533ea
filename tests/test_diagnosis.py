"""Why a solve stopped: the kind of each failure, over problems, methods, dtypes and scales."""

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from problems import DOUBLE
from stubs import Counted, ScriptedMethod, problem
from torch import nn

from torchaca import ALF, METHODS, SolverError, solve
from torchaca.control import Adaptive
from torchaca.core import Carrying
from torchaca.errors import KINDS
from torchaca.loops import diagnosis
from torchaca.loops.diagnosis import History, chatters
from torchaca.loops.jumps import find_jump
from torchaca.loops.stepping import HOPELESS, steps
from torchaca.loops.stiffness import decisive, eigenvalues, stability_bound
from torchaca.methods import RungeKutta

SINGLE = torch.float32
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
CARRYING = [name for name in ADAPTIVE if isinstance(METHODS[name], Carrying)]
by_method = pytest.mark.parametrize("method", ADAPTIVE)
by_dtype = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)


@dataclass(frozen=True)
class Case:
    """y' = f(t, y) from y0, over `t`, with options of `solve`."""

    f: object
    y0: list
    t: list
    options: dict = field(default_factory=dict)

    def solved(self, method="dopri5", dtype=DOUBLE, **options):
        with torch.no_grad():
            options = {"method": method, "on_failure": "status", **self.options, **options}
            return solve(self.f, torch.tensor(self.y0, dtype=dtype), self.t, **options)

    def kind(self, method="dopri5", dtype=DOUBLE, **options):
        return self.solved(method, dtype, **options).status


def cases(table):
    return pytest.mark.parametrize("case", table.values(), ids=table)


# Stability limits the steps.


def robertson(t, y):
    a, b, c = y.unbind()
    slow, back, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack([back - slow, slow - back - fast, fast])


def robertson_with(tolerance):
    return Case(robertson, [1.0, 0.0, 0.0], [0.0, 1e5], {"rtol": tolerance, "atol": tolerance / 1000})


def van_der_pol(mu):
    return lambda t, y: torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


def linear(*rows):
    return lambda t, y: torch.tensor(rows, dtype=y.dtype) @ y


def hires(t, y):
    a, b, c, d, e, f, g, h = y.unbind()
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -280 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            280 * f * h - 1.81 * g,
            -280 * f * h + 1.81 * g,
        ]
    )


def oregonator(t, y):
    a, b, c = y.unbind()
    return torch.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)])


def heat(t, y):
    rod = nn.functional.pad(y, (1, 1))
    return 2e4 * (rod[2:] - 2 * y + rod[:-2])


def following(t, y):
    return -1e4 * (y - torch.sin(t)) + torch.cos(t)


STIFF = {
    **{f"robertson {tolerance:g}": robertson_with(tolerance) for tolerance in (1e-3, 1e-6, 1e-8)},
    "van der pol": Case(van_der_pol(100.0), [2.0, 0.0], [0.0, 1e5]),
    "two rates": Case(linear((-1.0, 0.0), (0.0, -1e5)), [1.0, 1.0], [0.0, 10.0]),
    "two rates mixed": Case(linear((-5e4, 5e4 - 1), (5e4 - 1, -5e4)), [1.0, 0.5], [0.0, 10.0]),
    "damped oscillator": Case(linear((0.0, 1.0), (-1e6, -2e3)), [1.0, 0.0], [0.0, 10.0]),
    "hires": Case(hires, [1.0, 0, 0, 0, 0, 0, 0, 0.0057], [0.0, 322.0]),
    "oregonator": Case(oregonator, [1.0, 2.0, 3.0], [0.0, 360.0]),
    "heat": Case(heat, [1.0] * 32, [0.0, 10.0]),
    "follows a curve": Case(following, [0.0], [0.0, 10.0]),
    "follows it backwards": Case(lambda t, y: -following(-t, y), [0.0], [0.0, -10.0]),
    "steep tanh": Case(lambda t, y: -torch.tanh(1e4 * y), [0.01, 0.02], [0.0, 10.0]),
}


@pytest.mark.filterwarnings("ignore:f computes in torch.float32")
@by_dtype
@cases(STIFF)
def test_stiff(case, dtype):
    sol = case.solved(dtype=dtype, max_steps=500 if case.f is robertson else 120)
    assert sol.status == "stiff"
    assert "stability, not accuracy" in str(sol.failure)
    assert "eigenvalue -" in str(sol.failure) or case.t[-1] < 0


@by_method
@pytest.mark.parametrize("case", ["van der pol", "two rates", "follows a curve"])
def test_stiff_with_every_method(case, method):
    """Those that carry a slope too, which are stable for no contraction."""
    assert STIFF[case].kind(method, max_steps=200) == "stiff"


@by_method
def test_a_solution_that_explodes_for_want_of_stability(method):
    """Robertson's b becomes negative, and then runs away: the numbers leave to infinity, the solution does not."""
    assert STIFF["robertson 0.001"].kind(method, max_steps=1200 if method in CARRYING else 300) == "stiff"


def test_accuracy_may_be_the_limit_of_a_stiff_problem():
    """A method of order 2 at a tight tolerance has steps far below the stability limit."""
    assert STIFF["robertson 1e-08"].kind("heun_euler", max_steps=300) == "max-steps"


def test_advice_for_a_slope_that_swings():
    sol = STIFF["two rates"].solved("alf", max_steps=200)
    assert "is stable nowhere" in str(sol.failure)
    assert "ALF(eta=0.9)" in str(sol.failure)
    assert STIFF["two rates"].kind(ALF(eta=0.5), max_steps=1000) == "stiff"


@dataclass
class OfOneShape(ScriptedMethod):
    """A method that cannot be applied to anything but its problem."""

    def step(self, f, t0, t1, y0, hint=None):
        if y0.shape != (2,):
            raise ValueError("made for two numbers")
        return super().step(f, t0, t1, y0, hint)


def test_a_method_that_cannot_be_looked_at():
    """Its failure is still told as what it is."""
    case = STIFF["two rates"]
    assert case.kind(OfOneShape(), max_steps=20, control=None, dt0=1e-6) == "max-steps"


# Something else does.


def three_bodies(t, y):
    q, v = y.reshape(2, 3, 2)
    apart = q[None] - q[:, None]
    return torch.stack([v, (apart / (apart.square().sum(-1, keepdim=True) + 1e-6) ** 1.5).sum(1)]).reshape(-1)


def kepler(t, y):
    return torch.cat([y[2:], -y[:2] / torch.linalg.vector_norm(y[:2]) ** 3])


def lorenz(t, y):
    return torch.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])


BODIES = [1.0, 0.0, -0.5, 0.8, -0.5, -0.8, 0.0, 0.5, -0.4, -0.2, 0.4, -0.3]
ACCURATE = {
    "fast forcing": Case(lambda t, y: torch.cos(50 * t) + 0 * y, [0.0], [0.0, 10.0], {"max_steps": 20}),
    "three bodies": Case(three_bodies, BODIES, [0.0, 50.0], {"rtol": 1e-6, "max_steps": 40}),
    "comet": Case(kepler, [0.1, 0.0, 0.0, math.sqrt(19.0)], [0.0, 100.0], {"rtol": 1e-5, "max_steps": 60}),
    "lorenz": Case(lorenz, [1.0, 1.0, 1.0], [0.0, 100.0], {"max_steps": 60}),
    "fast oscillator": Case(linear((0.0, 1.0), (-1e4, 0.0)), [1.0, 0.0], [0.0, 100.0], {"max_steps": 60}),
    "before the pole": Case(lambda t, y: y**2, [1.0], [0.0, 2.0], {"rtol": 1e-6, "max_steps": 15}),
    "growth": Case(lambda t, y: 50 * y, [1.0], [0.0, 0.2], {"rtol": 1e-6, "max_steps": 6}),
    "decay": Case(lambda t, y: -y, [1.0], [0.0, 6.0], {"rtol": 1e-6, "max_steps": 3}),
    "the first steps": Case(lambda t, y: -y, [1.0], [0.0, 6.0], {"dt0": 1e-4, "max_steps": 2}),
    "transient": Case(
        linear((-1.0, 0.0), (0.0, -1e5)), [1.0, 1.0], [0.0, 10.0], {"rtol": 1e-6, "max_steps": 7}
    ),
}


@by_method
@cases(ACCURATE)
def test_accuracy_is_the_limit(case, method):
    """Large eigenvalues are not enough."""
    assert case.kind(method) == "max-steps"


@cases(ACCURATE)
def test_accuracy_is_the_limit_in_float32(case):
    assert case.kind(dtype=SINGLE) == "max-steps"


# Other kinds.

CHATTER = {
    "sign": Case(lambda t, y: -torch.sign(y), [0.5], [0.0, 1.0]),
    "two signs": Case(lambda t, y: torch.sin(t) - 10 * torch.sign(y), [0.5, 0.3], [0.0, 2.0]),
    "a switch": Case(
        lambda t, y: torch.where(y < 1, 1.0, -2.0).to(y.dtype), [0.0], [0.0, 9.0], {"rtol": 1e-6}
    ),
}


@by_dtype
@cases(CHATTER)
def test_chatter(case, dtype):
    """f jumps where the solution is, which takes tiny steps for ever: said before they are used up."""
    sol = case.solved(dtype=dtype)
    assert sol.status == "jump"
    assert sol.stats.accepted + sol.stats.rejected < 2000
    assert "it jumps where the solution is" in str(sol.failure)
    assert "tanh" in str(sol.failure)


@by_dtype
@pytest.mark.parametrize("max_steps", [200, 500])
def test_chatter_that_uses_up_its_steps(max_steps, dtype):
    assert CHATTER["sign"].kind(dtype=dtype, max_steps=max_steps) == "jump"


@by_method
@pytest.mark.parametrize("place", [0.3, 0.5])
def test_jumps_in_time(method, place):
    case = Case(
        lambda t, y: 1e6 * (t > place) + 0 * y, [0.0, 1.0], [0.0, 1.0], {"rtol": 1e-12, "atol": 1e-12}
    )
    sol = case.solved(method, max_steps=2000)
    assert sol.status == "jump"
    assert f"jump_ts=[{place:g}]" in str(sol.failure)


@by_dtype
@pytest.mark.parametrize("power", [-1.5, -2.0])
def test_a_pole_of_f(power, dtype):
    """Not integrable: the solution leaves to infinity, and float32 rounds a time to the pole itself."""
    case = Case(lambda t, y: (t - 0.5).abs() ** power + 0 * y, [0.0], [0.0, 1.0])
    sol = case.solved(dtype=dtype)
    assert sol.status == "blow-up"
    assert sol.steps[-1] == pytest.approx(0.5, abs=1e-6)
    assert sol.stats.nfe < 3000


@by_dtype
def test_no_pole_of_f(dtype):
    """f ends while it is small, or swings: nothing leaves to infinity."""
    ends = Case(lambda t, y: torch.sqrt(1 - t) - y, [0.0], [0.0, 2.0])
    swings = Case(lambda t, y: torch.cos(300 * t) / (t < 1) + 0 * y, [0.0], [0.0, 2.0])
    assert ends.kind(dtype=dtype) == swings.kind(dtype=dtype) == "f"


@by_dtype
@by_method
def test_a_real_pole_is_no_loss_of_stability(method, dtype):
    """Also not with a component that contracts beside it (which is too much for a slope that is carried)."""
    rate = 0.0 if method in CARRYING else 100.0
    case = Case(lambda t, y: torch.stack([y[0] ** 2, rate * (0.5 - y[1])]), [1.0, 1.0], [0.0, 2.0])
    sol = case.solved(method, dtype)
    assert sol.status == "blow-up"
    assert "leaves to infinity" in str(sol.failure)


# Scales of time and of the state.

SCALES = pytest.mark.parametrize(
    ("time", "size"), [(1e-30, 1.0), (1e-15, 1e-15), (1e15, 1e15), (1e30, 1.0), (1.0, 1e30), (1.0, 1e-30)]
)


@by_dtype
@SCALES
def test_success_on_every_scale(time, size, dtype):
    case = Case(lambda t, y: -y / time, [size], [0.0, time], {"atol": 1e-6 * size})
    sol = case.solved(dtype=dtype)
    assert sol.status == "success"
    assert sol.ys[-1].item() == pytest.approx(size * math.exp(-1), rel=1e-2)


@by_dtype
@SCALES
def test_the_same_kind_on_every_scale(time, size, dtype):
    rates = linear((-1.0 / time, 0.0), (0.0, -1e5 / time))
    case = Case(rates, [size, size], [0.0, 10 * time], {"atol": 1e-6 * size, "max_steps": 250})
    assert case.kind(dtype=dtype) == "stiff"


@by_method
def test_a_first_step_far_below_the_span(method):
    """y' = 1e50 / y from t = 0 begins with steps of 1e-50, which no rounding of t = 0 forbids."""
    case = Case(lambda t, y: 1e50 / y, [1.0], [0.0, 1.0])
    sol = case.solved(method, max_steps=150)
    assert 0.0 < sol.steps[1] < 1e-49
    assert sol.steps[-1] > 1e4 * sol.steps[1]
    assert sol.status in {"success", "max-steps", "stiff"}  # methods of low order need more
    assert case.solved().ys[-1].item() == pytest.approx(math.sqrt(1 + 2e50), rel=0.01)


@by_dtype
def test_where_t_is_zero_rejections_come_to_an_end(dtype):
    """No rounding of t ends them: their number does, or the range of the dtype, and the words say so."""
    y0 = torch.zeros(1, dtype=dtype)
    p = problem(Counted(), (0.0, 1.0), ScriptedMethod((math.nan,)), Adaptive(dt0=0.25), y0)
    words = (
        "86 trials in a row were rejected"
        if dtype == DOUBLE
        else "torch.float32, in which f gets t, has no smaller"
    )
    with pytest.raises(SolverError, match=words) as caught:
        list(steps(p))
    assert caught.value.kind == "step-size"
    assert p.stats.rejected <= math.ceil(math.log(HOPELESS) / math.log(Adaptive().factor_min)) == 86


def test_times_that_f_cannot_be_told():
    """Times reach f in the dtype of the state, and float32 ends at 1e-38."""
    sol = Case(lambda t, y: -y, [1.0], [0.0, 1e-40]).solved(dtype=SINGLE)
    assert sol.status == "step-size"
    assert "torch.float32, in which f gets t, has no smaller one" in str(sol.failure)


# What the tests of a diagnosis are made of.


def amplification(method, z):
    """R(z) of a Runge-Kutta method, from its tableau: y1 = R(z) y0 for y' = z y."""
    ks = []
    for row in method.matrix[: method.stages]:
        ks.append(1 + z * sum((a * k for a, k in zip(row, ks, strict=True)), Fraction(0)))
    return 1 + z * sum((b * k for b, k in zip(method.weights, ks, strict=True)), Fraction(0))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CARRYING])
def test_stability_bounds(name):
    method = METHODS[name]
    assert isinstance(method, RungeKutta)
    bound = stability_bound(method, -3.0)
    assert 2 <= bound < 7
    for part in (0.25, 0.5, 0.99):
        assert abs(amplification(method, Fraction(-part * bound))) <= 1
    assert abs(amplification(method, Fraction(-bound - 0.06))) > 1


def test_stability_bounds_of_methods_that_carry_a_slope():
    for name in CARRYING:
        assert stability_bound(METHODS[name], -1.0) == 0.0
        assert stability_bound(METHODS[name], 1j) == pytest.approx(1.0, abs=0.06)
    assert stability_bound(ALF(eta=0.75), -1.0) == pytest.approx(2 / 3, abs=0.06)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE, torch.complex128], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_eigenvalues(n, dtype):
    """All those of a small system, the largest of a large one."""
    generator = torch.Generator().manual_seed(n)
    basis = torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=generator))[0]
    rates = -torch.logspace(0, 3, n).to(dtype)
    matrix = basis @ torch.diag(rates) @ basis.mH
    y = torch.randn(n, dtype=dtype, generator=generator)
    before = torch.get_rng_state()
    found = eigenvalues(
        problem(Counted(lambda t, y: matrix @ y), (0.0, 1.0), None, Adaptive(), y), Adaptive(atol=1.0), 0.0, y
    )
    assert torch.equal(torch.get_rng_state(), before)
    fastest = decisive(found, 1.0)
    assert fastest is not None
    assert fastest.real == pytest.approx(-1e3 if n > 1 else -1.0, rel=0.02)
    assert decisive(found, -1.0) is None  # backwards, it grows


def look(f, y=0.1, dt=0.2, dtype=DOUBLE, t=0.0, jump_ts=()):
    y0, control = torch.tensor([y, 1.0], dtype=dtype), Adaptive(jump_ts=jump_ts)
    return find_jump(problem(Counted(f), (t, 1.0), None, control, y0), control, t, y0, dt)


@by_dtype
def test_what_a_jump_is(dtype):
    in_time = look(lambda t, y: 1.0 * (t > 0.15) - 0.01 * y, dtype=dtype)
    assert in_time is not None
    assert in_time.in_time
    assert in_time.t == pytest.approx(0.15, abs=1e-6)
    in_state = look(lambda t, y: -torch.sign(y) * (1 + t), dtype=dtype)
    assert in_state is not None
    assert not in_state.in_time
    assert look(lambda t, y: -torch.tanh(100 * y), dtype=dtype) is None
    assert look(lambda t, y: torch.tanh(1e3 * (t - 0.15)) - y, dtype=dtype) is None
    assert look(lambda t, y: -y.abs() - (t - 0.15).abs(), dtype=dtype) is None
    assert look(lambda t, y: 1 / (t - 0.15).abs() + y, dtype=dtype) is None  # a pole
    assert look(lambda t, y: -y, dtype=dtype) is None
    eps, rest = torch.finfo(dtype).eps, torch.tensor([0.1, 1.0], dtype=dtype)
    assert (
        look(lambda t, y: -(y - rest) / eps, dt=eps / 2, y=0.1 + 0.15 * eps, dtype=dtype) is None
    )  # a few roundings
    assert look(lambda t, y: 0 * y, dtype=dtype) is None


@by_dtype
def test_a_jump_that_is_named_is_no_cause(dtype):
    """Steps end there anyway."""
    f = lambda t, y: 1.0 * (t > 0.15) + 0 * y  # noqa: E731
    assert look(f, dtype=dtype, jump_ts=(0.15,)) is None
    assert look(f, dtype=dtype, jump_ts=(0.16,)) is not None
    assert look(chattering, dtype=dtype, y=0.9991, jump_ts=(0.15,)) is not None


def test_a_look_ahead_stays_inside_the_span():
    times = []

    def f(t, y):
        times.append(float(t))
        return -torch.sign(y)

    look(f, dt=100.0, t=0.9)
    assert 0.9 <= min(times) <= max(times) <= 1.0


def test_a_switch_in_time_is_not_chatter():
    """However often f jumps in time: with enough steps that comes to an end."""
    y = torch.ones(1, dtype=DOUBLE)
    history = History(slow=diagnosis.PATIENCE)
    history.sizes.append(1e-3)
    for f, expected in (
        (lambda t, y: torch.sign(torch.sin(2e3 * t + 0.1)) + 0 * y, False),
        (chattering, True),
    ):
        p = problem(Counted(f), (0.0, 1.0), None, Adaptive(), y)
        looks = [chatters(p, Adaptive(), history, 0.0, y) for _ in range(diagnosis.LOOKS)]
        assert any(looks) == expected


def chattering(t, y):
    return -torch.sign(y - 0.999)


class Counting(nn.Module):
    """f that gathers statistics: each evaluation moves a buffer which f does not read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, t, y):
        self.seen += 1
        return -1e5 * (y - torch.cos(t))


def test_a_diagnosis_leaves_nothing_behind(monkeypatch):
    left = []
    for look in (diagnosis._first_match, lambda *_: ("stiff", "", "")):
        monkeypatch.setattr(diagnosis, "_first_match", look)
        f = Counting()
        sol = solve(f, torch.ones(2), [0.0, 10.0], max_steps=60, on_failure="status")
        assert sol.status == "stiff"
        left.append(f.seen[0].item())
    assert left[0] == left[1] > 60


def test_the_page_names_every_kind():
    page = (Path(__file__).parents[1] / "docs" / "failures.md").read_text()
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE) == list(KINDS)
