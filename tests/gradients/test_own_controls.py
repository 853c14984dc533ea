"""Controls of a stranger, written from docs/adding-a-control.md alone: what every control promises holds for them."""

import math
from dataclasses import dataclass

import pytest
import torch
from backends import without_code
from covering import pairs
from gradient_cases import DOUBLE, Everything, assert_same, gradients_of
from settings import EVERY, options_for

import torchaca as aca
from torchaca import ACA, SolverError, solve
from torchaca.core import End
from torchaca.executors import EXECUTORS
from torchaca.loops.stepping import Walk, march


@dataclass(frozen=True)
class Listed:
    """Steps that end at these fractions of the span, which may be differentiated."""

    fractions: torch.Tensor
    adaptive: bool = False

    def times(self, ts):
        first, last = ts[0], ts[len(ts) - 1]
        parts = self.fractions.unbind() if self.fractions.requires_grad else self.fractions.tolist()
        return [first, *(first + (last - first) * part for part in parts), last]

    def moves(self, p):
        return march(p, self.times(p.ts))

    def boundaries(self, ts, taken):
        return self.times(ts)[: len(taken)]

    @property
    def tensors(self):
        return [self.fractions]

    def with_tensors(self, tensors):
        return Listed(*tensors)

    def within(self, start, end):
        return self


@dataclass(frozen=True)
class Halving:
    """Steps of span / 2^k: k falls by one after a small error, and grows by one after a large one."""

    tol: float = 1e-4
    deepest: int = 40
    max_steps: int = 10_000
    jump_ts: tuple[float, ...] = ()
    adaptive: bool = True
    tensors: tuple[torch.Tensor, ...] = ()

    def moves(self, p):
        walk, first, last = Walk(p), p.ts.values[0], p.ts.values[-1]
        ends = sorted({*self.jump_ts, last} - {first}, key=lambda t: p.ts.sign * t)
        ends = [t for t in ends if p.ts.sign * (t - first) > 0 and p.ts.sign * (last - t) >= 0]
        start, h = first, last - first
        for end in ends:
            k, done = 3, 0  # steps of 2^-k of the way, `done` of them so far
            while done < 2**k:
                t1 = end if done + 1 == 2**k else start + (end - start) * ((done + 1) / 2**k)
                step = walk.trial(p.ts[len(p.ts) - 1] if t1 == last else t1)
                error = self.error_of(step)
                if error <= self.tol:
                    walk.accept(step)
                    yield step
                    h, done = (end - start) / 2**k, done + 1
                    if error < self.tol / 2 ** (p.method.order + 2) and done % 2 == 0 and k > 1:
                        k, done = k - 1, done // 2
                else:
                    walk.reject(step)
                    k, done = k + 1, 2 * done
                if k > self.deepest:
                    t = float(walk.t)
                    raise SolverError(
                        "step-size", f"no step from {t} is small enough", t=t, dt=h, stats=p.stats
                    )
            start = end
        return End("reached", abs(h))

    def error_of(self, step):
        with torch.no_grad():
            error = (step.error.abs() / (1 + step.y1.abs())).max().item()
        return error if math.isfinite(error) else math.inf

    def boundaries(self, ts, taken):
        ends = [ts[0], *taken[1:]]
        if len(taken) > 1 and taken[-1] == ts.values[-1]:
            ends[-1] = ts[len(ts) - 1]
        return ends

    def with_tensors(self, tensors):
        return self

    def within(self, start, end):
        return self


def listed(requires_grad=False):
    fractions = torch.tensor([0.1, 0.25, 0.4, 0.5, 0.7, 0.8, 0.9], dtype=DOUBLE)
    return Listed(fractions.requires_grad_(requires_grad))


CONTROLS = {"listed": listed(), "halving": Halving()}
ROUGH = {"adjoint": 2e-2, "aca-grad-rtol": 5e-2, "mali": 1e-7}
"""How far gradients that are not `direct`'s up to rounding are off."""
TIMES = [0.0, 0.3, 0.3, 1.1, 1.5]


def method_of(gradient):
    return options_for(gradient).get("method", "dopri5")


@pytest.mark.parametrize(("control", "setting"), pairs(CONTROLS, EVERY))
def test_every_gradient_is_that_of_direct(control, setting):
    case, gradient = Everything(TIMES), EVERY[setting]
    options = {**options_for(gradient), "control": CONTROLS[control]}
    got = case.gradients(**options)
    want = case.gradients("direct", control=options["control"], method=method_of(gradient))
    assert_same(got, want, ROUGH.get(setting, 1e-11))


@pytest.mark.parametrize("setting", EVERY)
def test_what_a_control_holds_is_differentiated_or_refused(setting):
    gradient = EVERY[setting]
    options = options_for(gradient, control=listed(requires_grad=True))
    case = Everything(TIMES)
    case.inputs["fractions"] = options["control"].fractions
    if setting in {"adjoint", "aca-grad-rtol"}:
        with pytest.raises(ValueError, match="detach"):
            case.gradients(**options)
        return
    want = case.gradients("direct", control=options["control"], method=method_of(gradient))
    assert want["fractions"].abs().min() > 1e-9
    assert_same(case.gradients(**options), want, ROUGH.get(setting, 1e-10))


@pytest.mark.parametrize(
    "setting", [name for name, g in EVERY.items() if g.name == "aca" and name != "aca-grad-rtol"]
)
def test_dense_output_is_that_of_direct(setting):
    for control in CONTROLS.values():
        case = Everything(TIMES)

        def grads(gradient, case=case, control=control):
            return gradients_of(case.solve(gradient, control=control, dense=True)(0.77), case.inputs)

        assert_same(grads(EVERY[setting]), grads("direct"), 1e-11)


@pytest.mark.parametrize("setting", ["aca-all", "aca-sqrt", "direct", "naive"])
@pytest.mark.parametrize("times", [[0.0, 0.5, 2.0], [2.0, 0.5, 0.0]], ids=["ahead", "back"])
def test_jumps_are_met(setting, times):
    rate = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(2, dtype=DOUBLE)

    def f(t, y):
        return torch.where(t < 1.0, rate * y, -2 * rate * y)

    sol = solve(f, y0, times, gradient=EVERY[setting], control=Halving(1e-9, jump_ts=(1.0,)))
    sign = 1.0 if times[-1] > times[0] else -1.0
    first, last = (rate, -2 * rate) if sign > 0 else (-2 * rate, rate)
    true = torch.exp(sign * (first + last)) * y0
    assert 1.0 in sol.steps
    torch.testing.assert_close(sol.ys[-1], true, rtol=1e-6, atol=0)
    got, want = (torch.autograd.grad(y.sum(), rate)[0] for y in (sol.ys[-1], true))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("setting", ["aca-all", "aca-2", "direct"])
def test_side_effects_of_rejected_trials_are_undone(setting):
    """Batch norm counts its batches: once for each evaluation that became part of the solution."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).double()
    y0 = torch.randn(6, 2, dtype=DOUBLE)
    sol = solve(
        lambda t, y: 5 * torch.sin(6 * net(y)), y0, [0.0, 1.0], gradient=EVERY[setting], control=Halving()
    )
    assert sol.stats.rejected > 0
    assert net[1].num_batches_tracked == sol.stats.nfe - 6 * sol.stats.rejected


def test_failures_say_where():
    with pytest.raises(SolverError, match="small enough") as caught:
        solve(lambda t, y: y**2, torch.ones(1, dtype=DOUBLE), [0.0, 0.5, 2.0], control=Halving(1e-10))
    assert caught.value.t == pytest.approx(1.0, abs=1e-3)
    assert len(caught.value.partial.ts) == 2


@pytest.mark.parametrize("control", CONTROLS)
def test_the_report_takes_it(control):
    y0 = torch.ones(2, dtype=DOUBLE)
    report = aca.check_gradient(
        lambda t, y: -y * t.cos(),
        y0,
        [0.0, 1.0],
        lambda ys: ys.square().sum(),
        control=CONTROLS[control],
        repeats=1,
    )
    assert "aca" in str(report)


@pytest.mark.parametrize("control", CONTROLS)
def test_vmap_runs_or_is_refused(control):
    ys = torch.linspace(0.5, 1.5, 3, dtype=DOUBLE)[:, None]

    def one(y):
        return solve(lambda t, y: -y * y, y, [0.0, 1.0], control=CONTROLS[control]).ys[-1]

    if CONTROLS[control].adaptive:
        with pytest.raises(NotImplementedError, match=r"Halving.*vmap"):
            torch.func.vmap(one)(ys)
        return
    torch.testing.assert_close(torch.func.vmap(one)(ys), torch.stack([one(y) for y in ys]))


@pytest.mark.parametrize("mode", [mode for mode in EXECUTORS if mode != "cuda-graphs"])
@pytest.mark.parametrize("control", CONTROLS)
def test_every_executor_takes_or_refuses_it(control, mode, monkeypatch):
    without_code("aot_eager", monkeypatch)
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)

    def grad(**options):
        ys = solve(lambda t, y: -y * t.cos(), y0, [0.0, 0.6, 1.0], control=CONTROLS[control], **options).ys
        return torch.autograd.grad(ys.square().sum(), y0)[0]

    if mode in ("loops", "native") and CONTROLS[control].adaptive:
        with pytest.raises(ValueError, match=r"Halving.*(times|no native loop)"):
            grad(compile=mode)
        return
    torch.testing.assert_close(grad(compile=mode), grad(), rtol=1e-12, atol=0)


def test_it_is_named_in_the_settings():
    sol = solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], control=Halving())
    assert "steps of Halving" in sol.settings


# What does not fit.


class Ends:
    """A control whose steps end too early."""

    adaptive, tensors = False, ()

    def moves(self, p):
        return march(p, [p.ts[0], 0.5 * p.ts.values[-1]])

    def boundaries(self, ts, taken):
        return taken

    def with_tensors(self, tensors):
        return self

    def within(self, start, end):
        return self


@pytest.mark.parametrize("gradient", ["aca", ACA(checkpoints="none"), "adjoint"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_control_that_ends_too_early_is_an_error(gradient, grad):
    with pytest.raises(RuntimeError, match=r"Ends.*t = 0\.5"):
        solve(
            lambda t, y: -y, torch.ones(1, requires_grad=grad), [0.0, 1.0], control=Ends(), gradient=gradient
        )


@pytest.mark.parametrize("missing", ["adaptive", "moves", "boundaries", "tensors", "with_tensors", "within"])
def test_what_is_missing_is_named(missing):
    members = {name: getattr(Ends, name) for name in vars(Ends) if not name.startswith("__")}
    members.pop(missing)
    with pytest.raises(TypeError, match=rf"no {missing}\b.*adding-a-control"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], control=type("Partial", (), members)())


@pytest.mark.parametrize("wrong", [object(), 0.1, "pid", [0.0, 1.0]])
def test_what_is_no_control_is_refused(wrong):
    with pytest.raises(TypeError, match="control must be"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], control=wrong)


def test_a_method_without_error_estimate_is_refused():
    with pytest.raises(ValueError, match="no error estimate"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], control=Halving(), method="rk4")


def test_adaptive_with_formulas_of_its_own_is_not_compiled():
    class Bolder(aca.Adaptive):
        def factor(self, ratios, order, *, after_rejection=False):
            return 1.1 * super().factor(ratios, order, after_rejection=after_rejection)

    with pytest.raises(ValueError, match="Bolder"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], control=Bolder(), compile=True)
