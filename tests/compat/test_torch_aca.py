"""The authors' import name and call forms: everything their readme, slides and scripts do with `torch_ACA`."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

import torchaca as aca
from torch_ACA import odesolve, odesolve_adjoint, odesolve_endtime
from torchaca.errors import SolverError

F32, F64 = torch.float32, torch.float64
FIXED = ("Euler", "RK2", "RK4")
ADAPTIVE = ("RK12", "RK23", "RK45", "Dopri5", "HeunEuler")
CALLS = (odesolve, odesolve_endtime, odesolve_adjoint)
CLOSE = {"Euler": 0.2, "RK2": 1e-2, "RK4": 1e-4}
by_method = pytest.mark.parametrize("method", FIXED + ADAPTIVE)
by_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


class Decay(nn.Module):
    """z' = -k z cos t, with its solution; counts its calls."""

    def __init__(self, dtype=F64):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(0.8, dtype=dtype))
        self.z0 = torch.tensor([[1.0, -2.0, 0.5]], dtype=dtype)
        self.calls = []

    def forward(self, t, z):
        self.calls.append(float(t.detach()))
        return -self.k * z * torch.cos(t)

    def solution(self, times, t0=0.0, k=None):
        at = torch.as_tensor(times, dtype=F64).reshape(-1, 1, 1)
        k = self.k.detach().double() if k is None else k
        return self.z0.detach().double() * torch.exp(-k * (torch.sin(at) - math.sin(t0)))


def options_for(method, **more):
    """Options as the scripts write them: fixed methods with a step size."""
    options = {"method": method, "h": 0.05 if method in FIXED else None, "t0": 0.0, "t1": 1.0}
    options.update(
        {"rtol": 1e-7, "atol": 1e-9} if method not in ("RK12", "HeunEuler") else {"rtol": 1e-4, "atol": 1e-5}
    )
    options.update(more)
    return options


def tolerance(method):
    return CLOSE.get(method, 1e-3 if method in ("RK12", "HeunEuler") else 1e-5)


class TestOdesolve:
    def test_as_the_slides_print_it(self):
        odefunc, x = Decay(), Decay().z0
        options = {"method": "HeunEuler", "h": None, "t0": 0.0, "t1": 1.0, "rtol": 1e-5, "atol": 1e-5}
        a1, a2, a3, an = 0.1, 0.4, 0.5, 1.0

        from torch_ACA import odesolve

        options.update({"t_eval": [a1, a2, a3, an]})
        out = odesolve(odefunc, x, options)

        assert out.shape == (4, *x.shape)
        assert torch.allclose(out, odefunc.solution([a1, a2, a3, an]), rtol=1e-4)

    @by_method
    def test_the_end_without_a_leading_dimension(self, method):
        f = Decay()
        out = odesolve(f, f.z0, options_for(method))
        assert out.shape == f.z0.shape
        assert torch.allclose(out, f.solution(1.0)[0], rtol=tolerance(method))

    def test_defaults(self):
        f = Decay()
        expected = odesolve(f, f.z0, {"method": "RK23", "t0": 0.0, "t1": 1.0, "rtol": 1e-3, "atol": 1e-6})
        assert torch.equal(odesolve(f, f.z0, {"method": "RK23"}), expected)

    @by_method
    def test_several_times(self, method):
        f, times = Decay(), [0.0, 0.13, 0.13, 0.5, 0.77, 1.0]
        out = odesolve(f, f.z0, options_for(method, t_eval=times))
        assert out.shape == (6, *f.z0.shape)
        assert torch.equal(out[0], f.z0)
        assert torch.allclose(out, f.solution(times), rtol=tolerance(method))

    @pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
    def test_times_in_every_form(self, form):
        f, times = Decay(), [0.25, 0.5]
        expected = odesolve(f, f.z0, options_for("RK45", t_eval=times))
        assert torch.equal(odesolve(f, f.z0, options_for("RK45", t_eval=form(times))), expected)

    def test_one_time_in_a_list(self):
        f = Decay()
        out = odesolve(f, f.z0, options_for("Dopri5", t_eval=[0.4]))
        assert out.shape == f.z0.shape
        assert torch.allclose(out, f.solution(0.4)[0], rtol=1e-5)

    def test_options_by_keyword(self):
        f = Decay()
        options = options_for("RK23")
        assert torch.equal(odesolve(f, f.z0, options=options), odesolve(f, f.z0, options))

    @by_call
    def test_signatures(self, call):
        names = ["func", "z0", "options"] + (["return_solver"] if call is not odesolve_adjoint else [])
        assert [*inspect.signature(call).parameters][: len(names)] == names

    @by_call
    def test_t_is_a_number_for_f(self, call):
        def f(t, z):
            assert torch.is_tensor(t)
            assert t.shape == ()
            return math.cos(t) * z

        z0 = torch.ones(2, dtype=F64)
        assert torch.allclose(call(f, z0, options_for("RK45")), z0 * math.exp(math.sin(1.0)), rtol=1e-5)

    def test_a_fixed_step_is_the_step(self):
        """RK4 is the classic method, Euler and RK2 (midpoint) as written."""
        z0 = torch.ones(1, dtype=F64)

        def value(method, h):
            return odesolve(lambda t, z: z, z0, {"method": method, "h": h}).item()

        assert value("Euler", 0.1) == pytest.approx(1.1**10, rel=1e-14)
        assert value("RK2", 0.25) == pytest.approx((1 + 0.25 + 0.25**2 / 2) ** 4, rel=1e-14)
        assert value("RK4", 0.5) == pytest.approx(
            (1 + 0.5 + 0.5**2 / 2 + 0.5**3 / 6 + 0.5**4 / 24) ** 2, rel=1e-14
        )

        def g(t, z):
            return torch.sin(z) + t

        classic = aca.solve(g, z0, [0.0, 1.0], method="rk4", dt=0.5).ys[-1]
        assert torch.equal(odesolve(g, z0, {"method": "RK4", "h": 0.5}), classic)

    def test_methods_are_those_of_solve(self):
        f = Decay()
        for theirs, ours in {
            "RK12": "heun_euler",
            "RK23": "bosh3",
            "RK45": "dopri5",
            "Dopri5": "dopri5",
        }.items():
            expected = aca.solve(f, f.z0, [0.0, 1.0], method=ours, rtol=1e-4, atol=1e-6).ys[-1]
            assert torch.equal(odesolve(f, f.z0, {"method": theirs, "rtol": 1e-4, "atol": 1e-6}), expected)

    def test_safety(self):
        f, calls = Decay(), []
        for safety in (None, 0.9, 0.4):
            f.calls.clear()
            odesolve(f, f.z0, options_for("RK23", safety=safety))
            calls.append(len(f.calls))
        assert calls[0] == calls[1] < calls[2]

    def test_h_is_the_first_step(self):
        f = Decay()
        solver = odesolve(f, f.z0, options_for("Dopri5", h=0.01), return_solver=True)
        _, steps = solver.integrate(f.z0, return_steps=True)
        assert steps[0] == 0.01

    @pytest.mark.parametrize(
        "option",
        [
            {"print_neval": True},
            {"print_direction": True},
            {"step_dif_ratio": 0.1},
            {"regenerate_graph": True},
            {"delete_graph": False},
        ],
    )
    def test_options_without_effect(self, option, capsys):
        f = Decay()
        assert torch.equal(
            odesolve(f, f.z0, options_for("RK23", **option)), odesolve(f, f.z0, options_for("RK23"))
        )
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("submodule", ["odesolver", "odesolver_mem"])
    def test_the_scripts_imports(self, submodule):
        names = {"odesolver": ["odesolve"], "odesolver_mem": ["odesolve_endtime", "odesolve_adjoint"]}
        module = __import__(f"torch_ACA.{submodule}", fromlist=names[submodule])
        assert all(callable(getattr(module, name)) for name in names[submodule])

    @pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
    def test_options_as_keywords(self, call):
        f = Decay()
        expected = call(f, f.z0, options_for("RK12"))
        assert torch.equal(call(f, f.z0, options_for("RK12"), regenerate_graph=False), expected)


class TestSolver:
    def solver(self, call=odesolve, method="Dopri5", **more):
        f = Decay()
        return f, call(f, f.z0, options_for(method, **more), return_solver=True)

    def test_nothing_happens_before_integrate(self):
        f, _ = self.solver()
        assert f.calls == []

    @pytest.mark.parametrize("call", CALLS[:2], ids=lambda call: call.__name__)
    def test_integrate(self, call):
        f, solver = self.solver(call)
        assert torch.equal(solver.integrate(f.z0), call(f, f.z0, options_for("Dopri5")))

    def test_integrate_at_times(self):
        f, solver = self.solver()
        out = solver.integrate(f.z0, t_eval=[0.2, 0.9])
        assert torch.equal(out, odesolve(f, f.z0, options_for("Dopri5", t_eval=[0.2, 0.9])))
        other = solver.integrate(2 * f.z0, t_eval=[0.2, 0.9])
        assert torch.allclose(other, 2 * out, rtol=1e-6)

    @by_method
    def test_return_steps(self, method):
        f, solver = self.solver(method=method)
        out, steps = solver.integrate(f.z0, return_steps=True)
        assert torch.equal(out, solver.integrate(f.z0))
        assert steps == sorted(steps)
        assert steps[-1] == 1.0
        assert all(0.0 < t <= 1.0 for t in steps)
        assert len(steps) == 20 if method in FIXED else len(steps) > 1

    @by_method
    def test_predefine_steps(self, method):
        """The steps of one run, taken again: the same numbers and the same gradient, without the search."""
        f, solver = self.solver(method=method)
        times = [0.3, 0.8, 1.0]
        out, steps = solver.integrate(f.z0, return_steps=True, t_eval=times)
        (expected,) = torch.autograd.grad(out.sum(), f.k)
        f.calls.clear()
        again, same = solver.integrate(f.z0, predefine_steps=steps, return_steps=True, t_eval=times)
        assert same == steps
        assert torch.allclose(again, out, rtol=1e-13)
        (grad,) = torch.autograd.grad(again.sum(), f.k)
        assert torch.allclose(grad, expected, rtol=1e-12)
        assert len(f.calls) <= 7 * len(steps) + 1

    def test_predefined_steps_that_are_coarse(self):
        f, solver = self.solver(method="RK23")
        out = solver.integrate(f.z0, predefine_steps=[0.5, 1.0])
        expected = aca.solve(f, f.z0, [0.0, 1.0], method="bosh3", grid=[0.0, 0.5, 1.0]).ys[-1]
        assert torch.equal(out, expected)
        assert (out - f.solution(1.0)[0]).abs().max() > 1e-4

    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_dense_mode(self, method):
        f, solver = self.solver(method=method, dense_output=True)
        out = solver.integrate(f.z0, t_eval=[0.2, 0.55, 1.0])
        f.calls.clear()
        dense = solver.evaluate_dense_mode(t_eval=[0.2, 0.55, 1.0])
        assert torch.allclose(dense, out, rtol=1e-9)
        others = [0.0, 0.07, 0.5, 0.999]
        assert torch.allclose(solver.evaluate_dense_mode(others), f.solution(others), rtol=tolerance(method))
        assert torch.allclose(solver(0.3), f.solution(0.3)[0], rtol=tolerance(method))
        assert solver.evaluate_dense_mode([0.3]).shape == f.z0.shape
        assert f.calls == []

    def test_dense_mode_has_gradients(self):
        f, solver = self.solver(dense_output=True)
        solver.integrate(f.z0)
        (grad,) = torch.autograd.grad(solver.evaluate_dense_mode([0.3, 0.6]).sum(), f.k)
        slopes = -torch.sin(torch.tensor([0.3, 0.6], dtype=F64))[:, None, None] * f.solution([0.3, 0.6])
        assert grad.item() == pytest.approx(slopes.sum().item(), rel=1e-5)

    def test_dense_mode_has_to_be_asked_for(self):
        f, solver = self.solver()
        solver.integrate(f.z0)
        with pytest.raises(ValueError, match="dense_output"):
            solver.evaluate_dense_mode([0.3])
        with pytest.raises(ValueError, match="dense_output"):
            solver(0.3)

    def test_dense_mode_needs_an_integration(self):
        _, solver = self.solver(dense_output=True)
        with pytest.raises(ValueError, match="integrate"):
            solver.evaluate_dense_mode([0.3])

    def test_dense_mode_does_not_extrapolate(self):
        f, solver = self.solver(dense_output=True)
        solver.integrate(f.z0)
        for t in (-0.1, 1.1):
            with pytest.raises(ValueError, match="outside"):
                solver(t)


class TestGradients:
    @by_method
    @by_call
    def test_of_the_parameter_and_the_state(self, call, method):
        f = Decay()
        z0 = f.z0.clone().requires_grad_()
        (call(f, z0, options_for(method)) ** 2).sum().backward()
        decay = math.exp(-0.8 * math.sin(1.0))
        assert torch.allclose(z0.grad, 2 * z0.detach() * decay**2, rtol=2 * tolerance(method))
        exact = -2 * math.sin(1.0) * (z0.detach() * decay).square().sum()
        assert f.k.grad.item() == pytest.approx(exact.item(), rel=3 * tolerance(method))

    @by_method
    def test_all_three_are_the_same_gradient(self, method):
        grads = []
        for call in CALLS:
            f = Decay()
            z0 = f.z0.clone().requires_grad_()
            call(f, z0, options_for(method)).sum().backward()
            grads.append((f.k.grad, z0.grad))
        for k, z in grads[1:]:
            assert torch.allclose(k, grads[0][0], rtol=1e-12)
            assert torch.allclose(z, grads[0][1], rtol=1e-12)

    def test_of_values_at_several_times(self):
        f, times = Decay(), [0.2, 0.6, 1.0]
        weights = torch.tensor([1.0, -3.0, 2.0], dtype=F64)
        out = odesolve(f, f.z0, options_for("RK45", t_eval=times))
        (grad,) = torch.autograd.grad((weights[:, None, None] * out).sum(), f.k)
        exact = sum(-w * math.sin(t) * f.solution(t).sum() for w, t in zip(weights, times))
        assert grad.item() == pytest.approx(exact.item(), rel=1e-4)

    def test_odesolve_keeps_the_graph_and_adjoint_replays(self):
        """What the backward pass evaluates: nothing, and every accepted step once."""
        for call, replays in ((odesolve, False), (odesolve_endtime, False), (odesolve_adjoint, True)):
            f = Decay()
            out = call(f, f.z0, options_for("RK23"))
            f.calls.clear()
            out.sum().backward()
            assert bool(f.calls) == replays, call.__name__

    def test_adjoint_keeps_one_state_a_step(self):
        """Bytes that autograd saves: states for `odesolve_adjoint`, every layer of every step for `odesolve`."""
        net = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 8)).double()
        z0 = torch.ones(16, 8, dtype=F64)

        def saved(call):
            sizes = {}

            def pack(x):
                sizes[x.data_ptr()] = x.nbytes
                return x

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                out = call(lambda t, z: net(z), z0, options_for("RK23"))
            out.sum().backward()
            return sum(sizes.values())

        assert saved(odesolve_adjoint) < 0.2 * saved(odesolve)

    def test_higher_derivatives(self):
        """d^n z(1) / dk^n = (-sin 1)^n z(1), through `odesolve` to the third order."""
        f = Decay()
        derivative = odesolve(f, f.z0, options_for("Dopri5", rtol=1e-10, atol=1e-12)).sum()
        value = derivative.item()
        for n in (1, 2, 3):
            (derivative,) = torch.autograd.grad(derivative, f.k, create_graph=True)
            assert derivative.item() == pytest.approx((-math.sin(1.0)) ** n * value, rel=1e-6)

    def test_second_derivatives_through_the_other_two(self):
        for call in (odesolve_endtime, odesolve_adjoint):
            f = Decay()
            out = call(f, f.z0, options_for("Dopri5")).sum()
            (first,) = torch.autograd.grad(out, f.k, create_graph=True)
            (second,) = torch.autograd.grad(first, f.k)
            assert second.item() == pytest.approx(math.sin(1.0) ** 2 * out.item(), rel=1e-5)

    def test_in_training(self):
        """An ODE block as in the authors' CIFAR script: its options are written once."""

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.odefunc = nn.Conv2d(3, 3, 3, padding=1)
                self.options = {}
                self.options.update({"method": "RK12"})
                self.options.update({"h": None})
                self.options.update({"t0": 0.0})
                self.options.update({"t1": 1.0})
                self.options.update({"rtol": 1e-2})
                self.options.update({"atol": 1e-2})
                self.options.update({"print_neval": False})
                self.options.update({"neval_max": 50000})

            def forward(self, x):
                return odesolve_adjoint(lambda t, z: torch.relu(self.odefunc(z)), x, self.options)

        torch.manual_seed(0)
        model = nn.Sequential(Block(), nn.Flatten(), nn.Linear(75, 4))
        x, labels = torch.randn(8, 3, 5, 5), torch.arange(8) % 4
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


class TestGradientsOfTimes:
    """z(t1) = z0 exp(-k (sin t1 - sin t0)), by its ends, and by the times between them."""

    @by_method
    @by_call
    @pytest.mark.parametrize("ends", [(0.1, 0.9), (0.9, 0.1)])
    def test_of_the_ends(self, call, method, ends):
        f = Decay()
        t0, t1 = (nn.Parameter(torch.tensor([t], dtype=F64)) for t in ends)
        out = call(f, f.z0, options_for(method, t0=t0, t1=t1))
        grads = torch.autograd.grad(out.sum(), [t0, t1])
        z1 = f.solution(ends[1], t0=ends[0]).sum()
        k, close = f.k.item(), {"rtol": 3 * tolerance(method), "atol": 0}
        torch.testing.assert_close(grads[0], (z1 * k * math.cos(ends[0])).reshape(1), **close)
        torch.testing.assert_close(grads[1], (-z1 * k * math.cos(ends[1])).reshape(1), **close)

    @by_method
    def test_of_the_times_between(self, method):
        f = Decay()
        for times in (torch.tensor([0.3, 0.8], dtype=F64), torch.tensor(0.4, dtype=F64)):
            times.requires_grad_()
            for given in (times, [*times.reshape(-1)]):
                (grad,) = torch.autograd.grad(
                    odesolve(f, f.z0, options_for(method, t_eval=given)).sum(), times
                )
                z, close = (
                    f.solution(times.detach()).sum((1, 2)),
                    {"rtol": 5 * tolerance(method), "atol": 1e-4},
                )
                right = -f.k.detach() * z * torch.cos(times.detach())
                torch.testing.assert_close(grad, right.reshape(grad.shape), **close)

    def test_of_predefined_steps_and_dense_output(self):
        f = Decay()
        solver = odesolve(f, f.z0, options_for("Dopri5", dense_output=True), return_solver=True)
        steps = torch.tensor([0.2, 0.5, 1.0], dtype=F64, requires_grad=True)
        (grad,) = torch.autograd.grad(solver.integrate(f.z0, predefine_steps=steps).sum(), steps)
        (right,) = torch.autograd.grad(
            aca.solve(f, f.z0, torch.stack([0 * steps[0], steps[2]]), grid=[0.0, *steps], gradient="direct")
            .ys[-1]
            .sum(),
            steps,
        )
        torch.testing.assert_close(grad, right)
        at = torch.tensor([0.3, 0.6], dtype=F64, requires_grad=True)
        (grad,) = torch.autograd.grad(solver.evaluate_dense_mode(at).sum(), at)
        z = f.solution(at.detach()).sum((1, 2))
        torch.testing.assert_close(grad, -f.k.detach() * z * torch.cos(at.detach()), rtol=1e-3, atol=0)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own
    def test_made_without_grad_mode_and_in_forward_mode(self):
        f, t1 = Decay(), torch.tensor(0.9, dtype=F64, requires_grad=True)
        with torch.no_grad():
            solver = odesolve(f, f.z0, options_for("RK45", t1=t1), return_solver=True)
        (grad,) = torch.autograd.grad(solver.integrate(f.z0).sum(), t1)
        one = torch.ones((), dtype=F64)

        def end(t):
            return odesolve(f, f.z0, options_for("RK45", t1=t)).sum()

        torch.testing.assert_close(torch.func.jvp(end, (t1.detach(),), (one,))[1], grad)

    @by_call
    @pytest.mark.parametrize("key", ["h", "rtol", "atol", "safety"])
    def test_other_tensors_are_not_differentiated(self, call, key):
        f = Decay()
        x = torch.tensor(0.1, requires_grad=True)
        with pytest.raises(ValueError, match=rf"{key} is not differentiated: pass {key}\.detach"):
            call(f, f.z0, options_for("Dopri5", **{key: x}))


class TestRefusals:
    @by_call
    @pytest.mark.parametrize("key", ["tol", "time_points", "keep_small_step"])
    def test_unknown_key(self, call, key):
        f = Decay()
        with pytest.raises(ValueError, match=f"unknown option '{key}'"):
            call(f, f.z0, options_for("RK23", **{key: 1}))

    def test_suggestion(self):
        with pytest.raises(ValueError, match="Did you mean 'neval_max'"):
            odesolve(Decay(), Decay().z0, options_for("RK23", nevalmax=10))

    @by_call
    def test_no_method(self, call):
        with pytest.raises(ValueError, match="method"):
            call(Decay(), Decay().z0, {"t0": 0.0, "t1": 1.0})

    @by_call
    def test_unknown_method(self, call):
        with pytest.raises(ValueError, match=r"unknown method 'RK54'.*Did you mean 'RK4"):
            call(Decay(), Decay().z0, options_for("RK54"))

    @by_call
    @pytest.mark.parametrize("method", FIXED)
    def test_fixed_methods_need_h(self, call, method):
        with pytest.raises(ValueError, match="h"):
            call(Decay(), Decay().z0, {"method": method})

    @pytest.mark.parametrize("h", [0.0, -0.1, math.nan, math.inf])
    @pytest.mark.parametrize("method", ["Euler", "RK23"])
    def test_h_is_a_size(self, method, h):
        with pytest.raises(ValueError, match="h is the size of a step"):
            odesolve(Decay(), Decay().z0, options_for(method, h=h))

    @pytest.mark.parametrize("times", [[-0.1, 1.0], [0.5, 1.5], [0.5, 0.2], [0.1, 0.9, 0.4]])
    def test_times_outside_or_out_of_order(self, times):
        with pytest.raises(ValueError, match="t_eval"):
            odesolve(Decay(), Decay().z0, options_for("RK23", t_eval=times))


class TestNeverCarriedOver:
    """The defects of the original, each by name."""

    @pytest.mark.parametrize("method", ["RK23", "RK45", "Dopri5"])
    def test_outputs_between_steps_keep_the_tolerance(self, method):
        """Was: wrong by 2e-3 at a tolerance of 1e-7."""
        f, times = Decay(), torch.linspace(0.01, 0.99, 50).tolist()
        out = odesolve(f, f.z0, options_for(method, t_eval=times, rtol=1e-7, atol=1e-7))
        assert (out - f.solution(times)).abs().max() < 1e-5
        dense = odesolve(
            f, f.z0, options_for(method, dense_output=True, rtol=1e-7, atol=1e-7), return_solver=True
        )
        dense.integrate(f.z0)
        assert (dense.evaluate_dense_mode(times) - f.solution(times)).abs().max() < 1e-5

    @by_method
    @by_call
    @pytest.mark.parametrize("dtype", [F32, F64])
    def test_both_precisions(self, dtype, call, method):
        """Was: float64 refused by RK23 and RK45."""
        f = Decay(dtype)
        out = call(f, f.z0, options_for(method, rtol=1e-4, atol=1e-5))
        assert out.dtype == dtype
        assert torch.allclose(out.double(), f.solution(1.0)[0], rtol=max(tolerance(method), 2e-3))

    @by_method
    @by_call
    def test_backwards_in_time(self, call, method):
        """Was: refused by RK12 and Dopri5."""
        f = Decay()
        out = call(f, f.z0, options_for(method, t0=1.0, t1=0.0))
        assert torch.allclose(out, f.solution(0.0, t0=1.0)[0], rtol=tolerance(method))
        assert min(f.calls) >= 0.0
        assert max(f.calls) == 1.0

    def test_several_times_backwards(self):
        f, times = Decay(), [0.8, 0.3, 0.0]
        out = odesolve(f, f.z0, options_for("RK45", t0=1.0, t1=0.0, t_eval=times))
        assert torch.allclose(out, f.solution(times, t0=1.0), rtol=1e-5)

    @by_method
    @by_call
    def test_f_is_never_evaluated_beyond_the_end(self, call, method):
        f = Decay()
        call(f, f.z0, options_for(method)).sum().backward()
        assert min(f.calls) >= 0.0
        assert max(f.calls) <= 1.0

    @pytest.mark.parametrize("method", FIXED)
    @pytest.mark.parametrize("h", [0.3, 0.7, 3.0])
    @by_call
    def test_h_that_does_not_divide_the_span(self, call, method, h):
        """Was: None. The last step is shorter."""
        f = Decay()
        out = call(f, f.z0, options_for(method, h=h))
        grid = [*(h * i for i in range(math.ceil(1 / h))), 1.0]
        ours = {"Euler": "euler", "RK2": "midpoint", "RK4": "rk4"}[method]
        assert torch.allclose(out, aca.solve(f, f.z0, [0.0, 1.0], method=ours, grid=grid).ys[-1], rtol=1e-13)

    @by_call
    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_too_few_steps_are_an_error(self, call, method, capsys):
        """Was: a print, and None."""
        f = Decay()
        with pytest.raises(SolverError) as caught:
            call(f, f.z0, options_for(method, neval_max=3, h=1e-3))
        assert caught.value.kind == "max-steps"
        assert 0.0 < caught.value.t < 1.0
        assert capsys.readouterr().out == ""

    @by_call
    @pytest.mark.parametrize("method", [*FIXED, "RK23"])
    def test_the_options_stay_as_they_are(self, call, method):
        f, options = Decay(), options_for(method, t_eval=[0.5, 1.0], dense_output=True)
        before = copy.deepcopy(options)
        call(f, f.z0, options).sum().backward()
        assert options == before
        assert torch.equal(call(f, f.z0, options), call(f, f.z0, options))

    @by_call
    def test_nothing_is_printed(self, call, capsys):
        call(
            Decay(),
            Decay().z0,
            options_for("RK23", dense_output=True, print_neval=True, print_direction=True),
        )
        assert capsys.readouterr() == ("", "")

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()).double()
            self.z0 = torch.randn(16, 4, dtype=F64)

        def forward(self, t, z):
            return self.layers(z) * torch.cos(8 * t)

        def statistics(self):
            norm = self.layers[1]
            return torch.cat([norm.running_mean, norm.running_var])

    @by_call
    def test_running_statistics_do_not_move_in_replays(self, call):
        """Was: batch norm's statistics moved in every trial, and again in the backward pass."""
        f = self.Normalised()
        before = f.statistics()
        out = call(f, f.z0, options_for("RK23", h=0.5))
        after = f.statistics()
        assert not torch.equal(before, after)
        out.sum().backward()
        assert torch.equal(f.statistics(), after)

    def test_running_statistics_do_not_move_in_rejected_trials(self):
        f = self.Normalised()
        solver = odesolve(f, f.z0, options_for("RK23", h=0.5), return_solver=True)
        _, steps = solver.integrate(f.z0, return_steps=True)
        assert steps[0] < 0.5  # the first trial was rejected
        # Three stages a step, and f at the very end for the last step's error.
        assert int(f.layers[1].num_batches_tracked) == 3 * len(steps) + 1

    def test_gradients_through_batch_norm_in_training_mode(self):
        grads = []
        for call in CALLS:
            f = self.Normalised()
            call(f, f.z0, options_for("RK23", rtol=1e-4, atol=1e-4)).square().sum().backward()
            grads.append(torch.cat([p.grad.reshape(-1) for p in f.parameters()]))
        assert grads[0].abs().max() > 0.1
        for other in grads[1:]:
            assert torch.allclose(other, grads[0], rtol=1e-10, atol=1e-12)
