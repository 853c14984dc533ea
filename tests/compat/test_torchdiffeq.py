"""`odeint` and `odeint_adjoint` beside torchdiffeq's own: same arguments, same meaning, same numbers.

Fixed steps have to agree to rounding. Adaptive ones take different steps, so they agree to the tolerance; the step
options are tested by the steps that the callbacks see. torchdiffeq is told to land on the outputs (`step_t`) where
its values are compared: its interpolants are coarser than its tolerance.
"""

import functools
import importlib
import inspect
import math
import warnings
from typing import ClassVar

import pytest
import torch
import torchdiffeq
from covering import covering
from torch import nn

import torchaca as aca
from torchaca.errors import SolverError

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("adaptive_heun", "bosh3", "fehlberg2", "dopri5", "dopri8")
INTERFACES = ("odeint", "odeint_adjoint")
F32, F64, C128 = torch.float32, torch.float64, torch.complex128


class Net(nn.Module):
    """A small network that depends on time, on batches of states `(4, 3)`."""

    def __init__(self, dtype=F64):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, 8).to(dtype)
        self.outer = nn.Linear(8, 3).to(dtype)
        self.y0 = torch.randn(4, 3).to(dtype)

    def forward(self, t, y):
        return self.outer(torch.tanh(self.inner(y))) - torch.cos(t) * y


class Predators(nn.Module):
    """Lotka-Volterra with its four rates as parameters."""

    def __init__(self, dtype=F64):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.1, 0.4, 0.3, 0.9], dtype=dtype))
        self.y0 = torch.tensor([1.5, 0.7], dtype=dtype)

    def forward(self, t, y):
        a, b, c, d = self.rates
        return torch.stack([a * y[0] - b * y[0] * y[1], c * y[0] * y[1] - d * y[1]])


class Pair(nn.Module):
    """A tuple state `((2, 3), ())` whose parts drive each other."""

    def __init__(self, dtype=F64):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-0.5, 0.5, 9, dtype=dtype).reshape(3, 3))
        self.y0 = (torch.linspace(0.1, 1.2, 6, dtype=dtype).reshape(2, 3), torch.tensor(0.4, dtype=dtype))

    def forward(self, t, y):
        matrix, scalar = y
        return torch.tanh(matrix @ self.w) * scalar, torch.sin(t) - matrix.mean() * scalar


class Rotation(nn.Module):
    """A complex state with complex parameters."""

    def __init__(self, dtype=C128):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([-0.3 + 1.2j, 0.1 - 0.7j], dtype=dtype))
        self.y0 = torch.tensor([1.0 + 0.5j, -0.4 + 0.2j], dtype=dtype)

    def forward(self, t, y):
        return self.rate * y * (1 - 0.1 * y) + torch.cos(t)


PROBLEMS = {"net": Net, "predators": Predators, "pair": Pair, "rotation": Rotation}


def as_tuple(y):
    return y if isinstance(y, tuple) else (y,)


def results(library, interface, f, t, **options):
    """Values, and the gradients of a fixed weighting of them with respect to y0, t and the parameters."""
    y0 = tuple(y.clone().requires_grad_() for y in as_tuple(f.y0))
    t = t.clone().requires_grad_()
    ys = getattr(library, interface)(f, y0 if isinstance(f.y0, tuple) else y0[0], t, **options)
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.real.dtype).reshape(y.shape) for y in as_tuple(ys)]
    loss = sum((w * (y.real + y.imag if y.is_complex() else y)).sum() for w, y in zip(weights, as_tuple(ys)))
    grads = torch.autograd.grad(loss, [*y0, t, *f.parameters()])
    ys = [y.detach() for y in as_tuple(ys)]
    return {"ys": ys, "y0": grads[: len(y0)], "t": [grads[len(y0)]], "parameters": grads[len(y0) + 1 :]}


def assert_close(ours, theirs, tolerance, *names):
    for name in names or theirs:
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert mine.shape == other.shape
            assert mine.dtype == other.dtype
            scale = 1 + other.abs().max()
            assert (mine - other).abs().max() <= tolerance * scale, name


def times(dtype, backwards=False):
    """Eight times, unevenly spaced."""
    t = torch.tensor([0.2, 0.45, 0.5, 0.8, 1.0, 1.15, 1.5, 1.6], dtype=dtype)
    return t.flip(0) if backwards else t


def landing(t):
    """torchdiffeq's options that make it end a step at every output."""
    return {"step_t": t.clone()}


@functools.cache
def exact(problem, *outputs, backwards=False):
    """Values and gradients to ten digits, by torchdiffeq."""
    t = times(F64, backwards)[list(outputs)]
    return results(torchdiffeq, "odeint", PROBLEMS[problem](), t, rtol=1e-10, atol=1e-10, options=landing(t))


class Recorder:
    """A scalar problem that keeps what torchdiffeq's callbacks are called with."""

    def __init__(self, rate=lambda t: torch.cos(5 * t)):
        self.rate = rate
        self.trials, self.accepted, self.rejected = [], [], []
        self.callback_step = lambda t, y, dt: self.trials.append((float(t), float(dt)))
        self.callback_accept_step = lambda t, y, dt: self.accepted.append((float(t), float(dt)))
        self.callback_reject_step = lambda t, y, dt: self.rejected.append((float(t), float(dt)))
        self.calls = []

    def __call__(self, t, y):
        self.calls.append(float(t))
        return self.rate(t) * y

    def solve(self, t0=0.0, t1=2.0, library=aca, **options):
        """Run over [t0, t1]; returns the end value."""
        tolerances = {name: options.pop(name) for name in ("rtol", "atol", "method") if name in options}
        t = torch.tensor([t0, t1], dtype=F64)
        return library.odeint(self, torch.ones(1, dtype=F64), t, **tolerances, options=options)[-1]

    def ends(self):
        return [t + dt for t, dt in self.accepted]


class TestSignature:
    @pytest.mark.parametrize("interface", INTERFACES)
    def test_parameters_and_defaults(self, interface):
        def facts(library):
            parameters = inspect.signature(getattr(library, interface)).parameters.values()
            return [(p.name, p.kind, p.default) for p in parameters if p.name != "compile"]  # ours alone

        assert facts(aca) == facts(torchdiffeq)

    def test_dopri5_is_the_default(self):
        f, t = Net(), times(F64)
        assert torch.equal(aca.odeint(f, f.y0, t), aca.odeint(f, f.y0, t, method="dopri5"))

    def test_default_tolerances_are_torchdiffeqs(self):
        f, t = Net(), times(F64)
        assert torch.equal(aca.odeint(f, f.y0, t), aca.odeint(f, f.y0, t, rtol=1e-7, atol=1e-9))

    def test_options_stay_as_they_are(self):

        def norm(y):
            return max(part.abs().max() for part in as_tuple(y))

        options = {"first_step": 0.1, "norm": norm, "jump_t": torch.tensor([0.7])}
        before = dict(options)
        f = Net()
        aca.odeint_adjoint(f, f.y0, times(F64), options=options, adjoint_options=options).sum().backward()
        assert options == before

    def test_states_of_every_shape(self):
        t = torch.tensor([0.0, 1.0], dtype=F64)
        for shape in ((), (1,), (2, 3), (2, 0), (1, 2, 3, 4)):
            ys = aca.odeint(lambda t, y: -y, torch.ones(shape, dtype=F64), t)
            assert ys.shape == (2, *shape)
            assert torch.allclose(ys[1], torch.full(shape, math.exp(-1), dtype=F64), rtol=1e-6)


class TestFixedSteps:
    """To rounding: the same steps, the same stages, the same chain rule."""

    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("dtype", [F32, F64])
    @pytest.mark.parametrize("method", FIXED)
    def test_from_output_to_output(self, method, dtype, backwards):
        f, t = Net(dtype), times(dtype, backwards)
        ours, theirs = (results(library, "odeint", f, t, method=method) for library in (aca, torchdiffeq))
        assert_close(ours, theirs, 200 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("method", FIXED)
    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_problems(self, problem, method):
        f = PROBLEMS[problem]()
        ours, theirs = (
            results(library, "odeint", f, times(F64), method=method) for library in (aca, torchdiffeq)
        )
        assert_close(ours, theirs, 1e-13)

    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("interp", ["linear", "cubic"])
    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_outputs_between_steps(self, problem, interp, backwards):
        f, t = PROBLEMS[problem](), times(F64, backwards)
        for method in ("midpoint", "rk4"):
            # No output falls on the end of a step: there torchdiffeq forgets that the output moves with its time.
            options = {"step_size": 0.29, "interp": interp}
            ours, theirs = (
                results(library, "odeint", f, t, method=method, options=options)
                for library in (aca, torchdiffeq)
            )
            assert_close(ours, theirs, 1e-12)

    @pytest.mark.parametrize("step_size", [0.13, 0.35, 1.0, 5.0])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_step_sizes(self, step_size, backwards):
        f, t = Predators(), times(F64, backwards)[[0, -1]]
        ours, theirs = (
            results(library, "odeint", f, t, method="rk4", options={"step_size": step_size})
            for library in (aca, torchdiffeq)
        )
        # 1.4 / 0.35 is 4 and a bit: torchdiffeq makes a fifth step of 2e-16, and times move that one.
        names = ("ys", "y0", "parameters") if step_size == 0.35 else ()
        assert_close(ours, theirs, 1e-13, *names)

    def test_no_sliver_at_the_end(self):
        calls = []

        def f(t, y):
            calls.append(float(t))
            return y

        t = torch.tensor([0.2, 1.6], dtype=F64)
        aca.odeint(f, torch.ones(1, dtype=F64), t, method="euler", options={"step_size": 0.35})
        assert calls == pytest.approx([0.2, 0.55, 0.9, 1.25])

    @pytest.mark.parametrize("backwards", [False, True])
    def test_grid_constructor(self, backwards):
        seen = []

        def grid(func, y0, t):
            seen.append(t.detach().clone())
            t = t.detach()
            return torch.linspace(float(t[0]), float(t[-1]), 12, dtype=t.dtype)

        f, t = Predators(), times(F64, backwards)
        options = {"grid_constructor": grid, "interp": "cubic"}
        ours, theirs = (
            results(library, "odeint", f, t, method="heun3", options=options)
            for library in (aca, torchdiffeq)
        )
        assert_close(ours, theirs, 1e-12, "ys", "y0", "parameters")
        assert torch.equal(seen[0], t)

    @pytest.mark.parametrize(
        ("problem", "method", "backwards"),
        covering(["net", "predators", "pair"], FIXED, [False, True], strength=2),
    )
    def test_adjoint(self, problem, method, backwards):
        f, t = PROBLEMS[problem](), times(F64, backwards)
        for options in ({}, {"step_size": 0.1, "interp": "linear"}):
            ours, theirs = (
                results(library, "odeint_adjoint", f, t, method=method, options=options)
                for library in (aca, torchdiffeq)
            )
            assert_close(ours, theirs, 1e-12, "ys", "y0", "parameters")
            # dL/dt_i is f there; at t_0 torchdiffeq integrates it and we evaluate it.
            assert torch.allclose(ours["t"][0][1:], theirs["t"][0][1:], rtol=1e-12)

    def test_adjoint_time_gradient_at_the_start(self):
        f, t = Predators(), times(F64)
        right = exact("predators", *range(8))["t"][0][0]
        ours, theirs = (
            results(library, "odeint_adjoint", f, t, method="rk4")["t"][0][0]
            for library in (aca, torchdiffeq)
        )
        assert abs(ours - right) <= abs(theirs - right)
        assert abs(ours - right) < 1e-4 * abs(right)

    def test_rk4_is_the_three_eighths_rule(self):
        def f(t, y):
            return torch.sin(y) + t

        y0 = torch.tensor([0.3, 1.7], dtype=F64)
        t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
        ours, theirs = aca.odeint(f, y0, t, method="rk4"), torchdiffeq.odeint(f, y0, t, method="rk4")
        assert (ours - theirs).abs().max() <= 4 * torch.finfo(F64).eps
        classic = aca.solve(f, y0, t, method="rk4", n_steps=2).ys
        assert (ours - classic).abs().max() > 1e-6

    @pytest.mark.parametrize("method", FIXED)
    def test_tolerances_beside_a_fixed_method_are_accepted(self, method):
        f, t = Net(), times(F64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ys = aca.odeint(f, f.y0, t, method=method, rtol=1e-3, atol=1e-4)
        assert torch.equal(ys, aca.odeint(f, f.y0, t, method=method))

    @pytest.mark.parametrize("interface", INTERFACES)
    def test_one_step_over_everything_warns_once(self, interface):
        f = Net()
        with pytest.warns(UserWarning, match="single step") as caught:
            getattr(aca, interface)(f, f.y0, times(F64)[:2], method="euler").sum().backward()
        assert len(caught) == 1

    def test_step_size_and_grid_constructor_exclude_each_other(self):
        options = {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}
        with pytest.raises(ValueError, match="exclude"):
            aca.odeint(Net(), Net().y0, times(F64), method="rk4", options=options)

    def test_unknown_interpolation(self):
        with pytest.raises(ValueError, match="quintic"):
            aca.odeint(Net(), Net().y0, times(F64), method="rk4", options={"interp": "quintic"})


class TestAdaptiveSteps:
    # The estimate of fehlberg2 is a five-hundredth of the step's second difference: its error is larger than asked for.
    TOLERANCE: ClassVar = {
        "adaptive_heun": 1e-4,
        "fehlberg2": 1e-6,
        "bosh3": 1e-6,
        "dopri5": 1e-8,
        "dopri8": 1e-9,
    }

    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_one_step_to_rounding(self, method):
        """The tableau: a step that cannot be rejected."""
        f, t = Net(), times(F64)[[0, 2]]
        options = {"first_step": 0.3, "min_step": 0.3}
        ours, theirs = (
            library.odeint(f, f.y0, t, method=method, options=options | landing(t))[-1]
            for library in (aca, torchdiffeq)
        )
        assert (ours - theirs).abs().max() <= 1e-14

    @pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8"])
    def test_given_steps_to_rounding(self, method):
        """Several steps of one size: first same as last, and the gradient. The others are no FSAL methods."""
        f, t = Net(), torch.linspace(0.0, 1.0, 9, dtype=F64)
        options = {"first_step": 0.125, "min_step": 0.125, "max_step": 0.125}
        ours, theirs = (
            results(library, "odeint", f, t, method=method, options=options) for library in (aca, torchdiffeq)
        )
        assert_close(ours, theirs, 1e-12, "ys", "y0", "parameters")

    @pytest.mark.parametrize(
        ("method", "problem", "backwards"), covering(ADAPTIVE, PROBLEMS, [False, True], strength=2)
    )
    def test_to_the_tolerance(self, method, problem, backwards):
        f, t = PROBLEMS[problem](), times(F64, backwards)[[0, 2, 7]]
        tolerance = self.TOLERANCE[method]
        settings = {"method": method, "rtol": tolerance, "atol": tolerance}
        ours = results(aca, "odeint", f, t, **settings)
        theirs = results(torchdiffeq, "odeint", f, t, **settings, options=landing(t))
        factor = 1000 if method == "fehlberg2" else 50
        assert_close(ours, theirs, 50 * tolerance, "ys", "y0", "parameters")
        # Its time gradients are off where the last stage is not f(t1, y1).
        assert_close(ours, exact(problem, 0, 2, 7, backwards=backwards), factor * tolerance)

    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_float32(self, method):
        f, t = Net(F32), times(F32)[[0, 2, 7]]
        settings = {"method": method, "rtol": 1e-5, "atol": 1e-5}
        ours = results(aca, "odeint", f, t, **settings)
        theirs = results(torchdiffeq, "odeint", f, t, **settings, options=landing(t))
        assert_close(ours, theirs, 2e-3, "ys", "y0", "parameters")

    @pytest.mark.parametrize(
        ("method", "problem", "backwards"),
        covering(["bosh3", "dopri5", "dopri8"], ["net", "predators", "pair"], [False, True], strength=2),
    )
    def test_adjoint(self, method, problem, backwards):
        f, t = PROBLEMS[problem](), times(F64, backwards)[[0, 2, 7]]
        tolerance = self.TOLERANCE[method]
        settings = {"method": method, "rtol": tolerance, "atol": tolerance}
        ours = results(aca, "odeint_adjoint", f, t, **settings)
        assert_close(ours, exact(problem, 0, 2, 7, backwards=backwards), 20 * tolerance)
        if not backwards:  # there the step_t of its backward pass have the wrong sign
            theirs = results(torchdiffeq, "odeint_adjoint", f, t, **settings, options=landing(t))
            assert_close(ours, theirs, 50 * tolerance, "ys", "y0", "parameters")

    @pytest.mark.parametrize("method", ["bosh3", "dopri8"])
    def test_many_outputs_keep_the_tolerance(self, method):
        """Outputs between steps: not by torchdiffeq's interpolants, which lose digits here."""
        f, t = Net(), torch.linspace(0.0, 2.0, 100, dtype=F64)
        right = torchdiffeq.odeint(f, f.y0, t, rtol=1e-10, atol=1e-10)
        tolerance = self.TOLERANCE[method]
        ours = aca.odeint(f, f.y0, t, method=method, rtol=tolerance, atol=tolerance)
        theirs = torchdiffeq.odeint(f, f.y0, t, method=method, rtol=tolerance, atol=tolerance)
        assert (ours - right).abs().max() < 10 * tolerance
        assert (theirs - right).abs().max() > 10 * tolerance

    def test_outputs_cost_no_evaluations(self):
        def evaluations(n):
            f = Recorder()
            aca.odeint(f, torch.ones(1, dtype=F64), torch.linspace(0, 2, n, dtype=F64), rtol=1e-6)
            return len(f.calls)

        assert evaluations(500) == evaluations(2)

    def test_float32_at_the_default_tolerances(self):
        """rtol 1e-7 and atol 1e-9 are below float32's resolution; torchdiffeq gets through, so do we."""
        f, t = Net(F32), times(F32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = results(aca, "odeint", f, t)
        for name, right in exact("net", *range(8)).items():
            for mine, other in zip(ours[name], right, strict=True):
                assert (mine - other).abs().max() < 2e-4 * (1 + other.abs().max()), name

    def test_never_beyond_the_last_time(self):
        ours, theirs = Recorder(), Recorder()
        ours.solve()
        theirs.solve(library=torchdiffeq)
        assert max(ours.calls) == 2.0 < max(theirs.calls)


class TestStepOptions:
    def test_first_step(self):
        f = Recorder()
        f.solve(first_step=0.01)
        assert f.trials[0] == (0.0, 0.01)
        g = Recorder()
        g.solve(first_step=torch.tensor(0.01, dtype=F64))
        assert g.trials == f.trials

    def test_max_step(self):
        f = Recorder()
        f.solve(max_step=0.04)
        assert max(dt for _, dt in f.trials) <= 0.04 * (1 + 1e-12)
        assert len(f.accepted) >= 50

    def test_min_step_accepts_whatever_the_error(self):
        ours, theirs = Recorder(), Recorder()
        one, two = (
            ours.solve(min_step=0.25),
            theirs.solve(min_step=0.25, step_t=torch.tensor([2.0]), library=torchdiffeq),
        )
        assert ours.rejected == []
        assert len(ours.accepted) == 8
        assert torch.allclose(one, two, rtol=1e-12)

    def test_safety(self):
        bold, timid = Recorder(), Recorder()
        bold.solve(safety=0.95)
        timid.solve(safety=0.5)
        assert len(timid.accepted) > 1.3 * len(bold.accepted)

    def test_ifactor(self):
        f = Recorder(rate=torch.zeros_like)  # no error at all: every step grows as much as it may
        f.solve(first_step=1e-3, ifactor=3.0)
        sizes = [dt for _, dt in f.accepted[:-1]]
        assert sizes == pytest.approx([1e-3 * 3**n for n in range(len(sizes))], rel=1e-6)
        assert len(sizes) > 4

    def test_dfactor(self):
        f = Recorder(rate=lambda t: 1e3 * torch.cos(20 * t))
        f.solve(t1=0.01, first_step=0.01, dfactor=0.5)
        sizes = [dt for t, dt in f.trials if t == 0.0]
        assert len(f.rejected) > 1
        assert sizes[:3] == pytest.approx([0.01, 0.005, 0.0025])

    @pytest.mark.parametrize("option", ["step_t", "jump_t"])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_step_t_and_jump_t_end_a_step(self, option, backwards):
        t0, t1 = (2.0, 0.0) if backwards else (0.0, 2.0)
        f = Recorder()
        f.solve(t0, t1, **{option: torch.tensor([1.7, 0.3, 1.1], dtype=F64)})
        sign = -1 if backwards else 1
        ends = [t + sign * dt for t, dt in f.accepted]
        for stop in (0.3, 1.1, 1.7):
            assert min(abs(end - stop) for end in ends) < 1e-12
        assert max(f.calls) <= 2.0
        assert min(f.calls) >= 0.0

    def test_f_is_not_evaluated_at_a_jump(self):
        f = Recorder()
        f.solve(jump_t=torch.tensor([0.7], dtype=F64))
        assert 0.7 not in f.calls
        near = {t for t in f.calls if abs(t - 0.7) < 1e-12}
        assert near == {math.nextafter(0.7, 0.0), math.nextafter(0.7, 1.0)}

    def test_times_outside_of_the_span_do_not_matter(self):
        f, g = Recorder(), Recorder()
        f.solve(jump_t=torch.tensor([-1.0, 5.0]))
        g.solve()
        assert f.accepted == g.accepted

    def test_max_num_steps(self):
        with pytest.raises(SolverError, match="max_steps = 7") as caught:
            Recorder().solve(max_num_steps=7)
        assert caught.value.kind == "max-steps"

    def test_max_num_steps_that_suffices(self):
        f, g = Recorder(), Recorder()
        g.solve()
        f.solve(max_num_steps=len(g.trials))
        assert f.accepted == g.accepted

    def test_dtype_changes_nothing(self):
        """Times are always float64 here."""
        assert torch.equal(Recorder().solve(dtype=F32), Recorder().solve())

    def test_norm_decides(self):
        f, g = Recorder(), Recorder()
        f.solve(norm=lambda y: y.abs().max())
        g.solve(norm=lambda y: 100 * y.abs().max())
        assert len(g.accepted) > 1.5 * len(f.accepted)

    def test_norm_beside_a_fixed_method_is_accepted(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            options = {"step_size": 0.1, "norm": torch.norm}
            aca.odeint(lambda t, y: -y, torch.ones(1), times(F64), method="euler", options=options)


class TestPerturb:
    @pytest.mark.parametrize("interface", INTERFACES)
    @pytest.mark.parametrize("method", FIXED)
    def test_f_is_evaluated_strictly_inside_of_steps(self, method, interface):
        calls = []

        def f(t, y):
            calls.append(float(t))
            return y

        for perturb in (False, True):
            calls.clear()
            y0 = torch.ones(1, dtype=F64, requires_grad=True)
            options = {"step_size": 0.5, "perturb": perturb}
            params = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
            solve = getattr(aca, interface)
            ys = solve(f, y0, torch.tensor([0.0, 1.0], dtype=F64), method=method, options=options, **params)
            ys.sum().backward()
            touched = {0.0, 0.5, 1.0} & set(calls)
            assert touched == (
                set() if perturb else {0.0, 0.5, 1.0} if method in {"heun2", "rk4"} else touched
            )
            assert perturb or {0.0, 0.5} <= touched

    @pytest.mark.parametrize("method", FIXED)
    def test_values(self, method):
        def f(t, y):
            return torch.where(t < 0.5, -y, 2 * y)

        y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
        for perturb in (False, True):
            options = {"step_size": 0.5, "perturb": perturb}
            ours, theirs = (
                lib.odeint(f, y0, t, method=method, options=options) for lib in (aca, torchdiffeq)
            )
            assert torch.allclose(ours, theirs, rtol=1e-14)


class TestTolerances:
    STIFF = torch.tensor([1.0, 25.0], dtype=F64)

    def solve(self, rtol=1e-6, atol=1e-6, tupled=True):
        """Evaluations and the end values of two oscillators, a slow one and a fast one."""
        calls = []

        def f(t, y):
            calls.append(t)
            if isinstance(y, tuple):
                return tuple(torch.cos(w * t) * x for w, x in zip(self.STIFF, y))
            return torch.cos(self.STIFF * t) * y

        y0 = torch.ones(2, dtype=F64)
        state = tuple(y0) if tupled else y0
        ys = aca.odeint(f, state, torch.tensor([0.0, 2.0], dtype=F64), rtol=rtol, atol=atol)
        return len(calls), torch.stack(ys, -1)[-1] if tupled else ys[-1]

    def exact(self):
        return torch.exp(torch.sin(2 * self.STIFF) / self.STIFF)

    @pytest.mark.parametrize("form", [tuple, list, torch.tensor], ids=["tuple", "list", "tensor"])
    @pytest.mark.parametrize("tupled", [True, False])
    def test_one_tolerance_per_component(self, form, tupled):
        tight, _ = self.solve(form([1e-8, 1e-8]), form([1e-8, 1e-8]), tupled)
        mixed, end = self.solve(form([1e-8, 1e-2]), form([1e-8, 1e-2]), tupled)
        assert mixed < 0.6 * tight
        assert abs(end - self.exact())[0] < 1e-6
        assert abs(end - self.exact())[1] > 1e-6

    @pytest.mark.parametrize("scalar", [torch.tensor(1e-5), torch.tensor([1e-5], dtype=F64)])
    def test_a_tensor_with_one_entry_is_a_number(self, scalar):
        number = float(scalar)
        assert self.solve(scalar, scalar, False)[0] == self.solve(number, number, False)[0]
        if scalar.ndim == 0:
            assert self.solve(scalar, scalar)[0] == self.solve(number, number)[0]

    def test_nested_tensors(self):
        """A tuple's tolerance may itself be a tensor of that entry's shape."""
        f = Pair()
        atol = (torch.full((2, 3), 1e-7, dtype=F64), 1e-7)
        nested = aca.odeint(f, f.y0, times(F64), rtol=1e-7, atol=atol)
        plain = aca.odeint(f, f.y0, times(F64), rtol=1e-7, atol=1e-7)
        for mine, other in zip(nested, plain):
            assert torch.allclose(mine, other, rtol=1e-12)

    @pytest.mark.parametrize("name", ["rtol", "atol"])
    def test_wrong_number_of_tolerances(self, name):
        with pytest.raises(ValueError, match=name):
            self.solve(**{name: [1e-3, 1e-3, 1e-3]})
        with pytest.raises(ValueError, match=name):
            self.solve(**{name: torch.tensor([1e-3, 1e-3, 1e-3])}, tupled=False)

    def test_mixed_norm_for_tuples(self):
        """The largest of the tensors' RMS values: a large quiet tensor does not hide a small busy one."""
        calls = []

        def f(t, y):
            calls.append(t)
            return torch.zeros_like(y[0]), torch.cos(5 * t) * y[1]

        def evaluations(size):
            calls.clear()
            y0 = (torch.ones(size, dtype=F64), torch.ones(1, dtype=F64))
            aca.odeint(f, y0, torch.tensor([0.0, 2.0], dtype=F64))
            return len(calls)

        assert evaluations(10_000) == evaluations(1)


class TestAdjointArguments:
    def gradients(self, library=aca, **options):
        f = Predators()
        return results(library, "odeint_adjoint", f, times(F64)[[0, 4, 7]], **options)

    def test_adjoint_tolerances(self):
        right = exact("predators", 0, 4, 7)
        loose = self.gradients(rtol=1e-9, atol=1e-9, adjoint_rtol=1e-3, adjoint_atol=1e-3)
        tight = self.gradients(rtol=1e-9, atol=1e-9)
        assert_close(loose, tight, 0.0, "ys")
        error = [
            max((a - b).abs().max() for a, b in zip(run["parameters"], right["parameters"]))
            for run in (loose, tight)
        ]
        assert 1e-6 < error[0] < 1e-2
        assert error[1] < 1e-7

    def test_adjoint_tolerances_of_tuples(self):
        f = Pair()
        per_tensor = results(
            aca, "odeint_adjoint", f, times(F64), adjoint_rtol=[1e-9, 1e-9], adjoint_atol=(1e-9, 1e-9)
        )
        plain = results(aca, "odeint_adjoint", f, times(F64), adjoint_rtol=1e-9, adjoint_atol=1e-9)
        assert_close(per_tensor, plain, 1e-10)

    def test_adjoint_method(self):
        options = {
            "rtol": 1e-9,
            "atol": 1e-9,
            "adjoint_method": "rk4",
            "adjoint_options": {"step_size": 0.05},
        }
        assert_close(self.gradients(**options), self.gradients(torchdiffeq, **options), 1e-7)
        right = exact("predators", 0, 4, 7)
        coarse = self.gradients(**options | {"adjoint_options": {"step_size": 0.4}})
        fine = self.gradients(**options)
        error = [(run["parameters"][0] - right["parameters"][0]).abs().max() for run in (coarse, fine)]
        assert error[0] > 100 * error[1] > 0

    def test_another_adjoint_method_needs_its_own_options(self):
        with pytest.raises(ValueError, match="adjoint_options"):
            self.gradients(method="rk4", options={"step_size": 0.1}, adjoint_method="dopri5")

    def test_adjoint_of_a_fixed_method_by_an_adaptive_one(self):
        ours, theirs = (
            self.gradients(
                library,
                method="rk4",
                options={"step_size": 0.05},
                adjoint_method="dopri5",
                adjoint_options={},
            )
            for library in (aca, torchdiffeq)
        )
        assert_close(ours, theirs, 1e-6)

    def test_seminorm_saves_evaluations(self):
        torch.manual_seed(0)

        class Busy(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2)).double()
                self.calls = 0

            def forward(self, t, y):
                self.calls += 1
                return self.layers(y) * torch.sin(20 * t)

        f, y0, t = Busy(), torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
        calls, grads = [], []
        for options in ({}, {"norm": "seminorm"}):
            ys = aca.odeint_adjoint(f, y0, t, adjoint_options=options)
            f.calls = 0
            grads.append(torch.autograd.grad(ys.sum(), [*f.parameters()]))
            calls.append(f.calls)
        assert calls[1] < calls[0]
        for one, two in zip(*grads):
            assert (one - two).abs().max() < 1e-4 * (1 + one.abs().max())

    def test_adjoint_norm_sees_the_parts(self):
        shapes = set()

        def norm(parts):
            assert isinstance(parts, tuple)
            shapes.add(tuple(tuple(part.shape) for part in parts))
            return max(part.abs().max() for part in parts)

        f = Predators()
        aca.odeint_adjoint(f, f.y0, times(F64), adjoint_options={"norm": norm}).sum().backward()
        assert shapes == {((), (2,), (2,), (4,))}
        shapes.clear()
        f = Pair()
        aca.odeint_adjoint(f, f.y0, times(F64), adjoint_options={"norm": norm})[0].sum().backward()
        assert shapes == {((), (2, 3), (), (2, 3), (), (3, 3))}

    def test_the_forward_norm_is_not_used_backwards(self):
        """As in torchdiffeq: `options` are inherited, but for the norm."""

        def norm(y):
            assert y.shape == (2,)
            return y.abs().max()

        f = Predators()
        aca.odeint_adjoint(f, f.y0, times(F64), options={"norm": norm}).sum().backward()
        assert f.rates.grad.abs().min() > 0

    def test_unknown_adjoint_norm(self):
        f = Predators()
        with pytest.raises(ValueError, match="seminorm"):
            aca.odeint_adjoint(f, f.y0, times(F64), adjoint_options={"norm": "l2"})


class TestAdjointParams:
    class WithUnused(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.7, dtype=F64))
            self.unused = nn.Linear(2, 3, dtype=F64)
            self.unused_and_frozen = nn.Parameter(torch.ones(2, dtype=F64), requires_grad=False)
            self.list = nn.ModuleList([nn.Linear(1, 1, dtype=F64), nn.Linear(2, 2, dtype=F64)])

        def forward(self, t, y):
            return -self.rate * y + self.list[1](y)

    @pytest.mark.parametrize("method", ["dopri5", "rk4"])
    def test_zero_and_not_none_for_what_f_does_not_use(self, method):
        for library in (aca, torchdiffeq):
            f = self.WithUnused()
            extra = torch.ones(3, dtype=F64, requires_grad=True)
            y0, t = torch.ones(2, dtype=F64), times(F64)
            library.odeint_adjoint(f, y0, t, method=method).sum().backward()
            assert {name for name, p in f.named_parameters() if p.grad is None} == {"unused_and_frozen"}
            silent = {name for name, p in f.named_parameters() if p.grad is not None and not p.grad.any()}
            assert silent == {"unused.weight", "unused.bias", "list.0.weight", "list.0.bias"}
            params = (extra, *f.parameters())
            library.odeint_adjoint(f, y0, t, method=method, adjoint_params=params).sum().backward()
            assert torch.equal(extra.grad, torch.zeros_like(extra))

    @pytest.mark.parametrize("interface", INTERFACES)
    def test_a_single_time(self, interface):
        f = self.WithUnused()
        y0 = torch.ones(2, dtype=F64, requires_grad=True)
        ys = getattr(aca, interface)(f, y0, times(F64)[:1])
        assert torch.equal(ys, y0[None])
        (3 * ys).sum().backward()
        assert torch.equal(y0.grad, torch.full_like(y0, 3.0))

    def test_only_the_declared_ones(self):
        f = self.WithUnused()
        aca.odeint_adjoint(f, torch.ones(2, dtype=F64), times(F64), adjoint_params=[f.rate]).sum().backward()
        assert [name for name, p in f.named_parameters() if p.grad is not None] == ["rate"]

    def test_a_generator(self):
        f, g = self.WithUnused(), self.WithUnused()
        g.load_state_dict(f.state_dict())
        y0 = torch.ones(2, dtype=F64)
        aca.odeint_adjoint(f, y0, times(F64), adjoint_params=(p for p in f.parameters())).sum().backward()
        aca.odeint_adjoint(g, y0, times(F64)).sum().backward()
        for mine, other in zip(f.parameters(), g.parameters()):
            assert (mine.grad is None and other.grad is None) or torch.equal(mine.grad, other.grad)

    def test_empty(self):
        f = self.WithUnused()
        y0 = torch.ones(2, dtype=F64, requires_grad=True)
        aca.odeint_adjoint(f, y0, times(F64), adjoint_params=()).sum().backward()
        assert y0.grad.abs().min() > 0
        assert all(p.grad is None for p in f.parameters())

    def test_a_function_needs_no_adjoint_params(self):
        """torchdiffeq refuses functions without them; here captured tensors are found."""
        rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
        y0, t = torch.ones(2, dtype=F64), times(F64)
        aca.odeint_adjoint(lambda t, y: -rate * y, y0, t).sum().backward()
        exact = -((t - t[0]) * torch.exp(-0.7 * (t - t[0]))).sum() * 2
        assert rate.grad.item() == pytest.approx(exact.item(), rel=1e-6)
        with pytest.raises(ValueError, match="adjoint_params"):
            torchdiffeq.odeint_adjoint(lambda t, y: -rate * y, y0, t)

    def test_a_parameter_with_a_history(self):
        base = torch.tensor(0.35, dtype=F64, requires_grad=True)
        rate = 2 * base
        y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
        for library in (aca, torchdiffeq):
            end = library.odeint_adjoint(lambda t, y: -rate * y, y0, t, adjoint_params=(rate,))[-1].sum()
            (grad,) = torch.autograd.grad(end, base, retain_graph=True)
            assert grad.item() == pytest.approx(-4 * math.exp(-0.7), rel=1e-6)


class TestCallbacks:
    NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")

    def module(self, problem, suffix="", names=NAMES):
        f, log = problem(), []
        for name in names:
            setattr(f, name + suffix, lambda t, y, dt, name=name: log.append((name, t, y, dt)))
        return f, log

    @pytest.mark.parametrize("problem", [Net, Pair])
    def test_an_adaptive_method(self, problem):
        f, log = self.module(problem)
        ys = aca.odeint(f, f.y0, times(F64), options={"first_step": 1.0})
        kinds = [name for name, *_ in log]
        assert kinds.count("callback_step") == kinds.count("callback_accept_step") + kinds.count(
            "callback_reject_step"
        )
        assert kinds.count("callback_reject_step") > 0
        assert kinds[::2] == ["callback_step"] * (len(kinds) // 2)
        for _, t, y, dt in log:
            assert t.shape == dt.shape == ()
            assert dt > 0
            for part, whole in zip(as_tuple(y), as_tuple(ys), strict=True):
                assert part.shape == whole.shape[1:]
        assert log[0][1] == 0.2

    def test_times_and_sizes_backwards(self):
        f, log = self.module(Predators, names=("callback_accept_step",))
        aca.odeint(f, f.y0, times(F64, backwards=True))
        starts = [float(t) for _, t, _, _ in log]
        sizes = [float(dt) for *_, dt in log]
        assert starts[0] == 1.6
        assert starts == sorted(starts, reverse=True)
        assert sum(sizes) == pytest.approx(1.4)

    @pytest.mark.parametrize("backwards", [False, True])
    def test_the_same_as_torchdiffeqs_with_fixed_steps(self, backwards):
        logs = []
        for library in (aca, torchdiffeq):
            f, log = self.module(Predators, names=("callback_step",))
            library.odeint(f, f.y0, times(F64, backwards), method="rk4", options={"step_size": 0.1})
            logs.append([(float(t), float(dt), *y.tolist()) for _, t, y, dt in log])
        assert len(logs[0]) == len(logs[1])
        for mine, other in zip(*logs):
            assert mine == pytest.approx(other, abs=1e-12)

    @pytest.mark.parametrize("suffix", ["", "_adjoint"])
    def test_forward_and_backward_ones_are_apart(self, suffix):
        f, log = self.module(Predators, suffix)
        ys = aca.odeint_adjoint(f, f.y0, times(F64)[[0, -1]])
        forward = len(log)
        ys.sum().backward()
        backward = len(log) - forward
        assert (forward > 0, backward > 0) == (suffix == "", suffix == "_adjoint")
        if suffix:
            assert log[0][1] == 1.6
            assert all(dt > 0 for *_, dt in log)

    @pytest.mark.parametrize("problem", [Predators, Pair])
    def test_adjoint_callbacks_get_torchdiffeqs_state(self, problem):
        shapes = []
        for library in (aca, torchdiffeq):
            f, log = self.module(problem, "_adjoint", ("callback_step",))
            ys = library.odeint_adjoint(f, f.y0, times(F64)[[0, -1]])
            as_tuple(ys)[0].sum().backward()
            shapes.append([tuple(part.shape) for part in log[0][2]])
        assert shapes[0] == shapes[1]

    def test_callbacks_that_are_never_called_warn(self):
        f, _ = self.module(Predators)
        with pytest.warns(UserWarning, match="callback_accept_step"):
            aca.odeint(f, f.y0, times(F64), method="rk4")


class TestRefusals:
    @pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver"])
    @pytest.mark.parametrize("interface", INTERFACES)
    def test_methods_that_do_not_exist_yet(self, interface, method):
        f = Net()
        with pytest.raises(NotImplementedError, match=f"{method}.*not available yet.*dopri5"):
            getattr(aca, interface)(f, f.y0, times(F64), method=method)

    def test_every_method_of_torchdiffeq_is_known(self):
        for method in importlib.import_module("torchdiffeq._impl.odeint").SOLVERS:
            try:
                aca.odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 0.5, 1.0]), method=method)
            except NotImplementedError as error:
                assert method in str(error)  # noqa: PT017

    @pytest.mark.parametrize("interface", INTERFACES)
    def test_unknown_method(self, interface):
        f = Net()
        with pytest.raises(ValueError, match=r"'dopri4'.*Did you mean 'dopri"):
            getattr(aca, interface)(f, f.y0, times(F64), method="dopri4")

    @pytest.mark.parametrize("method", ["dopri5", "rk4"])
    @pytest.mark.parametrize("interface", INTERFACES)
    def test_unknown_options_warn_once(self, interface, method):
        """torchdiffeq: "Dopri5Solver: Unexpected arguments {'solver_step': 0.1}"."""
        f, t = Net(), times(F64)
        unknown = {"solver_step": 0.1, "grid_points": t, "eps": 1e-3}
        solve = getattr(aca, interface)
        with pytest.warns(UserWarning, match=r"Unexpected arguments \{.*solver_step.*no effect") as caught:
            solve(f, f.y0, t, method=method, options=unknown).sum().backward()
        assert [warning.filename for warning in caught] == [__file__]

    @pytest.mark.parametrize(
        ("method", "wrong", "right"),
        [("dopri5", "frist_step", "first_step"), ("rk4", "stepsize", "step_size")],
    )
    def test_a_misspelt_option_is_warned_of(self, method, wrong, right):
        f = Net()
        with pytest.warns(UserWarning, match=f"'{wrong}'.*Did you mean '{right}'"):
            aca.odeint(f, f.y0, times(F64), method=method, options={wrong: 0.1})

    def test_unknown_adjoint_option(self):
        f = Net()
        with pytest.warns(UserWarning, match="Unexpected arguments.*'seminorm'"):
            aca.odeint_adjoint(f, f.y0, times(F64), adjoint_options={"seminorm": True})

    @pytest.mark.parametrize(
        ("method", "option"),
        [
            ("dopri5", {"step_size": 0.1}),
            ("dopri5", {"max_order": 3}),
            ("rk4", {"first_step": 0.1}),
            ("rk4", {"safety": 1}),
        ],
    )
    def test_an_option_of_another_method_warns(self, method, option):
        f, t = Net(), times(F64)
        with pytest.warns(UserWarning, match=f"{next(iter(option))}.*no effect") as caught:
            ys = aca.odeint(f, f.y0, t, method=method, options=option)
        assert [warning.filename for warning in caught] == [__file__]
        assert torch.equal(ys, aca.odeint(f, f.y0, t, method=method))

    def test_odeint_adjoint_warns_once(self):
        f = Net()
        with pytest.warns(UserWarning, match="step_size.*no effect") as caught:
            aca.odeint_adjoint(f, f.y0, times(F64), options={"step_size": 0.1}).sum().backward()
        assert [warning.filename for warning in caught] == [__file__]

    def test_integer_state(self):
        with pytest.raises(TypeError, match="int64"):
            aca.odeint(lambda t, y: y, torch.tensor([1, 2]), times(F64))

    @pytest.mark.parametrize("bad", [[0.0, 1.0, 0.5], [0.0, math.nan], [0.0, math.inf]])
    def test_bad_times(self, bad):
        with pytest.raises(ValueError, match=r"t\["):
            aca.odeint(lambda t, y: y, torch.ones(1), torch.tensor(bad))


class TestBeyondTorchdiffeq:
    """What torchdiffeq refuses and we take."""

    def test_times(self):
        f = Predators()
        expected = aca.odeint(f, f.y0, torch.tensor([0.0, 1.0, 1.0], dtype=F64))
        assert torch.equal(expected[1], expected[2])
        for t in ([0.0, 1.0, 1.0], torch.tensor([0, 1, 1])):
            assert torch.equal(aca.odeint(f, f.y0, t), expected)

    def test_dicts_as_states(self):
        y0 = {"x": torch.ones(2, dtype=F64), "v": torch.zeros(2, dtype=F64)}
        ys = aca.odeint(lambda t, y: {"x": y["v"], "v": -y["x"]}, y0, torch.linspace(0, 1, 3, dtype=F64))
        assert torch.allclose(ys["x"][-1], torch.cos(torch.ones(2, dtype=F64)), rtol=1e-6)

    def test_second_derivatives_through_odeint(self):
        f, y0 = Predators(), Predators().y0.requires_grad_()
        t = times(F64)[[0, 3]]
        hessians = []
        for library in (aca, torchdiffeq):
            end = library.odeint(f, y0, t, rtol=1e-8, atol=1e-8)[-1]
            (first,) = torch.autograd.grad(end.square().sum(), y0, create_graph=True)
            hessians.append(torch.stack([torch.autograd.grad(x, y0, retain_graph=True)[0] for x in first]))
        assert torch.allclose(*hessians, rtol=1e-6)
        assert torch.allclose(hessians[0], hessians[0].T, rtol=1e-9)

    def test_complex_state_with_real_parameters_through_the_adjoint(self):
        rate = torch.tensor(0.8, dtype=F64, requires_grad=True)
        y0, t = torch.tensor([1.0 + 1.0j], dtype=C128), torch.tensor([0.0, 1.0], dtype=F64)
        (exact,) = torch.autograd.grad((y0 * torch.exp(1j * rate)).real.sum(), rate)
        for solve in (aca.odeint, aca.odeint_adjoint):
            ys = solve(lambda t, y: 1j * rate * y, y0, t, rtol=1e-9, atol=1e-9)
            (grad,) = torch.autograd.grad(ys[-1].real.sum(), rate)
            assert grad.item() == pytest.approx(exact.item(), rel=1e-6)
