"""`torchaca run van-der-pol`."""

import pytest
import torch
from lab_helpers import metrics, run, summary
from scipy.integrate import solve_ivp

from torchaca.lab import van_der_pol
from torchaca.lab.van_der_pol.problem import Settings, gradients, reference, there_and_back
from torchaca.methods import METHODS

SETTINGS = Settings(times=(25.0,), tolerances=((1e-3, 1e-6),))


def squared_end(y0, mu):
    def f(t, y):
        return [y[1], (mu - y[0] ** 2) * y[1] - y[0]]

    end = solve_ivp(f, (0, SETTINGS.T), y0, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return end @ end


def test_the_reference_is_the_slope_of_another_solver():
    h = 1e-5
    (a, b), mu = SETTINGS.y0, SETTINGS.mu
    slopes = [
        (squared_end((a + h, b), mu) - squared_end((a - h, b), mu)) / (2 * h),
        (squared_end((a, b + h), mu) - squared_end((a, b - h), mu)) / (2 * h),
        (squared_end((a, b), mu + h) - squared_end((a, b), mu - h)) / (2 * h),
    ]
    assert reference(SETTINGS)["gradient"] == pytest.approx(slopes, rel=1e-5)


def test_the_reverse_solve_starts_where_the_forward_one_ended():
    forward, reverse = there_and_back(SETTINGS, "ode45", 5.0)
    assert torch.equal(forward.ys[-1], reverse.ys[0])
    assert forward.ts.tolist() == reverse.ts.tolist()[::-1]
    steps = torch.tensor(forward.steps).diff()
    assert steps.max() <= 0.5 * (1 + 1e-6), "ode45 takes no step beyond a tenth of the span"


def test_a_tight_solve_returns():
    settings = Settings(rtol=1e-12, atol=1e-13)
    forward, reverse = there_and_back(settings, "torchaca", 25.0)
    assert (reverse.ys[-1] - forward.ys[0]).norm() < 1e-3


@pytest.mark.parametrize(("name", "low", "high"), [("aca", 0.0, 0.0), ("adjoint", 0.01, 1.0)])
def test_the_start_that_the_backward_pass_sees(name, low, high):
    gradient = van_der_pol.outcome.variants((name,), "dopri5", METHODS["alf"])[0].gradient
    found = gradients(SETTINGS, gradient, METHODS["dopri5"], (1e-5, 1e-5))
    assert low <= found["start_error"] <= high


def test_from_command_to_page(small, tmp_path, capsys):
    folder = tmp_path / "run"
    args = ("--gradient", "aca", "direct", "adjoint")
    assert run("van-der-pol", *args, "--out", folder, "--docs", tmp_path / "docs") == 0
    out = capsys.readouterr().out
    assert "adjoint interpolated" in out
    assert "failed: blow-up" in out
    rows = {line["row"]: line for line in metrics(folder)}
    assert rows["reverse ode45 T=25"]["error"] > 1
    aca, direct = (rows[f"{name} rtol=0.001 atol=1e-06"] for name in ("aca", "direct"))
    assert aca["gradient"] == pytest.approx(direct["gradient"], rel=1e-11)
    assert summary(folder)["rows"][0]["row"] == "reverse ode45 T=25"
    published = {path.name for path in (tmp_path / "docs" / "van-der-pol").iterdir()}
    assert published == {"summary.md", "summary.json", "config.json", "trajectories.png", "gradients.png"}
