"""What torchdiffeq's own test-suite asks of it, asked of `odeint` and `odeint_adjoint` here.

Problems with closed forms forwards and backwards in both precisions, no integration at all, jumps, given grids,
perturbed times, norms, states of several tensors, and gradients by differences.
"""

import math
from typing import ClassVar

import pytest
import torch
from covering import covering, pairs
from torch import nn
from torch.autograd import gradcheck

import torchaca as aca
from torchaca.methods import ALIASES, METHODS

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("adaptive_heun", "bosh3", "fehlberg2", "dopri5", "dopri8")
F32, F64 = torch.float32, torch.float64


class Constant(nn.Module):
    """A solution of slope a, and a fifth power that drives away from it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.2))
        self.b = nn.Parameter(torch.tensor(3.0))

    def forward(self, t, y):
        return self.a + (y - self.solution(t)) ** 5

    def solution(self, t):
        return self.a * t + self.b


class Sine(nn.Module):
    """Grows like t^4 while it oscillates."""

    def forward(self, t, y):
        return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3

    def solution(self, t):
        swing = torch.cos(2 * t) * (t**2 / 4 - t**4 / 2) + torch.sin(2 * t) * t**3 / 2
        return swing - t**3 + 2 * t**4 + (math.pi - 0.25) * t**2


class Linear(nn.Module):
    """A rotation in ten dimensions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        matrix = 0.1 * torch.randn(10, 10)
        self.matrix = nn.Parameter(matrix - matrix.T)

    def forward(self, t, y):
        return self.matrix @ y

    def solution(self, t):
        flows = torch.linalg.matrix_exp(self.matrix.detach().double() * t.detach().double()[:, None, None])
        return flows.sum(-1).to(t.dtype)


def problem(ode, dtype=F64, reverse=False, n=10):
    f = ode().to(dtype)
    t = torch.linspace(1, 8, n, dtype=dtype)
    t = t.flip(0) if reverse else t
    exact = f.solution(t).detach()
    return f, exact[0].clone().requires_grad_(), t.requires_grad_(), exact


def relative_error(exact, ys):
    return ((exact - ys) / exact).abs().max()


class TestClosedForms:
    """At torchdiffeq's default tolerances, without warning or error in float32 too."""

    BOUNDS: ClassVar = {
        Constant: dict.fromkeys(ADAPTIVE, 1e-5) | dict.fromkeys(FIXED, 1e-5),
        Sine: {"bosh3": 1e-4, "dopri5": 1e-4, "dopri8": 1e-10},
        Linear: {"bosh3": 2e-3, "fehlberg2": 1e-2, "dopri5": 2e-3, "dopri8": 1e-10},
    }
    CASES: ClassVar = [(ode, method) for ode, bounds in BOUNDS.items() for method in bounds]

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("dtype", [F32, F64])
    @pytest.mark.parametrize(("ode", "method"), CASES)
    def test_odeint(self, ode, method, dtype, reverse):
        f, y0, t, exact = problem(ode, dtype, reverse)
        tolerances = {"rtol": 1e-12, "atol": 1e-14} if method == "dopri8" and dtype == F64 else {}
        ys = aca.odeint(f, y0, t, method=method, **tolerances)
        assert ys.dtype == dtype
        bound = self.BOUNDS[ode][method]
        assert relative_error(exact, ys) < (bound if dtype == F64 else max(bound, 1e-3))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [F32, F64])
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("ode", [Sine, Linear])
    def test_adaptive_heun(self, ode, reverse, dtype):
        f, y0, t, exact = problem(ode, dtype, reverse)
        assert relative_error(exact, aca.odeint(f, y0, t, method="adaptive_heun")) < 4e-3

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("dtype", [F32, F64])
    @pytest.mark.parametrize("ode", [Constant, Sine, Linear])
    def test_adjoint(self, ode, dtype, reverse):
        f, y0, t, exact = problem(ode, dtype, reverse)
        assert relative_error(exact, aca.odeint_adjoint(f, y0, t)) < (2e-3 if ode is Linear else 1e-4)

    @pytest.mark.parametrize(
        ("method", "ode", "dtype", "reverse"),
        covering(FIXED + ADAPTIVE, [Constant, Sine, Linear], [F32, F64], [False, True], strength=2),
    )
    def test_no_integration(self, method, ode, dtype, reverse):
        f, y0, t, _ = problem(ode, dtype, reverse)
        calls = []

        def counted(t, y):
            calls.append(t)
            return f(t, y)

        assert torch.equal(aca.odeint(counted, y0, t[:1], method=method), y0[None])
        assert calls == []


class TestSeveralTensors:
    @pytest.mark.parametrize("dtype", [F32, F64])
    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_values(self, method, dtype):
        f, y0, t, exact = problem(Constant, dtype)
        ys = aca.odeint(lambda t, y: (f(t, y[0]), f(t, y[1])), (y0, y0), t, method=method)
        assert isinstance(ys, tuple)
        for each in ys:
            assert (exact - each).abs().max() < (1e-5 if dtype == F32 else 1e-12)

    @pytest.mark.parametrize(("method", "i"), pairs(ADAPTIVE, [0, 1]))
    def test_gradient(self, method, i):
        f, y0, t, _ = problem(Constant)

        def one(y0, t):
            return aca.odeint(lambda t, y: (f(t, y[0]), f(t, y[1])), (y0, y0), t, method=method)[i]

        assert gradcheck(one, (y0, t))


class Jump:
    """Decays before t = 0.5 and grows after it; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, t, y):
        self.calls += 1
        return torch.where(t < 0.5, -0.5 * y, y**2)


class TestDiscontinuities:
    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("dtype", [F32, F64])
    @pytest.mark.parametrize("method", ["adaptive_heun", "bosh3", "dopri5", "dopri8"])
    def test_jump_t_saves_evaluations(self, method, dtype, interface):
        if (method, dtype) == ("dopri8", F32):
            pytest.skip("its tolerance is far below float32 here")
        counts = []
        tolerance = 1e-4 if method == "adaptive_heun" else 1e-6
        for options in ({}, {"jump_t": torch.tensor([0.5])}):
            f, y0 = Jump(), torch.tensor([0.5, 1.0], dtype=dtype, requires_grad=True)
            extra = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
            t = torch.tensor([0.0, 1.0], dtype=dtype)
            tolerances = {"rtol": tolerance, "atol": tolerance}
            ys = getattr(aca, interface)(f, y0, t, **tolerances, method=method, options=options, **extra)
            forward = f.calls
            ys[-1].sum().backward()
            counts.append((forward, f.calls - forward))
            # y' = y^2 from y(0.5) = exp(-0.25) y0
            middle = y0.detach() * math.exp(-0.25)
            bound = 10 * tolerance if options else 0.02  # an estimate means little in a step across a jump
            assert torch.allclose(ys[-1].detach(), middle / (1 - 0.5 * middle), rtol=bound)
            assert torch.allclose(y0.grad, math.exp(-0.25) / (1 - 0.5 * middle) ** 2, rtol=2 * bound)
        (forward, backward), (better_forward, better_backward) = counts
        assert better_forward < forward
        # odeint keeps the graph of its steps; it may look at one of them again.
        looks = (0, {**METHODS, **ALIASES}[method].stages)
        kept = better_backward in looks and backward in looks
        assert kept if interface == "odeint" else better_backward < backward

    def test_more_than_one_jump(self):
        calls = [0]

        def f(t, y):
            calls[0] += 1
            return torch.floor(8 * t) * y

        t = torch.tensor([0.0, 1.0], dtype=F64)
        jumps = torch.arange(1, 8, dtype=F64) / 8
        ys = aca.odeint(f, torch.ones((), dtype=F64), t, options={"jump_t": jumps})
        assert ys[-1].item() == pytest.approx(math.exp(3.5), rel=1e-6)
        with_jumps, calls[0] = calls[0], 0
        aca.odeint(f, torch.ones((), dtype=F64), t)
        assert with_jumps < 0.5 * calls[0]


class TestGridConstructor:
    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    def test_ten_steps_of_euler(self, interface):
        def grid(func, y0, t):
            assert callable(func)
            assert y0.shape == ()
            assert sorted(t.tolist()) == [0.0, 1.0]
            return torch.linspace(float(t[0]), float(t[1]), 11, dtype=t.dtype)

        y0 = torch.tensor(1.0, dtype=F64, requires_grad=True)
        extra = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
        t = torch.tensor([0.0, 1.0], dtype=F64)
        options = {"grid_constructor": grid}
        ys = getattr(aca, interface)(lambda t, y: y, y0, t, method="euler", options=options, **extra)
        ys[-1].backward()
        assert ys[-1].item() == pytest.approx(1.1**10, rel=1e-14)
        assert y0.grad.item() == pytest.approx(1.1**10, rel=1e-14)


class TestPerturb:
    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("method", FIXED)
    def test_the_ends_of_steps_are_not_seen(self, method, interface):
        def seen(perturb):
            times = []

            def f(t, y):
                times.append(float(t))
                return y

            y0 = torch.ones((), dtype=F64, requires_grad=True)
            t = torch.tensor([0.0, 1.0], dtype=F64)
            extra = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
            options = {"step_size": 0.5, "perturb": perturb}
            getattr(aca, interface)(f, y0, t, method=method, options=options, **extra)[-1].backward()
            return set(times)

        assert {0.0, 0.5} <= seen(perturb=False)
        assert not {0.0, 0.5, 1.0} & seen(perturb=True)


class TestNorms:
    @pytest.mark.parametrize(
        ("y0", "shapes"),
        [
            (torch.tensor(1.0), ()),
            ((torch.tensor(1.0),), [()]),
            ((torch.tensor(1.0), torch.tensor([[0.5, 0.5], [0.1, 0.1]])), [(), (2, 2)]),
        ],
    )
    def test_a_norm_sees_the_state(self, y0, shapes):
        calls = []

        def norm(state):
            calls.append(state)
            if isinstance(y0, torch.Tensor):
                assert isinstance(state, torch.Tensor)
                assert state.shape == shapes
                return state.abs()
            assert isinstance(state, tuple)
            assert [part.shape for part in state] == shapes
            return state[0].abs()

        aca.odeint(lambda t, y: y, y0, torch.tensor([0.0, 1.0]), rtol=1e-4, atol=1e-4, options={"norm": norm})
        assert len(calls) > 3

    class Busy(nn.Module):
        def __init__(self, width, dtype):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2), nn.Tanh()).to(
                dtype
            )
            self.calls = 0

        def forward(self, t, y):
            self.calls += 1
            return self.layers(y) * torch.sin(20 * t)

    @pytest.mark.parametrize("dtype", [F32, F64])
    @pytest.mark.parametrize("method", ["adaptive_heun", "bosh3", "dopri5", "dopri8"])
    def test_a_larger_norm_costs_more(self, method, dtype):
        if (method, dtype) == ("dopri8", F32):
            pytest.skip("its tolerance is far below float32 here")
        calls = []
        for factor in (1, 10):
            f = self.Busy(10, dtype)
            y0, t = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
            options = {"norm": lambda y, factor=factor: factor * y.abs().max()}
            aca.odeint(f, y0, t, method=method, rtol=1e-4, atol=1e-6, options=options)
            calls.append(f.calls)
        assert calls[0] < calls[1]

    @pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8"])
    def test_the_seminorm_costs_less(self, method):
        calls = []
        for options in ({}, {"norm": "seminorm"}):
            f = self.Busy(64, F64)
            y0, t = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
            ys = aca.odeint_adjoint(f, y0, t, atol=1e-6, rtol=1e-5, method=method, adjoint_options=options)
            f.calls = 0
            ys.sum().backward()
            calls.append(f.calls)
        assert calls[1] <= calls[0]


class TestEvents:
    """The solve ends where the sum over the distances from a later state of the solution changes its sign."""

    @pytest.mark.parametrize(
        ("method", "ode", "dtype", "reverse"),
        covering(FIXED + ADAPTIVE, [Constant, Sine], [F32, F64], [False, True], strength=2),
    )
    def test_odeint(self, method, ode, dtype, reverse):
        f, y0, t, exact = problem(ode, dtype, reverse)
        options = {"step_size": 0.01, "interp": "cubic"} if method in FIXED else {}
        found, ys = aca.odeint(
            f, y0, t[:2], event_fn=lambda t, y: (y - exact[2]).sum(), method=method, options=options
        )
        bound = 5e-3 if method == "euler" else 1e-4
        assert relative_error(exact[2], ys[-1]) < bound
        assert relative_error(t[2].detach(), found) < bound

    def test_adjoint(self):
        f, y0, t, exact = problem(Constant)
        found, ys = aca.odeint_adjoint(
            f, y0, t[:2], event_fn=lambda t, y: (y - exact[-1]).sum(), method="dopri5"
        )
        assert relative_error(exact[-1], ys[-1]) < 1e-4
        assert relative_error(t[-1].detach(), found) < 1e-4
        found.backward(retain_graph=True)
        ys[-1].sum().backward()


class TestGradients:
    @pytest.mark.parametrize("method", ["midpoint", "rk4", "dopri5", "bosh3", "adaptive_heun", "dopri8"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_by_differences(self, method, reverse):
        f, y0, t, _ = problem(Constant, reverse=reverse)
        assert gradcheck(lambda y0, t: aca.odeint(f, y0, t, method=method), (y0, t))

    @pytest.mark.parametrize("method", ["midpoint", "rk4", "dopri5", "bosh3", "adaptive_heun", "dopri8"])
    def test_by_differences_on_a_curved_solution(self, method):
        """Constant is solved exactly by every method; this is not."""
        f = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        y0 = torch.tensor([0.3, -0.7, 1.1], dtype=F64, requires_grad=True)
        t = torch.tensor([0.0, 0.3, 0.35, 0.8], dtype=F64, requires_grad=True)
        tolerance = {"adaptive_heun": 1e-4, "bosh3": 1e-6}.get(method, 1e-8)

        def solution(y0, t):
            return aca.odeint(
                lambda t, y: f(y) * torch.cos(t), y0, t, method=method, rtol=tolerance, atol=tolerance
            )

        if method in FIXED:
            assert gradcheck(solution, (y0, t))
        else:  # step sizes change with y0 and t: that moves the solution within the tolerance
            assert gradcheck(solution, (y0, t), eps=1e-4, atol=1e2 * tolerance, rtol=1e-3)

    def test_adjoint_on_a_constant_slope(self):
        grads = []
        for solve in (aca.odeint, aca.odeint_adjoint):
            f, y0, t, _ = problem(Constant)
            ys = solve(f, y0, t, method="dopri5")
            ys.backward(torch.linspace(-1, 1, len(ys), dtype=F64))
            grads.append((y0.grad, t.grad, f.a.grad, f.b.grad))
        for one, two in zip(*grads):
            assert torch.allclose(one, two, rtol=0, atol=1e-12)

    def test_adjoint_against_odeint(self):
        class Cubic(nn.Module):
            def __init__(self):
                super().__init__()
                self.matrix = nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64))
                self.unused = nn.Linear(2, 5, dtype=F64)

            def forward(self, t, y):
                return y**3 @ self.matrix

        torch.manual_seed(0)
        cotangents = 0.1 * torch.rand(10, 1, 2, dtype=F64)
        grads = []
        for solve in (aca.odeint_adjoint, aca.odeint):
            f = Cubic()
            y0 = torch.tensor([[2.0, 0.0]], dtype=F64, requires_grad=True)
            t = torch.linspace(0, 25, 10, dtype=F64, requires_grad=True)
            solve(f, y0, t, method="dopri5").backward(cotangents)
            grads.append((y0.grad, t.grad, f.matrix.grad))
            if solve is aca.odeint_adjoint:
                assert not f.unused.weight.grad.any()
                assert not f.unused.bias.grad.any()
        for one, two, bound in zip(*grads, (3e-4, 1e-4, 2e-3), strict=True):
            assert (one - two).abs().max() < bound
            assert two.abs().max() > 10 * bound
