"""A native solve that fails says what the eager loop says, and has the same prefix and its derivative."""

import re
import warnings

import pytest
import torch
from covering import pairs

from torchaca import ACA, SolverError, solve
from torchaca.control import Adaptive

DOUBLE = torch.float64
WEIGHT = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)


def chattering(t, y):
    return -WEIGHT * torch.sign(y) + 0.1 * torch.cos(t)


def stiff(t, y):
    return -WEIGHT * 1e5 * (y - torch.cos(t))


FAILING = {
    "blow-up": (lambda t, y: WEIGHT * y**2, {}),
    "nan later": (lambda t, y: -WEIGHT * y * torch.sqrt(0.7 - t), {}),
    "nan at once": (lambda t, y: WEIGHT * torch.log(y - 2), {}),
    "max-steps": (lambda t, y: -50 * WEIGHT * y * torch.cos(60 * t), {"max_steps": 10}),
    "dt-min": (lambda t, y: -50 * WEIGHT * y * torch.cos(60 * t), {"dt_min": 0.1}),
    "dt-min accepted": (
        lambda t, y: WEIGHT * y**2,
        {"control": Adaptive(dt_min=0.01, accept_at_dt_min=True, max_steps=200)},
    ),
    "jump": (lambda t, y: WEIGHT * y + 1e9 * (t > 0.6), {"rtol": 1e-13, "atol": 1e-13}),
    "chattering": (chattering, {"max_steps": 3000}),
    "stiff": (stiff, {"max_steps": 600}),
    "f that is inf": (lambda t, y: WEIGHT * y / (0.5 - t).clamp(min=0.0), {}),
}

AMPLIFYING = ("blow-up", "nan later", "jump", "f that is inf")
"""Where rounding grows until the solve stops: the last steps are others, for the same reason."""


def words(failure):
    """What a failure says, without its numbers."""
    return re.sub(r"[-+\d.]+(e[-+]?\d+)?", "#", str(failure))


def failed(case, mode, **options):
    f, own = FAILING[case]
    y0 = torch.tensor([[1.0, 0.5]], dtype=DOUBLE, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = solve(f, y0, [0.0, 0.2, 0.4, 3.0], on_failure="status", compile=mode, **{**own, **options})
    grads = ()
    if len(sol.ys) > 1 and bool(torch.isfinite(sol.ys).all()):
        grads = torch.autograd.grad(sol.ys.square().sum(), [y0, WEIGHT], allow_unused=True)
    return sol, grads


KEPT = {"all": ACA(checkpoints="all"), "three": ACA(checkpoints=3), "direct": "direct"}


@pytest.mark.parametrize(("case", "kept"), pairs(FAILING, KEPT))
def test_a_failure_is_told_of_in_the_same_words(case, kept):
    gradient = KEPT[kept]
    (want, grads), (sol, own) = (failed(case, mode, gradient=gradient) for mode in (False, "native"))
    assert sol.stats.executor == "native"
    assert sol.status == want.status
    if want.failure is not None:
        assert words(sol.failure) == words(want.failure)
    if case in AMPLIFYING:
        return
    assert sol.stats == want.stats
    torch.testing.assert_close(
        *(torch.tensor(x.steps, dtype=DOUBLE) for x in (sol, want)), rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(sol.ys, want.ys, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(own, grads, rtol=1e-7, atol=1e-7)


def test_a_start_that_is_not_finite():
    for mode in (False, "native"):
        with pytest.raises(SolverError, match="y0 is not finite"):
            solve(lambda t, y: -y, torch.tensor([1.0, torch.nan]), [0.0, 1.0], compile=mode)


def test_the_prefix_comes_with_the_error():
    with pytest.raises(SolverError) as caught:
        solve(FAILING["blow-up"][0], torch.ones(2, dtype=DOUBLE), [0.0, 0.2, 3.0], compile="native")
    assert caught.value.partial.ys.shape == (2, 2)
