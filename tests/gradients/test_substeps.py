"""`ACA(substeps=k)`: each step differentiated as k, from the state that the forward pass had there."""

import math

import pytest
import torch
from covering import covering
from gradient_cases import ADAPTIVE, DOUBLE, Counter, Everything, assert_same, differences, gradients_of
from settings import ACA_SETTINGS
from shifted import Shifted
from torch import nn

from torchaca import ACA, METHODS, solve
from torchaca.gradients.aca import CHECKPOINTS
from torchaca.gradients.inner import inner_of
from torchaca.gradients.substeps import AT_ONCE, substeps

ROUNDING = 1e-11
TIMES = {
    "inside": [0.0, 0.1, 0.2, 0.3, 1.1, 1.5],
    "sub-step-ends": [0.0, 0.25, 0.5, 1.0, 1.25, 1.5],
    "decreasing": [1.5, 1.4, 0.5, 0.3, 0.0],
    "end-only": [0.0, 1.5],
}
REPLAYING = [name for name in CHECKPOINTS if name != "none"]


def recorded(k: int) -> Shifted:
    return Shifted(lambda n: [k] * n)


@pytest.mark.parametrize(
    ("method", "times", "wanted", "k", "checkpoints"),
    covering(METHODS, TIMES, [True, False], [2, 3, AT_ONCE + 3], [*REPLAYING, 2], strength=2),
)
def test_it_is_the_gradient_of_the_shifted_steps(method, times, wanted, k, checkpoints):
    case = Everything(TIMES[times], wanted)
    want = case.gradients(recorded(k), method=method, n_steps=3)
    gradient = ACA(substeps=k, checkpoints=checkpoints)
    assert_same(case.gradients(gradient, method=method, n_steps=3), want, ROUNDING)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("stagewise", [False, True])
def test_adaptive_steps_and_jumps(method, stagewise):
    options = {"method": method, "rtol": 1e-2, "atol": 1e-3}
    if method not in ("alf", "reversible_heun"):
        options["jump_ts"] = [0.3, 0.7]
    case = Everything(TIMES["inside"])
    want = case.gradients(recorded(2), **options)
    assert_same(case.gradients(ACA(substeps=2, stagewise=stagewise), **options), want, ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_values_are_those_of_the_forward_pass(method):
    case = Everything(TIMES["inside"])
    mine, plain = (case.solve(g, method=method, n_steps=3) for g in (ACA(substeps=2), "aca"))
    assert all(torch.equal(mine.ys[name], plain.ys[name]) for name in mine.ys)


@pytest.mark.parametrize("method", METHODS)
def test_second_derivatives(method):
    y0 = torch.tensor([0.5, -0.3], dtype=DOUBLE, requires_grad=True)
    k = torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)

    def again(gradient):
        sol = solve(
            lambda t, y: torch.sin(k * y) * y.flip(0) + t, y0, [0.0, 0.4, 1.0],
            method=method, n_steps=2, gradient=gradient,
        )  # fmt: skip
        (first,) = torch.autograd.grad(sol.ys.square().sum(), k, create_graph=True)
        return dict(zip(("y0", "k"), torch.autograd.grad(first, [y0, k]), strict=True))

    assert_same(again(ACA(substeps=3)), again(recorded(3)), 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_is_too_long_for_its_derivative(method):
    """At rest every step is right for y. Twice as many steps make its derivative right to the method's order."""
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)

    def error(gradient):
        sol = solve(
            lambda t, y: torch.stack([y[0] - y[0] * y[1], y[0] * y[1] - y[1]]), y0, [0.0, 1.0],
            method=method, n_steps=2, gradient=gradient,
        )  # fmt: skip
        return abs(torch.autograd.grad(sol.ys[-1, 0], y0)[0][0].item() - math.cos(1.0))

    errors = [error(ACA(substeps=k)) for k in (4, 8)]
    assert errors[1] < 1.5 * errors[0] / 2 ** METHODS[method].order + 1e-13
    assert errors[1] < error("aca")


def test_evaluations():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    for k in (2, AT_ONCE, 2 * AT_ONCE):
        f = Counter(lambda t, y: -y * t)
        sol = solve(f, y0, [0.0, 1.0], method="rk4", n_steps=5, gradient=ACA(substeps=k))
        forward = f.calls
        sol.ys[-1].sum().backward()
        again = 4 * (k - AT_ONCE) if k > AT_ONCE else 0  # states in between, computed first
        assert f.calls - forward == sol.stats.nfe_backward == 5 * (4 * k + again)


def test_one_is_the_default():
    assert ACA(substeps=1) == ACA()
    assert ACA(substeps=1).exact
    assert not ACA(substeps=2).exact
    assert all(ACA_SETTINGS[name].exact for name in ACA_SETTINGS if "grad-rtol" not in name)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "2", None], ids=str)
def test_numbers_at_the_door(bad):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        ACA(substeps=bad)


def test_settings_at_the_door():
    with pytest.raises(ValueError, match="replays nothing"):
        ACA(substeps=2, checkpoints="none")
    with pytest.raises(ValueError, match="drop substeps"):
        ACA(substeps=2, grad_rtol=1e-2)


def test_noise_is_refused():
    drop = nn.Dropout(0.5)
    with pytest.raises(ValueError, match=r"call model\.eval"):
        solve(
            lambda t, y: drop(y),
            torch.ones(3, requires_grad=True),
            [0.0, 1.0],
            n_steps=2,
            gradient=ACA(substeps=2),
        )


def test_sub_steps_move_with_their_step():
    t0, t1 = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (1.0, 3.0))
    times = substeps(t0, t1, 4)
    assert times[0] is t0
    assert times[-1] is t1
    assert [t.item() for t in times] == [1.0, 1.5, 2.0, 2.5, 3.0]
    share = torch.autograd.grad(times[1], [t0, t1])
    assert [g.item() for g in share] == [0.75, 0.25]


@pytest.mark.parametrize("method", METHODS)
def test_dense_output_as_values_inside(method):
    """Whatever a loss wants of an interpolant, values at a few places say the same."""
    torch.manual_seed(0)
    own = METHODS[method]
    theta, wanted = torch.rand(7, dtype=DOUBLE), torch.randn(7, 2, 3, dtype=DOUBLE)
    dense = torch.tensordot(own.basis_weights(theta).T, wanted, 1)
    inner = inner_of(own, [None, dense])
    assert list(inner) == [1]
    weights = own.basis_weights(torch.tensor(inner[1].parts, dtype=DOUBLE))
    torch.testing.assert_close(torch.tensordot(weights.T, inner[1].grads, 1), dense, rtol=0, atol=1e-11)
    halves = inner[1].within(0.0, 0.5), inner[1].within(0.5, 1.0)
    assert [*(x / 2 for x in halves[0].parts), *(0.5 + x / 2 for x in halves[1].parts)] == pytest.approx(
        list(inner[1].parts)
    )


@pytest.mark.parametrize("k", [8, 3 * AT_ONCE])
def test_dense_output(k):
    """The derivative of a value in a step that is too long for it is that of its sub-steps."""
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: torch.stack([y[0] - y[0] * y[1], y[0] * y[1] - y[1]]), y0, [0.0, 4.0],
        n_steps=1, dense=True, method="dopri5", gradient=ACA(substeps=k),
    )  # fmt: skip
    got = torch.autograd.grad(sol(2.0)[0], y0)[0][0].item()
    assert abs(got - math.cos(2.0)) < 0.05


def test_dense_output_with_outputs():
    case = Everything([0.0, 0.1, 0.6, 1.5])
    errors = []
    for n in (8, 16):
        sols = [
            case.solve(gradient, method="rk4", n_steps=n, dense=True)
            for gradient in (ACA(substeps=2), "direct")
        ]
        got, want = (gradients_of((sol.ys, sol(0.83)), case.inputs) for sol in sols)
        errors.append(max(differences(got, want).values()))
    assert errors[1] < errors[0] / 8
    assert errors[1] < 1e-3
