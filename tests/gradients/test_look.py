"""The warning of a gradient whose longest step nobody has checked: one for what is wrong, none for what is right."""

import gc
import math
import re
import warnings
import weakref

import pytest
import torch
from random_rests import figures, judged, problems
from resting import DOUBLE, MODELS, prey
from torch import nn

import torchaca as aca
from torchaca import ACA, solve
from torchaca.errors import GradientWarning
from torchaca.gradients import GRADIENTS, look
from torchaca.methods import METHODS

TOLERANCES = {"rtol": 1e-6, "atol": 1e-9}
SETTINGS = [
    *("aca", "direct", "naive"),
    *(ACA(checkpoints=kept) for kept in ("all", "none", "sqrt", "binomial", 2)),
    ACA(memory_budget="1MB"),
    ACA(stagewise=True),
]
every_setting = pytest.mark.parametrize("gradient", SETTINGS, ids=str)
FEW = [model for model in MODELS if model.name in ("oscillator", "before the dose")]
PAIRS = [("aca", model) for model in MODELS]
PAIRS += [(setting, model) for setting in SETTINGS[1:] for model in FEW]
some_pairs = pytest.mark.parametrize(
    ("gradient", "model"), PAIRS, ids=lambda x: getattr(x, "name", str(x)) if x not in SETTINGS else str(x)
)
ADAPTIVE = [method for method in METHODS.values() if method.adaptive]


@pytest.fixture(autouse=True)
def nobody_told():
    look._TOLD.clear()


def said(f, y0, span, wrt=None, weights=None, **options):
    """The gradient of a sum of y(span), and what was said on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sol = solve(f, y0, [0.0, span], **{**TOLERANCES, **options})
        out = sol.ys[-1] if weights is None else weights * sol.ys[-1]
        grad = torch.autograd.grad(out.sum(), y0 if wrt is None else wrt)[0]
    return grad, [str(w.message) for w in caught if issubclass(w.category, GradientWarning)]


@some_pairs
def test_every_setting_warns_of_a_rest(gradient, model):
    span = model.spans[-1]
    _, words = said(model.f, model.start(), span, weights=model.weights, gradient=gradient, at_rest="ignore")
    assert len(words) == 1
    assert re.search(r"the step from t = \S+ to \S+ is resolved for y \(error ratio \S+\), but not", words[0])


@some_pairs
def test_silent_about_a_rest_that_is_resolved(gradient, model):
    grad, words = said(model.f, model.start(), model.spans[0], weights=model.weights, gradient=gradient)
    assert model.off(grad, model.spans[0]) < 0.1
    assert words == []


@pytest.mark.parametrize("method", ADAPTIVE, ids=lambda method: method.name)
def test_every_method(method):
    for gradient in ("aca", ACA(checkpoints="all"), *(["mali"] if hasattr(method, "undo") else [])):
        for at_rest, times in (("ignore", 1), ("resolve", 0)):
            y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
            _, words = said(prey, y0, 20.0, method=method, gradient=gradient, at_rest=at_rest)
            assert len(words) == times, (gradient, at_rest)


@every_setting
@pytest.mark.parametrize("at_rest", ["resolve", "ignore"])
def test_a_forcing_that_f_s_state_does_not_show(gradient, at_rest):
    """y' = a cos 50 t at a = 0: no growth, nothing of J to see, and dy/da is off by 24 times itself."""
    a = torch.zeros((), dtype=DOUBLE, requires_grad=True)
    y0 = torch.zeros(1, dtype=DOUBLE)
    grad, words = said(
        lambda t, y: a * torch.cos(50 * t) + 0 * y, y0, 1.0, a, gradient=gradient, at_rest=at_rest
    )
    assert abs(grad / (math.sin(50) / 50) - 1) > 10
    assert len(words) == 1


@pytest.mark.parametrize("gradient", ["aca", ACA(checkpoints="all")], ids=str)
def test_a_state_below_its_tolerance(gradient):
    """Its steps look healthy, and it has no correct digit."""
    pendulum = next(model for model in MODELS if model.name == "pendulum")
    y0 = torch.tensor([1e-12, 0.0], dtype=DOUBLE, requires_grad=True)
    grad, words = said(pendulum.f, y0, 8.0, gradient=gradient, at_rest="ignore", weights=pendulum.weights)
    assert pendulum.off(grad, 8.0) > 0.5
    assert len(words) == 1


@pytest.mark.parametrize("gradient", ["aca", ACA(checkpoints="all")], ids=str)
def test_silent_where_the_error_has_chosen_the_steps(gradient):
    theta = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    mu = torch.tensor(10.0, dtype=DOUBLE, requires_grad=True)
    problems = {
        "(t - theta)^4": (lambda t, y: (t - theta) ** 4 + 0 * y, [0.0], 2.0, theta),
        "van der Pol": (
            lambda t, y: torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]), [2.0, 0.0], 5.0, mu,
        ),
        "growth": (lambda t, y: 10 * theta * y, [1.0], 1.0, theta),
        "logistic": (lambda t, y: mu * y * (1 - y), [0.01], 4.0, mu),
        "stiff": (lambda t, y: -100 * mu * (y - torch.cos(t)), [1.0], 1.0, mu),
    }  # fmt: skip
    for name, (f, start, span, wrt) in problems.items():
        y0 = torch.tensor(start, dtype=DOUBLE)
        _, words = said(f, y0, span, wrt, gradient=gradient)
        assert words == [], name


def test_what_it_says():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    _, (words,) = said(prey, y0, 10.0, at_rest="ignore")
    assert words == (
        "the step from t = 1.11 to 10 is resolved for y (error ratio 0), but not for its derivative: its products are "
        "off by about 32% (growth 697). A solve at rest has no error that could limit its steps. Use "
        "at_rest='resolve', gradient=ACA(grad_rtol=1e-2), or dt_max=2.2 (the step has 8.9)"
    )
    _, words = said(prey, y0, 10.0, at_rest="ignore", dt_max=2.2)
    assert words == []


def test_it_points_at_the_caller():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    with pytest.warns(GradientWarning) as caught:
        solve(prey, y0, [0.0, 10.0], at_rest="ignore", **TOLERANCES).ys[-1].sum().backward()
    assert caught[0].filename == __file__


@pytest.mark.parametrize("gradient", ["aca", ACA(checkpoints="all")], ids=str)
def test_an_error_if_somebody_wants_that(gradient):
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    sol = solve(prey, y0, [0.0, 10.0], at_rest="ignore", gradient=gradient, **TOLERANCES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        with pytest.raises(GradientWarning, match="not for its derivative"):
            sol.ys[-1].sum().backward()


@pytest.mark.parametrize("gradient", ["aca", ACA(checkpoints="all")], ids=str)
def test_once_for_an_f_and_its_settings(gradient):
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    options = {"gradient": gradient, "at_rest": "ignore"}

    def again(span=10.0, **more):
        """Another function object of the same code each time, as in a training loop."""
        return len(said(lambda t, y: prey(t, y) + 0, y0, span, **{**options, **more})[1])

    assert [again(), again(), again(rtol=1e-5), again(rtol=1e-5), again(20.0), again(20.0)] == [1, 0] * 3
    assert [len(said(prey, y0, 10.0, **options)[1]) for _ in range(2)] == [1, 0]


class Prey(nn.Module):
    def forward(self, t, y):
        return prey(t, y)


def test_nobody_is_kept_alive():
    module, y0 = Prey(), torch.ones(2, dtype=DOUBLE, requires_grad=True)
    assert [len(said(module, y0, 10.0, at_rest="ignore")[1]) for _ in range(2)] == [1, 0]
    assert len(said(Prey(), y0, 10.0, at_rest="ignore")[1]) == 1
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("gradient", SETTINGS[:4], ids=str)
def test_what_it_costs(gradient):
    """Nothing in a solve that its error controls, one step in one that it does not."""
    counts = {}
    for start in (1.0, 2.0):
        y0 = torch.full((2,), start, dtype=DOUBLE, requires_grad=True)
        sol = solve(prey, y0, [0.0, 5.0], gradient=gradient, **TOLERANCES)
        torch.autograd.grad(sol.ys[-1].sum(), y0)
        replayed = 6 * sol.stats.accepted if gradient == ACA(checkpoints="all") else 0
        counts[start] = sol.stats.nfe_backward - replayed
    assert counts[2.0] == 0
    assert counts[1.0] == 7


def test_an_f_that_does_not_allow_a_look(monkeypatch):
    """What f does not allow is no reason to fail; what is wrong in the library is."""
    calls = []

    def f(t, y):
        calls.append(t)
        if len(calls) > allowed:
            raise LookupError("no more")
        return prey(t, y)

    allowed, counts = 10**6, []
    for _ in range(2):
        calls.clear()
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        _, words = said(f, y0, 10.0, at_rest="ignore")
        counts.append(len(words))
        look._TOLD.clear()
        allowed = len(calls) - 1
    assert counts == [1, 0]
    allowed = 10**6
    monkeypatch.setattr(look, "_size", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        said(f, torch.ones(2, dtype=DOUBLE, requires_grad=True), 10.0, at_rest="ignore")


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_what_they_were(name, monkeypatch):
    """A look changes nothing: also with outputs inside steps, and twice through the same graph."""
    found, method = [], "alf" if name == "mali" else "dopri5"
    for suspects in (look.suspects, lambda *args: {}):
        monkeypatch.setattr(look, "suspects", suspects)
        monkeypatch.setattr("torchaca.gradients.look_hooks.suspects", suspects)
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        sol = solve(prey, y0, torch.linspace(0, 9, 5), gradient=name, method=method, **TOLERANCES)
        loss = sol.ys.square().sum()
        found.append([torch.autograd.grad(loss, y0, retain_graph=True)[0] for _ in range(2)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


def test_second_derivatives():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    rows = []
    for gradient in ("aca", "direct", ACA(checkpoints="all")):
        end = solve(prey, y0, [0.0, 5.0], gradient=gradient, **TOLERANCES).ys[-1]
        (first,) = torch.autograd.grad(end[0], y0, create_graph=True)
        rows.append(torch.autograd.grad(first.sum(), y0)[0])
    torch.testing.assert_close(rows[0], rows[1])
    torch.testing.assert_close(rows[0], rows[2])


def test_several_cotangents_at_once():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    for gradient in ("direct", ACA(checkpoints="all")):
        end = solve(prey, y0, [0.0, 5.0], gradient=gradient, at_rest="ignore", **TOLERANCES).ys[-1]
        eye = torch.eye(2, dtype=DOUBLE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            rows = torch.autograd.grad(end, y0, eye, is_grads_batched=True, retain_graph=True)[0]
            assert torch.equal(rows[0], torch.autograd.grad(end[0], y0)[0])


def test_functional_transforms_are_left_alone():
    jacobian = torch.func.jacrev(lambda y: solve(prey, y, [0.0, 10.0], at_rest="ignore", **TOLERANCES).ys[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jacobian(torch.ones(2, dtype=DOUBLE))


def test_odeint():
    y0, t = torch.ones(2, dtype=DOUBLE, requires_grad=True), torch.tensor([0.0, 20.0], dtype=DOUBLE)
    with pytest.warns(GradientWarning):
        aca.odeint(prey, y0, t, options={"at_rest": "ignore"})[-1].sum().backward()


# Random problems: python tests/random_rests.py prints the figures, and those that are odd.


def test_some_random_problems():
    counted = figures([row for problem in problems(7) if (row := judged(problem))])
    assert counted.wrong[0] == counted.wrong[1] > 3
    assert counted.right_cured[0] == 0 < counted.right_cured[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_random_problems():
    """Of those at rest or below atol that are off by half nearly all are told, of those right to 3 % nearly none."""
    counted = figures([row for problem in problems(1000) if (row := judged(problem))])
    assert counted.wrong[1] > 400
    assert counted.wrong[0] >= 0.95 * counted.wrong[1]
    assert counted.right[1] + counted.right_cured[1] > 1000
    assert counted.right[0] + counted.right_cured[0] <= 0.005 * (counted.right[1] + counted.right_cured[1])
    assert counted.cured[0] >= 0.95 * counted.cured[1]
