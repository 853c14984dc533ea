"""Batches: each sample has its own steps, times, tolerances and status, as in a solve of its own."""

import math
import warnings

import pytest
import torch
from batch.cases import DOUBLE, FIXED, MU, OWN_TIMES, SETTINGS, Y0, van_der_pol
from gradients.settings import options_for
from torch import nn

import torchaca as aca
from torchaca import METHODS, SolverError, solve

T = torch.tensor([0.0, 0.7, 0.7, 2.0], dtype=DOUBLE)
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]


def grows(t, y, rate):
    return rate * y


@pytest.mark.parametrize(("dt0", "near"), [(0.2, 1e-12), (None, 1e-10)])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_each_sample_is_its_own_solve(method, dt0, near):
    """To rounding; by default the first step is so short that dopri8's estimate of its error is rounding, too."""
    options = {"method": method, "rtol": 1e-6 if METHODS[method].order > 3 else 1e-4, "dt0": dt0}
    rates = MU / 5 if hasattr(METHODS[method], "resume") else MU
    sol = solve(van_der_pol, Y0, T, batch=1, rows=(rates,), **options)
    assert sol.ys.shape == (4, 4, 2)
    assert sol.mask.all()
    assert sol.status == ("success",) * 4
    for i, mu in enumerate(rates):
        own = solve(van_der_pol, Y0[i], T, args=(mu,), **options)
        counts = sol.stats.samples.accepted[i], sol.stats.samples.rejected[i]
        assert counts == (own.stats.accepted, own.stats.rejected)
        torch.testing.assert_close(sol.ys[:, i], own.ys, rtol=near, atol=near)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("own", [False, True])
def test_without_derivatives_no_step_is_made_again(method, own):
    """The outputs are the same bits, also of samples that fail."""

    def f(t, y, mu):
        return van_der_pol(t, y, mu) + 0.1 * (y > 1.5) * y**3

    t = [[0.0, 0.1, 0.1, 0.2, 2.0], [1.0, 0.5], [0.5], [0.0, 3.0, 3.0]] if own else T
    options = {"rows": (MU,), "batch": 1, "method": method, "on_failure": "status", "max_steps": 80}
    recorded = solve(f, Y0.clone().requires_grad_(), t, **options)
    alone = solve(f, Y0, t, **options)
    assert torch.equal(alone.ys, recorded.ys)
    assert torch.equal(alone.mask, recorded.mask)
    assert alone.status == recorded.status
    assert torch.equal(alone.stats.samples.accepted, recorded.stats.samples.accepted)
    assert (alone.stats.accepted, alone.stats.rejected) == (recorded.stats.accepted, recorded.stats.rejected)
    trials = alone.stats.accepted + alone.stats.rejected
    assert alone.stats.nfe < recorded.stats.nfe
    assert trials > 4


def test_the_default_says_what_solves_it():
    sol = solve(van_der_pol, Y0, T, batch=1, rows=(MU,))
    assert sol.stats.executor == "eager"
    assert aca.explain(van_der_pol, Y0, T, batch=1, rows=(MU,), compile=False).executor == "eager"
    assert aca.explain(van_der_pol, Y0, T, batch=1, rows=(MU,)).executor == "native"
    mixing = aca.explain(lambda t, y: MU[:, None] * y, Y0, T, batch=1)
    assert mixing.executor == "eager"
    assert "has to be in rows=" in mixing.passed_over["native"]


@pytest.mark.parametrize("steps", FIXED)
def test_fixed_steps_between_times_of_each_sample(steps):
    for method in ("euler", "rk4", "dopri5"):
        sol = solve(van_der_pol, Y0, OWN_TIMES, batch=1, rows=(MU / 5,), method=method, **FIXED[steps])
        for i, times in enumerate(OWN_TIMES[:2] + OWN_TIMES[3:]):
            i += i == 2
            own = solve(van_der_pol, Y0[i], times, args=(MU[i] / 5,), method=method, **FIXED[steps])
            torch.testing.assert_close(sol.ys[: len(times), i], own.ys, rtol=1e-12, atol=1e-12)
            assert sol.mask[:, i].sum() == len(times)


def test_ragged_times_in_both_directions():
    rates = torch.tensor([-1.0, -2.0, 0.5, 1.0], dtype=DOUBLE)
    rows = [torch.tensor(times, dtype=DOUBLE) for times in OWN_TIMES]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)
    for t in (rows, OWN_TIMES, padded, padded.numpy()):
        sol = solve(grows, torch.ones(4, dtype=DOUBLE), t, batch=1, rows=(rates,), rtol=1e-9, atol=1e-12)
        assert sol.ts.shape == sol.ys.shape == sol.mask.shape == (4, 4)
        for i, times in enumerate(rows):
            n = len(times)
            assert sol.mask[:, i].tolist() == [True] * n + [False] * (4 - n)
            torch.testing.assert_close(sol.ts[:n, i], times, rtol=0, atol=0)
            torch.testing.assert_close(
                sol.ys[:n, i], torch.exp(rates[i] * (times - times[0])), rtol=1e-7, atol=0
            )
            assert (sol.ys[n:, i] == sol.ys[n - 1, i]).all()
    assert sol.stats.samples.accepted[2] == 0


def test_time_and_tolerances_are_of_each_sample():
    shapes = []

    def f(t, y, scale, w, shift):
        shapes.append((t.shape, t.dtype))
        return scale * w["w"] * torch.cos(t + shift) + 0 * y

    y0, scale = torch.zeros(3, 2, 5, dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
    rows = (
        {"w": torch.rand(3, 1, 1, dtype=DOUBLE)},
        torch.arange(3, dtype=DOUBLE).reshape(3, 1, 1),
    )
    rtol = torch.tensor([1e-3, 1e-6, 1e-9], dtype=DOUBLE).reshape(3, 1, 1)
    sol = solve(f, y0, [0.0, 2.0], args=(scale,), rows=rows, batch=1, rtol=rtol, atol=rtol)
    assert set(shapes) == {((n, 1, 1), DOUBLE) for n in (1, 2, 3)}
    wanted = 2 * rows[0]["w"] * (torch.sin(2 + rows[1]) - torch.sin(rows[1]))
    off = (sol.ys[-1] - wanted).abs().amax((1, 2))
    assert (off < 10 * rtol.flatten()).all()
    assert sol.stats.samples.accepted.diff().gt(0).all()


def test_nested_states():
    y0 = {"a": Y0, "b": (torch.ones(4, dtype=torch.float32),)}

    def f(t, y, mu):
        assert t.shape == (4, 1)
        return {"a": van_der_pol(t, y["a"], mu), "b": (-y["b"][0] * mu.float(),)}

    sol = solve(f, y0, T, batch=1, rows=(MU,), rtol=1e-6)
    assert sol.ys["a"].shape == (4, 4, 2)
    assert sol.ys["b"][0].dtype == torch.float32

    def alone(t, y, mu):
        return {"a": van_der_pol(t, y["a"], mu), "b": (-y["b"][0] * mu.float(),)}

    for i, mu in enumerate(MU):
        start = {"a": Y0[i], "b": (y0["b"][0][i],)}
        own = solve(alone, start, T, args=(mu,), rtol=1e-6)
        torch.testing.assert_close(sol.ys["a"][:, i], own.ys["a"], rtol=1e-11, atol=1e-11)
        assert sol.stats.samples.accepted[i] == own.stats.accepted


@pytest.mark.parametrize("norm", ["max", "mixed", lambda y: y.abs().amax()], ids=["max", "mixed", "callable"])
def test_norms_are_of_each_sample(norm):
    sol = solve(van_der_pol, Y0, T, batch=1, rows=(MU,), norm=norm)
    for i, mu in enumerate(MU):
        own = solve(van_der_pol, Y0[i], T, args=(mu,), norm=norm)
        assert sol.stats.samples.accepted[i] == own.stats.accepted
        torch.testing.assert_close(sol.ys[:, i], own.ys, rtol=1e-12, atol=1e-12)


def test_steps_at_rest_are_those_of_each_sample():
    y0 = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1e-9, 0.0]], dtype=DOUBLE)

    def f(t, y, rate):
        return -rate * y

    rates = torch.tensor([[1.0], [3.0], [20.0]], dtype=DOUBLE)
    sol = solve(f, y0, [0.0, 12.0], batch=1, rows=(rates,))
    for i, rate in enumerate(rates):
        own = solve(f, y0[i], [0.0, 12.0], args=(rate,))
        assert sol.stats.samples.accepted[i] == own.stats.accepted
        torch.testing.assert_close(sol.ys[:, i], own.ys, rtol=1e-12, atol=1e-15)


def test_batch_mates_do_not_matter():
    mu = torch.full((8,), 1.0, dtype=DOUBLE)
    y0 = torch.linspace(0.5, 2.0, 16, dtype=DOUBLE).reshape(8, 2)
    easy = solve(van_der_pol, y0, T, batch=1, rows=(mu,))
    stiff_mu, stiff_y0 = mu.clone(), y0.clone()
    stiff_mu[3], stiff_y0[3] = 50.0, torch.tensor([2.0, 1.0])
    mixed = solve(van_der_pol, stiff_y0, T, batch=1, rows=(stiff_mu,))
    others = [i for i in range(8) if i != 3]
    assert torch.equal(easy.ys[:, others], mixed.ys[:, others])
    for name in ("accepted", "rejected"):
        of = [getattr(sol.stats.samples, name) for sol in (easy, mixed)]
        assert torch.equal(of[0][others], of[1][others])
    assert mixed.stats.samples.accepted[3] > 2 * easy.stats.samples.accepted.max()


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_those_of_each_sample(name):
    options = options_for(SETTINGS[name], rtol=1e-5)
    weight = torch.tensor(1.1, dtype=DOUBLE, requires_grad=True)

    def f(t, y, scale, mu):
        return weight * scale * van_der_pol(t, y, mu)

    y0, mu = (x.clone().requires_grad_() for x in (Y0, MU / 5))
    scale = torch.tensor(0.9, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, OWN_TIMES, args=(scale,), rows=(mu,), batch=1, **options)
    found = torch.autograd.grad((sol.ys**2)[sol.mask].sum(), [y0, mu, scale, weight])
    total = [0.0, 0.0]
    for i, times in enumerate(OWN_TIMES):
        if len(times) == 1:
            torch.testing.assert_close(found[0][i], 2 * Y0[i])
            assert found[1][i] == 0
            continue
        y, m = Y0[i].clone().requires_grad_(), mu[i].detach().clone().requires_grad_()
        own = solve(f, y, times, args=(scale, m), **options)
        *mine, s, w = torch.autograd.grad((own.ys**2).sum(), [y, m, scale, weight])
        for x, theirs in zip(mine, found[:2], strict=True):
            torch.testing.assert_close(theirs[i], x, rtol=1e-10, atol=1e-12)
        total = [total[0] + s, total[1] + w]
    for x, theirs in zip(total, found[2:], strict=True):
        torch.testing.assert_close(theirs, x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["aca-auto", "aca-all", "direct"])
def test_gradients_and_second_ones_against_differences(name):
    weight = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    times = [[0.0, 0.3], [1.0, 0.6, 0.5]]

    def run(y0, mu, weight, gradient=SETTINGS[name]):
        def f(t, y, mu):
            return torch.sin(mu * y) * weight + 0.1 * t

        return solve(f, y0, times, rows=(mu,), batch=1, gradient=gradient, n_steps=3, method="rk4").ys

    y0 = torch.tensor([[0.3], [0.8]], dtype=DOUBLE, requires_grad=True)
    mu = torch.tensor([[0.5], [1.5]], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(run, (y0, mu, weight))
    assert torch.autograd.gradgradcheck(run, (y0, mu, weight))


STARTS = torch.tensor([0.1, 1.0, 0.2], dtype=DOUBLE)
KEEPING = [name for name in SETTINGS if name != "mali"]  # which cannot undo steps to infinity


@pytest.mark.parametrize(
    ("name", "on_failure"), [*((name, "status") for name in KEEPING), ("direct", "nan"), ("aca-all", "nan")]
)
def test_a_sample_fails_alone(name, on_failure):
    y0, w = STARTS.clone().requires_grad_(), torch.ones((), dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y, w: w * y * y, y0, [0.0, 0.5, 2.0], args=(w,), batch=1, on_failure=on_failure,
        **options_for(SETTINGS[name], rtol=1e-6),
    )  # fmt: skip
    assert sol.status == ("success", "blow-up", "success")
    assert sol.mask.tolist() == [[True] * 3, [True] * 3, [True, False, True]]
    assert sol.ys[2, 1].isnan() if on_failure == "nan" else sol.ys[2, 1].isfinite()
    torch.testing.assert_close(sol.ys[2, ::2], (STARTS / (1 - 2 * STARTS))[::2], rtol=1e-4, atol=0)
    slopes = torch.autograd.grad(sol.ys[2, ::2].sum(), [y0, w])
    right = ((1 - 2 * STARTS) ** -2)[::2]
    torch.testing.assert_close(slopes[0][::2], right, rtol=1e-4, atol=0)
    assert slopes[0][1] == 0
    torch.testing.assert_close(slopes[1], 2 * (right * STARTS[::2] ** 2).sum(), rtol=1e-4, atol=0)


def test_a_failure_that_is_raised_names_the_sample():
    with pytest.raises(SolverError, match=r"(?s)sample 1 stopped at t = .*infinity.*y0\[1\] alone"):
        solve(lambda t, y: y * y, STARTS, [0.0, 2.0], batch=1)


REASONS = {
    "max-steps": {"max_steps": 15, "rtol": 1e-9},
    "dt-min": {"dt_min": 0.4, "dt0": 0.4, "rtol": 1e-9},
}


@pytest.mark.parametrize("kind", REASONS)
def test_other_reasons_to_fail(kind):
    rates = torch.tensor([0.0, 5.0], dtype=DOUBLE)
    sol = solve(
        lambda t, y, rate: torch.cos(rate * t) * rate, torch.ones(2, dtype=DOUBLE), [0.0, 2.0], rows=(rates,), batch=1,
        on_failure="status", **REASONS[kind],
    )  # fmt: skip
    assert sol.status == ("success", kind)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_start_that_is_not_finite_and_an_f_that_is_not(name):
    y0 = torch.tensor([1.0, math.nan, -1.0], dtype=DOUBLE, requires_grad=True)
    w = torch.ones((), dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y, w: -w * y.sqrt(),
        y0,
        [0.0, 0.5],
        args=(w,),
        batch=1,
        on_failure="status",
        **options_for(SETTINGS[name]),
    )
    assert sol.status == ("success", "y0", "f")
    (slope,) = torch.autograd.grad(sol.ys[-1, 0], [w])
    assert slope.item() == pytest.approx(-0.5 + 0.5 * 0.25, rel=1e-3)


def test_joint_steps_are_those_of_one_solve():
    joint = solve(van_der_pol, Y0, T, batch=1, rows=(MU,), steps="joint")
    plain = solve(van_der_pol, Y0, T, args=(MU,))
    assert torch.equal(joint.ys, plain.ys)
    assert joint.mask.all()
    assert joint.status == ("success",) * 4
    assert joint.stats.samples.accepted.tolist() == [plain.stats.accepted] * 4
    failed = solve(lambda t, y: y * y, STARTS, [0.0, 0.5, 2.0], batch=1, steps="joint", on_failure="status")
    assert failed.status == ("blow-up",) * 3
    assert failed.ys.shape == failed.mask.shape == (3, 3)
    assert failed.mask[:, 0].tolist() == [True, True, False]
    assert torch.equal(failed.ys[2], failed.ys[1])
    with pytest.raises(ValueError, match=r"joint.*t of shape \(n,\)"):
        solve(van_der_pol, Y0, OWN_TIMES, batch=1, rows=(MU,), steps="joint")


def test_an_f_that_mixes_samples_is_told():
    y0 = torch.randn(5, 3)
    with pytest.warns(UserWarning, match=r"f mixes the samples.*sample 2 moved.*f at sample \d changed by"):
        mixed = solve(lambda t, y: y.mean(0) - y, y0, [0.0, 1.0], batch=1)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked = solve(lambda t, y: net(y), y0, [0.0, 1.0], batch=1)
        free = solve(lambda t, y: net(y), y0, [0.0, 1.0], batch=1, check_rows=False)
        quiet = solve(lambda t, y: y.mean(0) - y, y0, [0.0, 1.0], batch=1, check_rows=False)
    assert checked.stats.nfe == free.stats.nfe
    assert mixed.stats.nfe == quiet.stats.nfe


@pytest.mark.parametrize("steps", ["own", "joint"])
def test_an_f_that_mixes_samples_is_told_where_the_start_hides_it(steps):
    alike, times = torch.ones(4, 2), [0.0, 1.0]
    with pytest.warns(UserWarning, match="f mixes the samples"):
        solve(lambda t, y: t * (y.mean(0) - y), torch.randn(4, 2), times, batch=1, steps=steps)
    with pytest.warns(UserWarning, match="f mixes the samples"):
        solve(lambda t, y: (y - y.mean(0)) * y.std(0).sum(), alike, times, batch=1, steps=steps)


def test_nothing_to_do():
    for y0 in (torch.ones(0, 2), torch.ones(3, 0)):
        sol = solve(lambda t, y: -y, y0, [0.0, 1.0], batch=1)
        assert sol.ys.shape == (2, *y0.shape)
        assert sol.status == ("success",) * len(y0)
    sol = solve(lambda t, y: -y, Y0, [[1.0], [2.0, 2.0], [3.0], [0.0]], batch=1)
    assert torch.equal(sol.ys, torch.stack([Y0, Y0]))
    assert sol.stats.nfe == 0


NAN = math.nan
BAD_TIMES = {
    "nan inside": ([[0.0, NAN, 1.0], [0.0, 1.0, 2.0]], r"t\[0\] has nan before t\[0, 2\] = 1"),
    "unsorted": ([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]], r"t\[1, 2\] = 1 follows t\[1, 1\] = 2: sort it"),
    "infinite": ([[0.0, 1.0, 2.0], [0.0, 1.0, math.inf]], r"t\[1, 2\] is inf"),
    "empty": ([[0.0, 1.0, 2.0], [NAN, NAN, NAN]], r"t\[1\] holds no time"),
    "sizes": ([[0.0, 1.0]] * 3, r"batch sizes differ: y0 has 2 samples and t has 3 rows"),
}


@pytest.mark.parametrize("case", BAD_TIMES)
def test_bad_times(case):
    t, message = BAD_TIMES[case]
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: -y, torch.ones(2), torch.tensor(t), batch=1)


def test_times_that_are_none():
    with pytest.raises(ValueError, match=r"t\[1\] must be the times of sample 1"):
        solve(lambda t, y: -y, torch.ones(2), [[0.0, 1.0], []], batch=1)
    with pytest.raises(TypeError, match=r"t\[1\] must be times of sample 1"):
        solve(lambda t, y: -y, torch.ones(2), [[0.0, 1.0], ["later"]], batch=1)


BAD_OPTIONS = {
    "rows of another size": ({"rows": (torch.ones(3),), "batch": 1}, ValueError, r"y0 has 2 samples and rows\[0\]"),
    "a row of all": ({"rows": ({"w": torch.ones(())},), "batch": 1}, ValueError, r"rows\[0\]\['w'\].*no dimension"),
    "rows that are numbers": ({"rows": (1.0,), "batch": 1}, TypeError, r"rows\[0\] is a float.*args="),
    "rows that are no tuple": ({"rows": torch.ones(2), "batch": 1}, TypeError, "rows is a tuple"),
    "rows alone": ({"rows": (torch.ones(2),)}, ValueError, "rows= has no effect without batch=1"),
    "steps alone": ({"steps": "joint"}, ValueError, "steps= has no effect without batch=1"),
    "grid compiled, with a derivative": (
        {"batch": 1, "method": "rk4", "grid": torch.tensor([0.0, 0.5, 1.0], requires_grad=True), "compile": True},
        NotImplementedError,
        r"derivatives with respect to grid= .*leave out compile=",
    ),
    "a grid that ends elsewhere": (
        {"batch": 1, "method": "rk4", "grid": [0.0, 0.5], "compile": True}, ValueError, "grid must end where t does",
    ),
    "check_rows alone": ({"check_rows": False}, ValueError, "check_rows= has no effect without batch=1"),
    "batch": ({"batch": 2}, ValueError, "batch=1 says.*got batch=2"),
    "steps": ({"batch": 1, "steps": "each"}, ValueError, "'own' or 'joint'.*got 'each'"),
    "a number of steps": ({"steps": 4}, ValueError, "got 4. The number of fixed steps is n_steps="),
    "compile": ({"batch": 1, "compile": "loops"}, ValueError, "compile='loops'.*which has those of each"),
    "deterministic alone": ({"deterministic": True}, ValueError, "deterministic= has no effect without batch=1"),
    "events": ({"batch": 1, "steps": "joint", "events": aca.Event(lambda t, y: y)}, NotImplementedError, "end those"),
    "debug": ({"batch": 1, "debug": True}, NotImplementedError, "debug=True tells of steps by their times"),
    "adjoint": ({"batch": 1, "gradient": "adjoint"}, NotImplementedError, "gradient='adjoint'.*steps='joint'.*'aca'"),
    "naive": ({"batch": 1, "gradient": "naive"}, NotImplementedError, "gradient='naive'.*steps='joint'.*'aca'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_what_is_refused(case):
    options, error, message = BAD_OPTIONS[case]
    with pytest.raises(error, match=message):
        solve(lambda t, y, *rows: -y, torch.ones(2), [0.0, 1.0], **options)


def test_what_else_is_refused():
    t = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    inside, kept = torch.tensor([0.0, 0.5, 1.0]), torch.ones(2, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"a step from a jump forgets what was carried.*'aca'"):
        solve(lambda t, y: -y, kept, inside, batch=1, gradient="mali", method="alf", jump_ts=[0.5])
    with pytest.raises(
        NotImplementedError, match=r"refines steps until gradients agree.*the first and the last time"
    ):
        solve(lambda t, y: -y, torch.ones(2), inside, batch=1, gradient=aca.ACA(grad_rtol=1e-2))
    with pytest.raises(NotImplementedError, match="grid= gives step times of all samples"):
        solve(lambda t, y: -y, torch.ones(2), t, batch=1, grid=[0.0, 0.5, 2.0])
    with pytest.raises(NotImplementedError, match="draws random numbers"), pytest.warns(match="noise"):
        solve(lambda t, y: torch.randn_like(y), torch.ones(2), [0.0, 1.0], batch=1)
    with pytest.raises(NotImplementedError, match=r"torch\.func\.vmap over solve"):
        torch.func.vmap(lambda y: solve(lambda t, y: -y, y, [0.0, 1.0], batch=1).ys)(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"batch sizes differ: y0\['a'\] has 2 samples and y0\['b'\] has 3"):
        solve(lambda t, y: y, {"a": torch.ones(2), "b": torch.ones(3)}, [0.0, 1.0], batch=1)
    with pytest.raises(ValueError, match=r"y0\['b'\] is 0-dim"):
        solve(lambda t, y: y, {"a": torch.ones(2), "b": torch.ones(())}, [0.0, 1.0], batch=1)


@pytest.mark.parametrize("case", ["steps alone", "a number of steps", "batch", "compile", "events"])
def test_a_block_refuses_what_its_first_call_would(case):
    options, error, message = BAD_OPTIONS[case]
    with pytest.raises(error, match=message):
        aca.NeuralODE(lambda t, y: -y, **options)


def test_a_block_of_samples():
    y0 = torch.randn(3, 2, dtype=DOUBLE)
    block = aca.NeuralODE(lambda t, y: -y * t, batch=1)
    assert torch.equal(block(y0), solve(lambda t, y: -y * t, y0, [0.0, 1.0], batch=1).ys[-1])
    assert block.stats.samples.accepted.shape == (3,)


@pytest.mark.parametrize("name", aca.GRADIENTS)
@pytest.mark.parametrize("steps", ["own", "joint"])
def test_every_gradient_is_right_or_refused(name, steps):
    method = "alf" if name == "mali" else "dopri5"
    options = {"gradient": name, "method": method, "rtol": 1e-6}
    y0, w = Y0.clone().requires_grad_(), torch.tensor(-0.5, dtype=DOUBLE, requires_grad=True)

    def slopes(**batch):
        ys = solve(lambda t, y, w: w * y, y0, [0.0, 1.0], args=(w,), **options, **batch).ys
        return torch.autograd.grad(ys[-1].sum(), [y0, w])

    if steps == "own" and name in ("adjoint", "naive"):
        with pytest.raises(NotImplementedError, match="does not differentiate the accepted steps one by one"):
            slopes(batch=1)
        return
    found, right = slopes(batch=1, steps=steps), torch.exp(w.detach())
    torch.testing.assert_close(found[0], right.expand(4, 2), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1], Y0.sum() * right, rtol=1e-4, atol=0)
    if steps == "joint":
        for x, plain in zip(found, slopes(), strict=True):
            torch.testing.assert_close(x, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_right(method):
    for options in ({"n_steps": 200}, {"rtol": 1e-6} if METHODS[method].adaptive else {"dt": 0.005}):
        given = {"batch": 1, "method": method, **options}
        sol = solve(lambda t, y: -y, Y0, [[0.0, 1.0], [1.0, 0.5], [0.5], [0.0, 0.3]], **given)
        exact = torch.exp(-torch.tensor([1.0, -0.5, 0.0, 0.3], dtype=DOUBLE))[:, None] * Y0
        torch.testing.assert_close(sol.ys[-1], exact, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_first_step_of_a_sample_is_that_of_its_own_solve(method):
    """Later ones follow an error estimate, which for dopri8 is rounding at first, and rounding differs."""
    rates = MU / 5
    sol = solve(van_der_pol, Y0, T, batch=1, rows=(rates,), method=method, rtol=1e-4, dense=True)
    for i, mu in enumerate(rates):
        own = solve(van_der_pol, Y0[i], T, args=(mu,), method=method, rtol=1e-4)
        assert sol.dense.times[1, i].item() == pytest.approx(own.steps[1], rel=1e-14)
