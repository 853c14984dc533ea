"""Dense output and its derivative through events."""

import copy
import math
import pickle

import pytest
import torch
from gradients.settings import EVERY, options_for

from torchaca import Event, solve

DOUBLE = torch.float64
FINE = {"rtol": 1e-9, "atol": 1e-11}
EXCEPT = ("adjoint",)  # which has no derivative of dense output
TIMES = torch.tensor([0.05, 0.4, 0.499, 0.501, 1.2, 1.45, 1.99], dtype=DOUBLE)


def saw(rate, **options):
    """y' = rate from 0; at 0.5 it falls back to zero. dense in [0, 2]."""
    return solve(
        lambda t, y: rate * torch.ones_like(y),
        torch.zeros(1, dtype=DOUBLE),
        [0.0, 2.0],
        events=Event(lambda t, y: y[0] - 0.5, apply=lambda t, y: y - 0.5),
        dense=True,
        **options,
    )


def test_values_and_derivatives_on_both_sides():
    sol = saw(torch.tensor(1.0, dtype=DOUBLE))
    torch.testing.assert_close(sol(TIMES)[:, 0], TIMES % 0.5, rtol=0, atol=1e-9)
    torch.testing.assert_close(sol.derivative(TIMES), torch.ones(len(TIMES), 1, dtype=DOUBLE))
    assert sol(0.5).item() == pytest.approx(0.0, abs=1e-9)  # at the event: the state after it
    assert sol(TIMES.flip(0).reshape(7, 1)).shape == (7, 1, 1)
    torch.testing.assert_close(sol(TIMES.flip(0)), sol(TIMES).flip(0))
    with pytest.raises(ValueError, match="outside of the solve"):
        sol(2.1)


@pytest.mark.filterwarnings(
    "ignore::torchaca.errors.GradientWarning"
)  # of alf, whose error is zero on a line
@pytest.mark.parametrize("name", [name for name in EVERY if name not in EXCEPT])
def test_gradients_of_queries(name):
    """y = rate t - k / 2 after k jumps, at a time that does not move."""
    rate = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    sol = saw(rate, **options_for(EVERY[name]))
    for t in (0.4, 1.2, 1.99):
        (slope,) = torch.autograd.grad(sol(t).sum(), rate, retain_graph=True)
        assert slope.item() == pytest.approx(t, rel=1e-6)


def test_a_terminal_event_ends_it():
    sol = solve(
        lambda t, y: torch.stack([y[1], -y[0]]),
        torch.tensor([0.0, 1.0], dtype=DOUBLE),
        [0.0, 3.0],
        events=Event(lambda t, y: y[0] - 0.5, terminal=True),
        dense=True,
        **FINE,
    )
    end = sol.ts[-1].item()
    assert end == pytest.approx(math.pi / 6)
    times = torch.linspace(0.0, end, 9, dtype=DOUBLE)
    torch.testing.assert_close(sol(times)[:, 0], times.sin(), rtol=0, atol=1e-7)
    torch.testing.assert_close(sol.derivative(times)[:, 0], times.cos(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="outside of the solve"):
        sol(end + 0.1)


def test_backwards_in_time():
    sol = solve(
        lambda t, y: torch.ones_like(y),
        torch.zeros(1, dtype=DOUBLE),
        [0.0, -2.0],
        events=Event(lambda t, y: y[0] + 0.5, apply=lambda t, y: y + 0.5),
        dense=True,
    )
    times = -TIMES
    torch.testing.assert_close(sol(times)[:, 0], -(TIMES % 0.5), rtol=0, atol=1e-9)


def test_copies_and_files(tmp_path):
    sol = saw(torch.tensor(1.0, dtype=DOUBLE, requires_grad=True))
    torch.save(sol.dense, tmp_path / "dense.pt")
    for other in (
        copy.deepcopy(sol.dense),
        pickle.loads(pickle.dumps(sol.dense)),
        torch.load(tmp_path / "dense.pt", weights_only=True),
    ):
        torch.testing.assert_close(other(TIMES), sol(TIMES).detach())
        assert not other(TIMES).requires_grad
