"""`torchaca run three-body`."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lab_helpers import EPOCHS, metrics, run, small_three_body, summary

from torchaca.core import Stats
from torchaca.errors import SolverError
from torchaca.lab import run as runs
from torchaca.lab.three_body.fit import MassFit, initial_masses
from torchaca.lab.three_body.plots import plot_losses, plot_motion
from torchaca.lab.three_body.problem import DTYPE, K1, K2, MASSES, ThreeBody, initial_state, true_motion

KILLED = """
import os, sys
import lab_helpers
from torchaca.lab import run as runs, three_body

three_body.EXPERIMENT = lab_helpers.small_three_body()
save, calls = runs.Run.save, 0

def killed(self, row, state):
    global calls
    calls += 1
    if calls == 5:  # the second epoch of the second seed: logged, not yet saved
        os._exit(9)
    save(self, row, state)

runs.Run.save = killed
lab_helpers.run("three-body", "--gradient", "aca", "--out", sys.argv[1])
"""


def test_constants():
    assert pytest.approx(0.200484, abs=1e-6) == K1
    assert pytest.approx(7.239324, abs=1e-6) == K2


def test_the_equations_of_motion():
    torch.manual_seed(0)
    y, masses = torch.randn(6, 3, dtype=DTYPE), torch.rand(3, dtype=DTYPE)
    r, v = y[:3], y[3:]
    pull = torch.zeros(3, 3, dtype=DTYPE)
    for i in range(3):
        for j in range(3):
            if j != i:
                pull[i] += K1 * masses[j] * (r[j] - r[i]) / (r[j] - r[i]).norm() ** 3
    found = ThreeBody(masses)(torch.tensor(0.0), y)
    torch.testing.assert_close(found, torch.cat((K2 * v, pull)))


def test_the_true_motion():
    data = true_motion(20, 1e-10)
    assert data.train_times.tolist() == pytest.approx([k / 20 for k in range(20)])
    assert data.test_times.tolist() == pytest.approx([(k + 0.5) / 20 for k in range(40)])
    assert torch.equal(data.train[0], initial_state()[:3])
    masses = torch.tensor(MASSES, dtype=DTYPE)[:, None]
    start, end = ((masses * r).sum(0) for r in (data.test[0], data.test[-1]))
    drift = K2 * (masses * initial_state()[3:]).sum(0) * (data.test_times[-1] - data.test_times[0])
    torch.testing.assert_close(end - start, drift, atol=1e-9, rtol=0)


def test_the_true_masses_have_no_error():
    settings = replace(small_three_body().defaults, rtol=1e-6, atol=1e-6)
    fit = MassFit(settings, true_motion(10, 1e-7), "aca", 0)
    fit.best_masses = torch.tensor(MASSES, dtype=DTYPE)
    found = fit.test()
    assert found["mse_sum"] < 1e-5
    assert found["mse_mean"] == pytest.approx(found["mse_sum"] / 9)
    assert found["mass_error"] == 0


def test_initial_masses():
    masses = torch.stack([initial_masses(seed, 0.1) for seed in range(50)])
    assert torch.equal(masses[3], initial_masses(3, 0.1))
    assert 0.9 <= masses.min() < 0.91
    assert 1.09 < masses.max() <= 1.1


def test_from_command_to_page(small, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("three-body", "--seeds", "1", "--out", folder, "--docs", tmp_path / "docs") == 0
    lines = metrics(folder)
    assert [line["row"] for line in lines[::EPOCHS]] == [
        f"{name} seed 0" for name in ("aca", "direct", "naive", "adjoint")
    ]
    first = {line["row"]: line["masses"] for line in lines if line["epoch"] == 0}
    assert len({tuple(masses) for masses in first.values()}) == 1
    assert lines[0]["loss"] == pytest.approx(lines[EPOCHS]["loss"], rel=1e-12)
    out = capsys.readouterr().out
    assert "0.0007±0.0005" in out
    assert f"{EPOCHS} of {EPOCHS}" in out
    numbers = summary(folder)
    assert [method["gradient"] for method in numbers["methods"]] == ["aca", "direct", "naive", "adjoint"]
    assert all(method["mse_sum_median"] > 0 for method in numbers["methods"])
    aca, direct, *_ = numbers["methods"]
    assert aca["saved_kib"] < direct["saved_kib"]
    published = {path.name for path in (tmp_path / "docs" / "three-body").iterdir()}
    assert published >= {
        "summary.md",
        "summary.json",
        "config.json",
        "loss.png",
        "motion-aca.png",
        "motion-naive.png",
    }


def test_killed_and_resumed_equals_uninterrupted(small, tmp_path):
    killed = tmp_path / "killed"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, killed], env=environment, check=False, stdout=subprocess.DEVNULL
    )
    assert done.returncode == 9
    assert len(metrics(killed)) == 5
    assert run("three-body", "--resume", killed) == 0
    assert run("three-body", "--gradient", "aca", "--out", tmp_path / "whole") == 0
    assert metrics(killed) == metrics(tmp_path / "whole")
    assert summary(killed)["methods"][0]["mse_sum"] == summary(tmp_path / "whole")["methods"][0]["mse_sum"]


def test_ctrl_c_says_how_to_go_on(small, tmp_path, monkeypatch, capsys):
    def interrupted(self, row, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "save", interrupted)
    assert run("three-body", "--out", tmp_path / "a run") == 130
    assert f"torchaca run three-body --resume '{tmp_path}/a run'" in capsys.readouterr().err


def test_a_disk_that_fills_up_says_how_to_go_on(small, tmp_path, monkeypatch, capsys):
    def full(self, row, state):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.Run, "save", full)
    assert run("three-body", "--out", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "No space left" in err
    assert "--resume" in err


def test_the_time_limit_may_be_raised(small, tmp_path, capsys):
    args = ("--gradient", "aca", "direct", "--out", tmp_path / "run")
    assert run("three-body", "--time-limit", "1e-3", *args) == 0
    assert [line["row"] for line in metrics(tmp_path / "run")] == ["aca seed 0", "direct seed 0"]
    assert "0 to 1 of 3" in capsys.readouterr().out
    assert run("three-body", "--time-limit", "1000", "--resume", tmp_path / "run") == 0
    assert len(metrics(tmp_path / "run")) == 2 * 2 * EPOCHS
    assert f"{EPOCHS} of {EPOCHS}" in capsys.readouterr().out


def test_failed_rows_are_counted(small, tmp_path, monkeypatch, capsys):
    def fail(self, number):
        raise SolverError("step-size", "lost", t=0.5, dt=0.0, stats=Stats())

    monkeypatch.setattr(MassFit, "epoch", fail)
    assert run("three-body", "--gradient", "aca", "--out", tmp_path / "run") == 0
    assert "aca: 2 of 2 seeds ended early, SolverError[step-size]" in capsys.readouterr().out


def test_the_plots(tmp_path):
    data = true_motion(10, 1e-7)
    row = {"gradient": "aca", "seed": 0, "mse_sum": 1e-3, "positions": data.test + 0.01, "losses": [1.0, 0.1]}
    plot_motion(data, row, tmp_path / "motion.png")
    plot_losses([row, {**row, "losses": []}], tmp_path / "loss.png")
    for name in ("motion.png", "loss.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_goal(tmp_path):
    assert run("three-body", "--gradient", "aca", "--out", tmp_path / "run") == 0
    (aca,) = summary(tmp_path / "run")["methods"]
    assert aca["mse_sum_median"] <= 1e-4
    assert aca["mass_error_median"] <= 1e-3
