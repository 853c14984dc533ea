"""Steps at rest in compiled loops: those of the eager loop, at the same evaluations."""

import weakref

import pytest
import torch
from compiled_helpers import assert_equal, both
from resting import MODELS, prey

import torchaca
from torchaca import Adaptive
from torchaca.errors import GradientWarning
from torchaca.gradients import look
from torchaca.methods import METHODS
from torchaca.methods.staged import staged

COMPILED = [method for method in METHODS.values() if method.adaptive and staged(method)]
TOLERANCES = {"rtol": 1e-6, "atol": 1e-9}
TIMES = {"end": [0.0, 10.0], "inside": [0.0, 3.3, 7.0, 10.0]}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("jumps", [(), (5.0,)], ids=["", "jump"])
@pytest.mark.parametrize("method", COMPILED, ids=lambda method: method.name)
def test_the_steps_of_the_eager_loop(interpreted, method, jumps, times):
    """Also through a jump, with outputs in steps, and where f at the end of a step has to be evaluated."""
    control = Adaptive(1e-4, 1e-6, jump_ts=jumps)
    eager, compiled = both(prey, torch.ones(2, dtype=torch.float64), times, method=method, control=control)
    assert eager[0].stats.accepted >= 12
    assert_equal(eager, compiled)


@pytest.mark.parametrize("model", [m for m in MODELS if m.name != "heat"], ids=lambda model: model.name)
def test_every_model(interpreted, model):
    start = model.start().detach()
    eager, compiled = both(model.f, start, [0.0, model.spans[0]], **TOLERANCES)
    assert_equal(eager, compiled)


def test_more_steps_than_a_chunk_holds(interpreted, monkeypatch):
    monkeypatch.setattr("torchaca.compiled.run.CHUNK_BYTES", 1)
    y0 = torch.ones(2, dtype=torch.float64)
    eager, compiled = both(prey, y0, [0.0, 10.0, 20.0], **TOLERANCES)
    assert eager[0].stats.accepted > 20
    assert_equal(eager, compiled)


def test_the_limit_of_trials(interpreted):
    for compile in (False, "loops"):
        options = {"compile": compile, "max_steps": 9, "on_failure": "status", **TOLERANCES}
        sol = torchaca.solve(prey, torch.ones(2, dtype=torch.float64), [0.0, 50.0], **options)
        assert sol.status == "max-steps"
        assert sol.stats.accepted == 9


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["loops", "steps"])
def test_compiled(mode):
    y0 = torch.ones(2, dtype=torch.float64)
    eager, compiled = both(prey, y0, [0.0, 20.0], how=mode, method="bosh3", **TOLERANCES)
    assert eager[0].stats.accepted > 50
    assert_equal(eager, compiled)


@pytest.mark.parametrize("checkpoints", ["all", "none", "auto"])
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_the_warning_of_the_eager_loop(interpreted, monkeypatch, checkpoints, times):
    """The same words and evaluations: the backward loop stops behind the suspect, also in the middle of a chunk."""
    said = []
    for compile in (False, "loops"):
        monkeypatch.setattr(look, "_TOLD", weakref.WeakKeyDictionary())
        y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        options = {"gradient": torchaca.ACA(checkpoints=checkpoints), "at_rest": "ignore", **TOLERANCES}
        sol = torchaca.solve(prey, y0, times, compile=compile, **options)
        with pytest.warns(GradientWarning) as caught:
            (grad,) = torch.autograd.grad(sol.ys.square().sum(), y0)
        said.append((str(caught[0].message), sol.stats.nfe_backward, grad))
    (eager, compiled) = said
    assert eager[:2] == compiled[:2]
    torch.testing.assert_close(eager[2], compiled[2], rtol=1e-9, atol=0)
