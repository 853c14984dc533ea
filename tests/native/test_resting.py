"""Steps at rest in native solves: those of the eager loop, at the same evaluations."""

import pytest
import torch
from covering import covering
from resting import MODELS, prey

from torchaca import METHODS, Adaptive, solve
from torchaca.gradients import look
from torchaca.native.tables import has_table

pytestmark = pytest.mark.filterwarnings("ignore:the step from t = :torchaca.errors.GradientWarning")
DOUBLE = torch.float64
ADAPTIVE = [name for name, method in METHODS.items() if has_table(method) and method.adaptive]
TIMES = {"end": [0.0, 10.0], "inside": [0.0, 3.3, 7.0, 10.0]}


def assert_as_eager(f, start, times, **options):
    found = []
    for mode in (False, "native"):
        look._TOLD.clear()  # who has been warned is not looked at again
        y = start.detach().clone().requires_grad_()
        sol = solve(f, y, times, compile=mode, **options)
        found.append((sol, torch.autograd.grad(sol.ys.square().sum() + sol.ys.sum(), y)[0]))
    (want, grad), (sol, own) = found
    assert sol.stats.executor == "native"
    assert sol.stats == want.stats
    torch.testing.assert_close(
        *(torch.tensor(x.steps, dtype=DOUBLE) for x in (sol, want)), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(sol.ys, want.ys, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(own, grad, rtol=1e-8, atol=1e-10)
    return sol


@pytest.mark.parametrize(
    ("method", "jumps", "times"), covering(ADAPTIVE, [(), (5.0,)], TIMES, strength=2), ids=str
)
def test_the_steps_of_the_eager_loop(method, jumps, times):
    control = Adaptive(1e-4, 1e-6, jump_ts=jumps)
    sol = assert_as_eager(prey, torch.ones(2, dtype=DOUBLE), TIMES[times], method=method, control=control)
    assert sol.stats.accepted >= 12


@pytest.mark.parametrize("at_rest", ["resolve", "ignore"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_model(model, at_rest):
    options = {"rtol": 1e-6, "atol": 1e-9, "at_rest": at_rest}
    assert_as_eager(model.f, model.start(), [0.0, model.spans[0]], **options)


def test_tolerances_for_each_component():
    options = {"rtol": 1e-6, "atol": torch.tensor([1e-9, 1e-6], dtype=DOUBLE)}
    assert_as_eager(prey, torch.ones(2, dtype=DOUBLE), [0.0, 10.0], **options)
