"""Samples that are done cost nothing, and change nothing for the others."""

import math
import warnings

import pytest
import torch
from batch.cases import DOUBLE, MU, SETTINGS, Y0, leaves, van_der_pol
from gradients.settings import options_for
from torch import nn

from torchaca import METHODS, solve

ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]


class Counted:
    """An f that notes how many samples it was asked for."""

    def __init__(self, f):
        self.f, self.sizes = f, []

    def __call__(self, t, y, *rows):
        self.sizes.append(len(y))
        assert len(t) == len(y)
        assert all(len(row) == len(y) for row in rows)
        return self.f(t, y, *rows)


def hard_among_easy(size=64, mu=50.0):
    y0 = torch.linspace(0.5, 2.0, 2 * size, dtype=DOUBLE).reshape(size, 2)
    rates = torch.ones(size, dtype=DOUBLE)
    y0[3], rates[3] = torch.tensor([2.0, 1.0]), mu
    return y0, rates


@pytest.mark.parametrize("method", ADAPTIVE)
def test_easy_samples_do_not_notice_a_hard_one(method):
    hard = 1.5 if hasattr(METHODS[method], "resume") else 50.0
    (y0, mu), options = hard_among_easy(mu=hard), {"batch": 1, "method": method, "rtol": 1e-4}
    others = [i for i in range(64) if i != 3]
    t = [0.0, 0.2, 0.5]
    for some in (y0, y0.clone().requires_grad_()):
        easy = solve(van_der_pol, some[others], t, rows=(mu[others],), **options)
        f = Counted(van_der_pol)
        mixed = solve(f, some, t, rows=(mu,), **options)
        assert torch.equal(easy.ys, mixed.ys[:, others])
        for name in ("accepted", "rejected"):
            of = [getattr(sol.stats.samples, name) for sol in (easy, mixed)]
            assert torch.equal(of[0], of[1][others])
        assert min(f.sizes) <= 2
        own = solve(van_der_pol, y0[3], t, args=(mu[3],), method=method, rtol=1e-4)
        torch.testing.assert_close(mixed.ys[:, 3], own.ys, rtol=1e-5, atol=1e-5)


def test_samples_that_are_done_are_left_out():
    y0, mu = hard_among_easy()
    f = Counted(van_der_pol)
    sol = solve(f, y0, [0.0, 2.0], batch=1, rows=(mu,), check_rows=False)
    alone = sum(
        solve(van_der_pol, y, [0.0, 2.0], args=(rate,)).stats.nfe for y, rate in zip(y0, mu, strict=True)
    )
    assert sum(f.sizes) < 2 * alone
    assert sum(f.sizes) < 0.3 * 64 * len(f.sizes)
    everyone = Counted(van_der_pol)
    whole = solve(everyone, y0, [0.0, 2.0], batch=1, rows=(mu,), deterministic=True)
    assert set(everyone.sizes) == {64}
    assert torch.equal(whole.ys, sol.ys)
    assert whole.stats.nfe == sol.stats.nfe


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_leave_them_out_as_well(name):
    y0, mu = hard_among_easy(6, 1.5 if name == "mali" else 5.0)
    found = []
    for deterministic in (False, True):
        start, rates = leaves(y0, mu)
        f = Counted(van_der_pol)
        options = options_for(SETTINGS[name], rtol=1e-3, deterministic=deterministic)
        sol = solve(f, start, [0.0, 0.5, 1.0], batch=1, rows=(rates,), **options)
        found.append((sol.ys, *torch.autograd.grad(sol.ys.square().sum(), [start, rates])))
        assert (min(f.sizes) == 6) == deterministic
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_an_f_that_has_captured_a_row_for_each_sample_gets_all_of_them():
    y0, mu = hard_among_easy(8, 20.0)
    captured = mu.clone().requires_grad_()
    f = Counted(lambda t, y: van_der_pol(t, y, captured))
    sol = solve(f, y0, [0.0, 2.0], batch=1)
    assert len([n for n in f.sizes if n != 8]) == 1
    rows = solve(van_der_pol, y0, [0.0, 2.0], batch=1, rows=(mu,))
    assert torch.equal(sol.ys, rows.ys)
    places = torch.arange(8)
    by_place = solve(
        lambda t, y: van_der_pol(t, y, mu[places[: len(y)]]), y0, [0.0, 2.0], batch=1, check_rows=False
    )
    assert torch.equal(by_place.ys, rows.ys)


PLACES = torch.linspace(1.0, 8.0, 8, dtype=DOUBLE)[:, None]


@pytest.mark.parametrize(
    "f",
    [
        lambda t, y: PLACES[: len(y)] * torch.sin(t) - y,
        lambda t, y: PLACES[: len(y)] * y * torch.cos(t),
        lambda t, y: -y * (1 + PLACES[: len(y)] * t),
    ],
    ids=["zero at the start", "zero in the state", "alike at the start"],
)
@pytest.mark.parametrize("mode", [False, True])
def test_an_f_that_knows_samples_by_their_places_gets_all_of_them(f, mode):
    """Also where f does not show it at the start: the first samples end early, and the last go on."""
    t = [[0.0, 0.3]] * 6 + [[0.0, 9.0]] * 2
    options = {"batch": 1, "check_rows": False, "rtol": 1e-6}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compile=True")
        sol = solve(f, torch.zeros(8, 2, dtype=DOUBLE) + 1e-3, t, compile=mode, **options)
    assert sol.stats.executor == "eager"
    right = solve(f, torch.zeros(8, 2, dtype=DOUBLE) + 1e-3, t, deterministic=True, **options)
    assert torch.equal(sol.ys, right.ys)


def test_everything_of_a_sample_is_gathered():
    y0 = {"a": Y0, "b": torch.ones(4, 3, dtype=DOUBLE)}
    rows = ({"mu": MU}, torch.arange(4.0, dtype=DOUBLE))
    rtol = torch.tensor([1e-3, 1e-4, 1e-5, 1e-7], dtype=DOUBLE)[:, None]

    def f(t, y, mu, shift):
        shift = shift.reshape(-1, 1) if y["a"].ndim > 1 else shift
        return {"a": van_der_pol(t, y["a"], mu["mu"]), "b": torch.cos(t + shift) - y["b"]}

    f = Counted(f)
    f.__call__ = None
    sizes = []

    def counted(t, y, mu, shift):
        sizes.append(len(t))
        return f.f(t, y, mu, shift)

    t = [[0.0, 0.5, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 9.0]]
    for start in (y0, {name: x.clone().requires_grad_() for name, x in y0.items()}):
        sol = solve(counted, start, t, batch=1, rows=rows, rtol={"a": rtol, "b": rtol})
        assert min(sizes) == 1
        for i, times in enumerate(t):
            own = solve(
                f.f,
                {name: x[i] for name, x in y0.items()},
                times,
                args=({"mu": MU[i]}, rows[1][i]),
                rtol=rtol[i].item(),
            )
            assert sol.stats.samples.accepted[i] == own.stats.accepted
            for name in y0:
                torch.testing.assert_close(
                    sol.ys[name][: len(times), i], own.ys[name], rtol=1e-11, atol=1e-11
                )


@pytest.mark.parametrize("name", ["aca-auto", "aca-all", "direct"])
def test_samples_that_fail_are_left_out(name):
    y0, w = torch.tensor([1.0, 0.1, 0.9, 0.8], dtype=DOUBLE).requires_grad_(), torch.ones((), dtype=DOUBLE)
    w.requires_grad_()
    f = Counted(lambda t, y: w * y * y)
    sol = solve(f, y0, [0.0, 0.5, 4.0], batch=1, on_failure="status", gradient=SETTINGS[name])
    assert sol.status == ("blow-up", "success", "blow-up", "blow-up")
    assert sol.mask[1].all()
    slopes = torch.autograd.grad(sol.ys[2, 1], [y0, w])
    assert slopes[0].tolist() == pytest.approx([0.0, (1 - 0.4) ** -2, 0.0, 0.0], rel=1e-3)
    assert slopes[1].item() == pytest.approx(4 * 0.01 / (1 - 0.4) ** 2, rel=1e-3)
    none = solve(f, y0.detach(), [0.0, 0.5, 4.0], batch=1, on_failure="status")
    assert none.status == sol.status
    torch.testing.assert_close(none.ys, sol.ys.detach(), rtol=1e-12, atol=0)


def test_a_network_is_right_up_to_its_rounding():
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    y0, scale = torch.randn(9, 2, dtype=DOUBLE), torch.linspace(0.1, 30.0, 9, dtype=DOUBLE)[:, None]
    found = []
    for deterministic in (False, True):
        net.zero_grad()
        sol = solve(
            lambda t, y, scale: scale * net(y),
            y0,
            [0.0, 1.0],
            batch=1,
            rows=(scale,),
            deterministic=deterministic,
        )
        sol.ys[-1].sum().backward()
        found.append(
            (sol.stats.samples.accepted, sol.ys.detach(), *(p.grad.clone() for p in net.parameters()))
        )
    assert torch.equal(found[0][0], found[1][0])
    for x, y in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_what_torchode_documents():
    """Times in both directions in one batch; finished samples keep their step; f is evaluated nowhere else."""
    rates = torch.tensor([-1.0, -1.0, 3.0], dtype=DOUBLE)
    t = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.1]], dtype=DOUBLE)
    low, high = t.amin(1), t.amax(1)

    def f(t, y, rate, number):
        inside = (t[:, 0] >= low[number]) & (t[:, 0] <= high[number])
        assert inside.all()
        return rate[:, None] * y

    numbers = torch.arange(3)
    y0 = torch.ones(3, 2, dtype=DOUBLE)
    for options in ({}, {"deterministic": True}):
        sol = solve(f, y0, t, batch=1, rows=(rates, numbers), rtol=1e-8, atol=1e-10, **options)
        exact = torch.exp(rates * (t[:, 1] - t[:, 0]))[:, None].expand(3, 2)
        torch.testing.assert_close(sol.ys[-1], exact, rtol=1e-6, atol=0)
        for i in range(3):
            own = solve(lambda t, y, i=i: rates[i] * y, y0[i], t[i], rtol=1e-8, atol=1e-10)
            assert sol.stats.samples.accepted[i] == own.stats.accepted


@pytest.mark.slow
def test_ten_thousand_ragged_samples():
    size, most = 10_000, 200
    lengths = torch.randint(5, most + 1, (size,))
    t = torch.rand(size, most, dtype=DOUBLE).sort(1).values * lengths[:, None] / 10
    t = torch.where(torch.arange(most) < lengths[:, None], t, math.nan)
    rates = -torch.rand(size, 1, dtype=DOUBLE)
    f = Counted(lambda t, y, rate: rate * y)
    y0 = torch.ones(size, 1, dtype=DOUBLE)
    options = {"rtol": 1e-6, "atol": 1e-8, "at_rest": "ignore", "check_rows": False}
    sol = solve(f, y0, t, batch=1, rows=(rates,), **options)
    exact = torch.exp(rates.T * (t.T - t[:, 0]))
    assert (sol.ys[..., 0] - exact)[sol.mask].abs().max() < 1e-5
    trials = sol.stats.samples.accepted + sol.stats.samples.rejected
    needed = 6 * int(trials.sum()) + 2 * size  # the first two choose the first step
    assert sum(f.sizes) - needed < 0.1 * needed
