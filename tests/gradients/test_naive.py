"""Backpropagation through the step-size search: the derivative of the program, not of the solution."""

import pytest
import torch
from gradient_cases import (
    ADAPTIVE,
    DOUBLE,
    Everything,
    assert_same,
    central_difference,
    gradients_of,
    loss_of,
)

import torchaca
from torchaca import METHODS, solve

W = torch.tensor([[0.4, -1.6, 0.2], [1.1, 0.3, -0.9], [-0.2, 1.3, 0.5]], dtype=DOUBLE)
LOOSE = {"rtol": 1e-3, "atol": 1e-3}


class Program:
    """A scalar of an adaptive solve as a function of one of its inputs, the others held."""

    def __init__(self, method="dopri5", times=(0.0, 0.7, 3.0), output=slice(1, None), **options):
        self.inputs = {
            "y0": torch.tensor([1.0, -0.5, 0.3], dtype=DOUBLE),
            "w": W.clone(),
            "t0": torch.tensor(times[0], dtype=DOUBLE),
            "t1": torch.tensor(times[-1], dtype=DOUBLE),
        }
        self.method, self.inner, self.output = method, list(times[1:-1]), output
        self.options = {**LOOSE, **options}
        self.stats = self.steps = None

    def __call__(self, gradient="naive", extra=None, **changed):
        x = {**self.inputs, **changed}
        inner = torch.tensor(self.inner, dtype=DOUBLE)
        times = torch.cat([x["t0"][None], inner, x["t1"][None]])
        sol = solve(
            lambda t, y: 3 * torch.sin(x["w"] @ y) * torch.cos(3 * t),
            x["y0"],
            times if times.requires_grad else times.detach(),
            gradient=gradient,
            method=self.method,
            **(self.options if extra is None else extra),
        )
        self.stats, self.steps = sol.stats, sol.steps
        return loss_of(sol.ys[self.output])

    def gradient(self, name, of="naive", **kwargs):
        x = self.inputs[name].clone().requires_grad_()
        return torch.autograd.grad(self(of, **{name: x}, **kwargs), x)[0]

    def numeric(self, name, **kwargs):
        return central_difference(lambda x: self(**{name: x}, **kwargs), self.inputs[name])


def assert_derivative(program, name, rtol=1e-6):
    numeric = program.numeric(name)
    torch.testing.assert_close(
        program.gradient(name), numeric, rtol=rtol, atol=rtol * numeric.abs().max().item()
    )


CONTROLS = {
    "automatic-first-step": {},
    "rejected-first-step": {"dt0": 1.5},
    "pi": {"control": torchaca.Adaptive(**LOOSE, pid=torchaca.PI_CONTROL, dt0=0.5)},
    "pid": {"control": torchaca.Adaptive(**LOOSE, pid=torchaca.PID_CONTROL, dt0=1.5)},
    "max-norm": {"norm": "max"},
    "dt-max": {"dt_max": 0.3, "dt0": 0.01},
    "jump": {"jump_ts": [1.3]},
}


@pytest.mark.parametrize(
    "options",
    [pytest.param(o, id=name) for name, o in CONTROLS.items()],
)
@pytest.mark.parametrize("name", ["y0", "w"])
def test_is_the_derivative_of_the_program(name, options):
    if "control" in options:
        options = {"rtol": None, "atol": None, **options}
    program = Program(**options)
    assert_derivative(program, name)
    assert program.stats.rejected > 0 or "dt_max" in options


@pytest.mark.parametrize("method", ADAPTIVE)
def test_is_the_derivative_of_the_program_with_every_method(method):
    assert_derivative(Program(method), "y0", 1e-5)


@pytest.mark.parametrize("name", ["y0", "w"])
def test_the_step_size_search_matters_and_direct_leaves_it_out(name):
    program = Program()
    naive, direct = program.gradient(name), program.gradient(name, "direct")
    steps = torch.tensor(program.steps, dtype=DOUBLE)
    assert program.stats.rejected > 0
    size = naive.abs().max()
    assert (naive - direct).abs().max() > 1e-3 * size
    assert (program.numeric(name) - direct).abs().max() > 1e-3 * size
    # On the frozen grid it is the other way round.
    grid = {"grid": steps}
    frozen = program.numeric(name, extra=grid)
    torch.testing.assert_close(direct, frozen, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(program.gradient(name, "aca"), frozen, rtol=1e-7, atol=1e-8)


def test_rejected_trials_are_part_of_the_program():
    """With the trials cut away (the first accepted size given as dt0) the derivative is another one."""
    program = Program(dt0=1.5, times=(0.0, 2.0))
    with_rejections = program.gradient("y0")
    assert program.stats.rejected > 0
    first = program.steps[1]
    accepted = program.steps
    shorter = Program(dt0=first, times=(0.0, 2.0))
    shorter()
    assert abs(shorter.steps[1] - accepted[1]) < 1e-12
    assert_derivative(program, "y0")
    assert (shorter.gradient("y0") - with_rejections).abs().max() > 1e-4 * with_rejections.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {"dt0": 0.5},
        {},
    ],
    ids=["given-first-step", "automatic-first-step"],
)
def test_is_the_derivative_with_respect_to_the_start(options):
    assert_derivative(Program(**options), "t0")


def test_is_the_derivative_with_respect_to_the_end():
    for options in ({}, {"dt0": 1.5}):
        assert_derivative(Program(**options), "t1")
    assert_derivative(Program(times=(3.0, 1.2, 0.0)), "t1")


@pytest.mark.parametrize("method", METHODS)
def test_without_a_search_it_is_plain_backpropagation(method):
    case = Everything([0.0, 0.2, 1.1, 1.5])
    got, want = (case.gradients(g, method=method, dt=0.4) for g in ("naive", "direct"))
    assert_same(got, want, 0.0)


def test_dense_output_is_the_program_s_too():
    def program(y0):
        f = lambda t, y: 3 * torch.sin(W @ y) * torch.cos(3 * t)  # noqa: E731
        sol = solve(f, y0, [0.0, 3.0], gradient="naive", dense=True, **LOOSE)
        return loss_of(sol(torch.tensor([0.4, 1.3, 2.9], dtype=DOUBLE)))

    y0 = torch.tensor([1.0, -0.5, 0.3], dtype=DOUBLE, requires_grad=True)
    (g,) = torch.autograd.grad(program(y0), y0)
    torch.testing.assert_close(g, central_difference(program, y0), rtol=1e-6, atol=1e-6)


def test_its_second_derivative():
    program = Program(times=(0.0, 1.0))
    y0 = program.inputs["y0"].clone().requires_grad_()

    def slope(y):
        y = y.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(program(y0=y), y, create_graph=True)[0].sum()

    (g,) = torch.autograd.grad(torch.autograd.grad(program(y0=y0), y0, create_graph=True)[0].sum(), y0)
    numeric = central_difference(lambda y: slope(y).detach(), y0, 1e-5)
    torch.testing.assert_close(g, numeric, rtol=1e-4, atol=1e-4 * numeric.abs().max().item())


def test_it_agrees_with_direct_as_the_tolerance_shrinks():
    distances = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        case = Everything([0.0, 0.4, 1.5])
        options = {"rtol": tolerance, "atol": tolerance}
        naive, direct = (case.gradients(g, **options)["z0"] for g in ("naive", "direct"))
        distances.append((naive - direct).norm() / direct.norm())
    assert distances[2] < 0.05 * distances[1] < 0.05**2 * distances[0] * 10


def test_gradients_of_the_inputs_of_a_program_in_float32():
    y0 = torch.tensor([1.0, -0.5, 0.3], requires_grad=True)
    sol = solve(lambda t, y: torch.sin(W.float() @ y), y0, [0.0, 1.0], gradient="naive")
    grads = gradients_of(sol.ys, {"y0": y0})
    assert grads["y0"].dtype == torch.float32
