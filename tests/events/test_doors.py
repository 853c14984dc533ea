"""What an event may not return, write or depend on, in words that name it."""

import pytest
import torch

from torchaca import Event, SolverError, solve

DOUBLE = torch.float64
Y0 = {"a": torch.zeros(2, dtype=DOUBLE), "b": torch.ones((), dtype=DOUBLE)}


def f(t, y):
    return {"a": torch.ones_like(y["a"]), "b": -y["b"]}


def level(t, y):
    return y["a"][0] - 0.5


def at(how):
    return solve(f, Y0, [0.0, 1.0], events=[Event(lambda t, y: y["b"] + 1), how])


WRONG_G = {
    "two numbers": (
        lambda t, y: y["a"],
        ValueError,
        r"got shape \(2,\): write one Event for each, or .min\(\)",
    ),
    "one number": (lambda t, y: y["a"][:1], ValueError, r"got shape \(1,\): write g\(t, y\).squeeze\(\)"),
    "a float": (lambda t, y: 0.5, TypeError, "must return a 0-dim tensor, got 0.5"),
    "a truth": (lambda t, y: y["b"] > 0.5, TypeError, "a real floating-point number, .* got torch.bool"),
    "complex": (lambda t, y: y["b"] + 1j, TypeError, "a real floating-point number, .* got torch.complex128"),
    "nan": (lambda t, y: torch.sqrt(y["a"][0] - 0.5), SolverError, r"g\(t, y\) is nan there"),
    "in place": (lambda t, y: y["b"].mul_(1.0), ValueError, r"g\(t, y\) changes y in place"),
}
WRONG_APPLY = {
    "a part": (lambda t, y: y["a"], TypeError, r"the structure of y, \{'a': \(2,\), 'b': \(\)\}, got tensor"),
    "another key": (lambda t, y: {"a": y["a"], "c": y["b"]}, TypeError, "the structure of y"),
    "nothing": (lambda t, y: None, TypeError, "the structure of y, .*, got None"),
    "another shape": (
        lambda t, y: {**y, "a": y["a"][:1]},
        ValueError,
        r"of shape \(2,\) .* one of shape \(1,\)",
    ),
    "another dtype": (lambda t, y: {**y, "b": y["b"].float()}, ValueError, "float64 became .* torch.float32"),
    "nan": (lambda t, y: {**y, "b": y["b"] * float("nan")}, ValueError, "returned nan or inf at t = 0.5"),
}


@pytest.mark.parametrize("name", WRONG_G)
def test_g(name):
    g, error, words = WRONG_G[name]
    with pytest.raises(error, match=rf"(?s)events\[1\]: .*{words}"):
        at(Event(g))


@pytest.mark.parametrize("name", WRONG_APPLY)
def test_apply(name):
    apply, error, words = WRONG_APPLY[name]
    with pytest.raises(error, match=rf"events\[1\]: apply\(t, y\) .*{words}"):
        at(Event(level, apply=apply))


def test_apply_may_write():
    """Into what it gets, which is its own."""

    def apply(t, y):
        y["a"] -= y["b"]
        return y

    y0 = {"a": Y0["a"].clone().requires_grad_(), "b": Y0["b"]}
    sol = solve(f, y0, [0.0, 1.0], events=Event(level, apply=apply), rtol=1e-8, atol=1e-10)
    before, after = sol.events[0].y, sol.ys["a"][-1]
    assert before["a"][0, 0].item() == pytest.approx(0.5)
    assert after[0].item() == pytest.approx(1.0 - torch.exp(torch.tensor(-0.5)).item())
    (slope,) = torch.autograd.grad(after[0], y0["a"])
    assert slope[0].item() == pytest.approx(
        1 - torch.exp(torch.tensor(-0.5)).item()
    )  # y(t*) is later in decay


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"g": 3}, TypeError, "a function g"),
        ({"g": level, "direction": 2}, ValueError, "direction"),
        ({"g": level, "apply": 3}, TypeError, "a function apply"),
        ({"g": level, "apply": level, "terminal": True}, ValueError, "would have no effect"),
    ],
)
def test_what_is_no_event(options, error, words):
    with pytest.raises(error, match=words):
        Event(**options)
    with pytest.raises(TypeError, match=r"an aca.Event or a list of them"):
        solve(f, Y0, [0.0, 1.0], events=level)
