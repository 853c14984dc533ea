"""`check_gradient`: its figures against closed forms, its traces on the model (none), and what it refuses."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import torchaca as aca
from torchaca import check_gradient
from torchaca.gradients import GRADIENTS
from torchaca.report import reference
from torchaca.report.model import model_of
from torchaca.report.reference import in_double

DOUBLE = torch.float64
FAST = {"repeats": 1}


def decay(dtype=DOUBLE):
    """y' = -k y with y(0) = 2, and d y(1) / d (y0, k)."""
    k = torch.tensor(1.5, dtype=dtype, requires_grad=True)
    truth = {"y0": math.exp(-1.5), "k": -2 * math.exp(-1.5)}
    return (lambda t, y: -k * y), torch.tensor([2.0], dtype=dtype), truth


def end(ys):
    return ys[-1].sum()


def flat(report):
    """Its text without line breaks."""
    return " ".join(str(report).split())


def test_errors_are_the_distances_from_the_closed_form():
    f, y0, truth = decay()
    report = check_gradient(f, y0, [0.0, 1.0], end, rtol=1e-4, **FAST)
    assert report.inputs == {"y0": 1, "k": 1}
    size = math.hypot(*truth.values())
    true_k = torch.tensor(truth["k"], dtype=DOUBLE)
    torch.testing.assert_close(report.reference.grads["k"], true_k, rtol=1e-9, atol=0)
    assert 0 < report.reference.error < 1e-7
    for name in ("aca", "adjoint"):
        y, k = y0.clone().requires_grad_(), torch.tensor(1.5, dtype=DOUBLE, requires_grad=True)
        ys = aca.solve(lambda t, y, k=k: -k * y, y, [0.0, 1.0], rtol=1e-4, gradient=name).ys
        found = torch.autograd.grad(ys[-1].sum(), (y, k))
        off = math.hypot(found[0].item() - truth["y0"], found[1].item() - truth["k"]) / size
        assert report[name].error_ode == pytest.approx(off, rel=1e-3)
        assert report[name].errors["k"][1] == pytest.approx(abs(found[1].item() / truth["k"] - 1), rel=1e-3)
    assert report["direct"].error_discrete == 0.0
    assert report["aca"].error_discrete < 1e-14
    assert report["adjoint"].error_discrete > 1e-9


def oscillator(force, T):
    """A damped one at rest, and what a force does to it: nothing so far."""

    def f(t, y):
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + force * torch.cos(3 * t)])

    return f, torch.zeros(2, dtype=DOUBLE), [0.0, T]


@pytest.mark.parametrize(
    "options", [{"rtol": 1e-6, "atol": 1e-9, "at_rest": "ignore"}, {"method": "rk4", "n_steps": 4}], ids=str
)
def test_at_rest(options):
    """Where the exact gradient of the computed solution is none of the ODE's, nobody is sent to it."""
    force = torch.tensor(0.0, dtype=DOUBLE, requires_grad=True)
    options = {"dt0": 1e-3, **options} if "rtol" in options else options
    report = check_gradient(
        *oscillator(force, 20.0), lambda ys: ys[-1, 0], gradients=["aca", "adjoint"], **options, **FAST
    )
    assert report.reference.grads["force"].item() == pytest.approx(0.134646, rel=1e-4)
    assert report.reference.error < 1e-4
    assert report["aca"].error_ode > 1e3
    assert report.parts.largest == "steps too long for the derivative"
    assert report.parts == pytest.approx(report["aca"].error_ode, rel=0.1)
    assert report.advice.gradient in (None, "adjoint")
    assert "ACA(grad_rtol=1e-2)" in flat(report)


def test_parts_add_up():
    """A solution that is off, of a loss that is not linear."""
    f, y0, _ = decay()
    report = check_gradient(
        f,
        y0,
        [0.0, 1.0],
        lambda ys: ys[-1].square().sum(),
        gradients=["aca"],
        method="heun3",
        n_steps=3,
        **FAST,
    )
    parts = report.parts.parts
    assert report["aca"].error_ode <= report.parts * 1.001
    assert all(x > 1e-5 for x in parts.values())
    assert all(f"{name} {x:.1e}" in flat(report) for name, x in parts.items())


def test_costs_are_those_of_a_solve():
    f, y0, _ = decay()
    report = check_gradient(f, y0.repeat(1000), [0.0, 1.0], end, rtol=1e-4, **FAST)
    for name in ("aca", "adjoint"):
        y = y0.repeat(1000).requires_grad_()
        sol = aca.solve(f, y, [0.0, 1.0], rtol=1e-4, gradient=name)
        sol.ys[-1].sum().backward()
        assert (report[name].nfe, report[name].nfe_backward) == (sol.stats.nfe, sol.stats.nfe_backward)
    assert report["direct"].nfe_backward == 0
    replayed = aca.ACA(checkpoints="all")
    (row,) = check_gradient(f, y0.repeat(1000), [0.0, 1.0], end, rtol=1e-4, gradients=[replayed], **FAST).rows
    assert report["direct"].memory > 3 * row.memory > 0
    assert all(row.forward > 0 and row.backward > 0 for row in report.rows if row.failure is None)
    assert [row.gradient for row in report.rows if row.failure] == ["mali"]  # dopri5 cannot be reversed


def test_every_registered_gradient_has_a_row_and_the_table_is_readable():
    f, y0, _ = decay()
    report = check_gradient(f, y0, [0.0, 1.0], end, method="rk4", n_steps=4, **FAST)
    assert [row.gradient for row in report.rows] == list(GRADIENTS)
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    words = (*GRADIENTS, "error: ODE", "dopri8 at rtol 1e-10 in float64", "use ")
    assert all(word in flat(report) for word in words)


@dataclass(frozen=True)
class Finer:
    """Direct on a finer grid than it was asked for, its gradient scaled."""

    scale: float = 1.0
    name: str = "finer"
    wants_inputs: bool = False
    wants_graph_size: bool = False

    def __call__(self, p, inputs):
        outcome = aca.Direct()(replace(p, control=replace(p.control, rtol=1e-7, atol=1e-9)), inputs)
        ys = outcome.ys
        return replace(outcome, ys=ys.detach() + self.scale * (ys - ys.detach()))


def test_exact_means_exact_on_the_steps_that_were_taken():
    f, y0, _ = decay()
    report = check_gradient(f, y0, [0.0, 1.0], end, rtol=1e-3, gradients=["aca", Finer(), Finer(1.5)], **FAST)
    own, wrong = report["Finer()"], report["Finer(scale=1.5)"]
    assert own.error_discrete < 1e-14
    assert own.error_ode < 1e-2 * report["aca"].error_ode
    assert wrong.error_discrete == pytest.approx(0.5)
    assert wrong.error_ode == pytest.approx(0.5, rel=1e-4)
    assert any("beware of Finer(scale=1.5)" in note for note in report.advice.notes)


class Noisy(nn.Module):
    """Batch norm, whose buffers move, and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, t, y):
        return self.scale * self.net(y)


def test_nothing_is_left_behind():
    model, y0 = Noisy(), torch.randn(4, 3, requires_grad=True)
    before = {
        name: (x.dtype, x.data_ptr(), x.clone()) for name, x in model.state_dict(keep_vars=True).items()
    }
    generator = torch.get_rng_state()
    report = check_gradient(model, y0, [0.0, 1.0], end, n_steps=4, **FAST)
    assert report.reference.dtype == DOUBLE
    assert report["aca"].error_discrete < 1e-5
    for name, x in model.state_dict(keep_vars=True).items():
        dtype, place, value = before[name]
        assert (x.dtype, x.data_ptr()) == (dtype, place)
        assert torch.equal(x, value)
    assert all(x.grad is None for x in (y0, *model.parameters()))
    assert torch.equal(torch.get_rng_state(), generator)
    model(0.0, y0).sum().backward()


def test_the_reference_of_a_float32_model_is_found_in_float64():
    f, y0, truth = decay(torch.float32)
    report = check_gradient(f, y0, [0.0, 1.0], end, gradients=["aca"], **FAST)
    assert report.reference.dtype == DOUBLE
    torch.testing.assert_close(report.reference.grads["k"].item(), truth["k"], rtol=1e-9, atol=0)


def test_the_reference_stays_in_float32_where_f_does():
    k = torch.tensor(1.5, requires_grad=True)

    def f(t, y):
        return (-k * y).to(torch.float32)

    report = check_gradient(f, torch.tensor([2.0]), [0.0, 1.0], end, gradients=["aca"], **FAST)
    assert report.reference.dtype == k.dtype == torch.float32
    assert report.reference.rtol > 1e-7
    assert "in float32, itself right to" in flat(report)


def test_tensors_are_back_in_their_precision_after_an_error():
    f, y0, _ = decay(torch.float32)
    model = model_of(f, y0, [0.0, 1.0], end, (), {})

    def broken():
        with in_double(model) as double:
            assert double.inputs["k"].dtype == double.inputs["y0"].dtype == DOUBLE
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert model.inputs["k"].dtype == torch.float32


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16"])
def test_low_precision(autocast):
    net = nn.Linear(3, 3).to(torch.float32 if autocast else torch.bfloat16)
    y0 = torch.randn(4, 3, dtype=net.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        call = (lambda t, y: net(y).tanh(), y0, [0.0, 1.0], lambda ys: ys[-1].float().square().sum())
        report = check_gradient(*call, n_steps=4, **FAST)
        (net(y0).sum()).backward()  # and no cast of a pass is left over
    assert report.reference.dtype == DOUBLE
    assert report.reference.error < 1e-8
    assert report["direct"].error_discrete < 1e-2
    assert report["aca"].error_discrete < 5e-2
    assert 1e-5 < report["aca"].error_ode < 5e-2
    assert report.advice.gradient in ("aca", "direct")
    assert "the only such" not in report.advice.reason


def test_a_tensor_with_a_history_in_double():
    root = torch.randn(2, requires_grad=True)
    made = root.sin()
    call = (lambda t, y: -made * y + made[:1], torch.ones(2), [0.0, 1.0], end)
    report = check_gradient(*call, rtol=1e-5, gradients=["aca"], **FAST)
    assert report.reference.dtype == DOUBLE
    assert report["aca"].error_ode < 1e-4
    made.sum().backward()
    assert root.grad.dtype == torch.float32


def test_every_way_in_which_f_holds_a_tensor():
    root = torch.randn(2, dtype=DOUBLE, requires_grad=True)
    captured, frozen = root.sin(), torch.randn(2, dtype=DOUBLE)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE, requires_grad=True)
    args = (
        torch.randn(2, dtype=DOUBLE, requires_grad=True),
        {"b": torch.ones((), dtype=DOUBLE, requires_grad=True)},
    )

    def f(t, y, a, rest):
        return {"x": captured * y["v"] + a, "v": frozen * y["x"] * rest["b"] + root}

    y0 = {"x": torch.randn(2, dtype=DOUBLE), "v": torch.randn(2, dtype=DOUBLE, requires_grad=True)}
    report = check_gradient(
        f, y0, t, lambda ys: ys["x"].square().sum(), args=args, gradients=["aca", "direct"], rtol=1e-5, **FAST
    )
    found = {"y0['v']", "y0['x']", "captured", "root", "args[0]", "args[1][b]", "t"}
    assert set(report.inputs) == found
    assert report["aca"].error_discrete < 1e-12
    assert report["aca"].error_ode < 1e-3
    assert set(report["aca"].errors) == found


def test_a_gradient_that_fails_is_a_row():
    k = torch.tensor(50.0, requires_grad=True)
    report = check_gradient(
        lambda t, y: -k * (y - torch.cos(t)), torch.ones(1), [0.0, 2.0], end, rtol=1e-4, **FAST
    )
    assert "backward pass" in report["adjoint"].failure
    assert report["aca"].error_ode < 1e-2
    assert report.advice.gradient in ("aca", "direct")
    assert "backward pass" in str(report)


def test_a_gradient_that_refuses_is_a_row_and_noise_has_no_reference():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    report = check_gradient(lambda t, y: model(y), torch.ones(3, 2), [0.0, 1.0], end, n_steps=4, **FAST)
    assert "random numbers" in report["adjoint"].failure
    assert report.reference is None
    assert report["aca"].error_ode is None
    assert report["aca"].error_discrete < 1e-5
    assert "nothing to compare with, since f draws random numbers" in flat(report)


def test_a_solve_that_fails_fails_in_every_row():
    y0 = torch.ones(1, dtype=DOUBLE)
    report = check_gradient(lambda t, y: y**2, y0, [0.0, 2.0], end, repeats=1)
    assert all("blow-up" in row.failure for row in report.rows if row.gradient != "mali")
    assert report.advice.gradient is None
    assert "blow-up" in report.no_reference
    assert "none of these gradients came through" in str(report)


def test_the_reference_gives_way_to_a_tolerance_that_comes_through(monkeypatch):
    f, y0, truth = decay()
    at = reference._at

    def stubborn(model, rtol, goal):
        if rtol < limit:
            raise aca.SolverError("max-steps", "too tight", t=0.0, dt=0.0, stats=aca.Stats())
        return at(model, rtol, goal)

    monkeypatch.setattr(reference, "_at", stubborn)
    limit = 5e-9
    report = check_gradient(f, y0, [0.0, 1.0], end, gradients=["aca"], **FAST)
    assert report.reference.rtol == pytest.approx(1e-8)
    torch.testing.assert_close(report.reference.grads["k"].item(), truth["k"], rtol=1e-7, atol=0)
    limit = 1e-3
    report = check_gradient(f, y0, [0.0, 1.0], end, gradients=["aca"], **FAST)
    assert report.reference is None
    assert "no tolerance from 1e-10 to 1e-04 came through: SolverError[max-steps]" in flat(report)


def test_no_reference_where_none_is_asked_for():
    f, y0, _ = decay()
    report = check_gradient(f, y0, [0.0, 1.0], end, reference_rtol=None, **FAST)
    assert report.reference is None
    assert report["aca"].error_ode is None
    assert "since it was not asked for" in str(report)


def test_jumps_are_handed_to_the_reference():
    k = torch.ones((), dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        return -k * y * (1.0 if t < 0.31 else 3.0)

    report = check_gradient(
        f, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], end, gradients=["aca"], jump_ts=[0.31], **FAST
    )
    true = -(0.31 + 3 * 0.69) * math.exp(-(0.31 + 3 * 0.69))
    torch.testing.assert_close(report.reference.grads["k"].item(), true, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"loss": lambda ys: ys}, TypeError, "must return one real number.*sum"),
        ({"loss": lambda ys: 1.0}, TypeError, "got float"),
        ({"loss": lambda ys: ys[-1].sum().detach()}, ValueError, "does not depend on ys"),
        ({"loss": 3}, TypeError, "loss must be callable"),
        ({"rtoll": 1e-3}, TypeError, "no option 'rtoll'.*'rtol'"),
        ({"gradient": "aca"}, TypeError, "gradients="),
        ({"gradients": ["acca"]}, ValueError, "unknown gradient 'acca'.*'aca'"),
        ({"repeats": 0}, ValueError, "at least 1"),
        ({"t": [0.0, math.nan]}, ValueError, "finite"),
        ({"y0": 1.0}, TypeError, "not a tensor"),
        ({"f": lambda t, y: y.sum()}, ValueError, "shape"),
    ],
)
def test_refusals(changes, error, words):
    f, y0, _ = decay()
    call = {"f": f, "y0": y0, "t": [0.0, 1.0], "loss": end, **changes}
    with pytest.raises(error, match=words):
        check_gradient(**call)
