"""`torchaca run three-body`."""

import pytest
from lab_helpers import EPOCHS, metrics, run, summary
from PIL import Image

from torchaca.core import Stats
from torchaca.errors import SolverError
from torchaca.lab.three_body.animation import animate
from torchaca.lab.three_body.masses import MassFit
from torchaca.lab.three_body.plots import plot_losses, plot_motion
from torchaca.lab.three_body.problem import true_motion


def test_from_command_to_page(small, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("three-body", "--seeds", "1", "--out", folder, "--docs", tmp_path / "docs") == 0
    lines = metrics(folder)
    assert [line["row"] for line in lines[::EPOCHS]] == [
        f"ode {name} seed 0" for name in ("aca", "direct", "naive", "adjoint")
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
        "loss-ode.png",
        "motion.gif",
        "motion-ode-aca.png",
        "motion-ode-naive.png",
    }


def test_every_model(small, tmp_path, capsys):
    folder = tmp_path / "run"
    assert (
        run("three-body", "--size", "whole", "--seeds", "1", "--gradient", "aca", "direct", "--out", folder)
        == 0
    )
    numbers = summary(folder)
    methods = {method["method"]: method for method in numbers["methods"]}
    assert list(methods) == ["lstm", "lstm-aug-input", "node aca", "node direct", "ode aca", "ode direct"]
    for method in methods.values():
        assert method["mse_mean"][0] == pytest.approx(method["mse_sum"][0] / 9)
        parts = (method["mse_seen_median"], method["mse_ahead_median"])
        assert sum(parts) / 2 == pytest.approx(method["mse_sum_median"])
    assert all(len(lines) == 2 for lines in numbers["search"].values())
    chosen = min(numbers["search"]["lstm"], key=lambda line: line["error"])
    assert methods["lstm"]["wanted"] == chosen["epochs"]
    lines = metrics(folder)
    aca, direct = (
        next(line for line in lines if line["row"] == f"node {name} seed 0") for name in ("aca", "direct")
    )
    assert aca["loss"] == pytest.approx(direct["loss"], rel=1e-6)
    assert [line["model"] for line in numbers["gradient_errors"]] == ["node", "ode"]
    for line in numbers["gradient_errors"]:
        assert line["errors"]["aca"] == pytest.approx(line["errors"]["direct"], rel=1e-4)
    out = capsys.readouterr().out
    assert "0.16±0.06" in out
    assert "(chosen)" in out


def test_failed_rows_are_counted(small, tmp_path, monkeypatch, capsys):
    def fail(self, number):
        raise SolverError("step-size", "lost", t=0.5, dt=0.0, stats=Stats())

    monkeypatch.setattr(MassFit, "epoch", fail)
    assert run("three-body", "--gradient", "aca", "--out", tmp_path / "run") == 0
    assert "ode aca: 2 of 2 seeds ended early, SolverError[step-size]" in capsys.readouterr().out


def test_the_plots(tmp_path):
    data = true_motion(10, 1e-7)
    row = {"model": "ode", "gradient": "aca", "method": "ode aca", "seed": 0, "mse_sum": 1e-3}
    row |= {"positions": data.test + 0.01, "losses": [1.0, 0.1]}
    plot_motion(data, row, tmp_path / "motion.png")
    plot_losses([row, {**row, "losses": []}], tmp_path / "loss.png")
    for name in ("motion.png", "loss.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    animate(data, [row, {**row, "method": "lstm"}], tmp_path / "motion.gif", frames=3)
    with Image.open(tmp_path / "motion.gif") as animation:
        assert animation.n_frames == 3
        frames = set()
        for number in range(3):
            animation.seek(number)
            frames.add(animation.convert("RGB").tobytes())
    assert len(frames) == 3


@pytest.mark.slow
def test_the_goal(tmp_path):
    assert run("three-body", "--gradient", "aca", "--out", tmp_path / "run") == 0
    found = {method["method"]: method["mse_sum_median"] for method in summary(tmp_path / "run")["methods"]}
    assert found["ode aca"] <= 1e-4
    assert found["node aca"] <= 0.16
    assert found["lstm"] <= 0.59
    assert found["lstm-aug-input"] <= 0.49
