"""`torchaca run toy`."""

import json
import math

import pytest
from lab_helpers import metrics, run, summary

from torchaca.errors import SolverError
from torchaca.lab.toy import errors
from torchaca.lab.toy.errors import Case, Settings, exact_gradient, gradients
from torchaca.lab.toy.outcome import _cell, wanted
from torchaca.lab.toy.plots import plot


@pytest.mark.parametrize("k", [1.0, -1.0])
def test_the_exact_gradient_is_the_limit(k):
    case = Case(k, "float64", 2.0)
    found = gradients(Settings(rtol=1e-10, atol=1e-12), case, "aca", "dopri5")
    exact = exact_gradient(case, 1.0)
    assert found["dz0"] == pytest.approx(exact["dz0"], rel=1e-8)
    assert found["dk"] == pytest.approx(exact["dk"], rel=1e-8)


def test_from_command_to_page(small, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("toy", "--out", folder, "--docs", tmp_path / "docs") == 0
    lines = metrics(folder)
    assert len(lines) == 2 * 2 * 5
    for line in lines:
        assert line["exact dz0"] < 1e-2, line
        if line["gradient"] in ("aca", "direct", "mali"):
            assert line["discrete dz0"] <= 1e-6, line
            assert line["discrete dk"] <= 1e-6, line
    assert summary(folder)["rows"][0]["row"] == "k=+1 float32 T=5 naive"
    assert "Relative error of dL/dz0, dL/dk against" in capsys.readouterr().out
    published = {path.name for path in (tmp_path / "docs" / "toy").iterdir()}
    assert published == {"summary.md", "summary.json", "config.json", "error-exact.png", "error-discrete.png"}
    page = (tmp_path / "docs" / "toy" / "summary.md").read_text()
    assert all(word in page for word in ("rtol 1e-05", "torch 2", "UTC", "cpu ", "](error-exact.png)"))


def test_options_reach_the_run(small, tmp_path):
    args = ("--gradient", "aca", "--dtype", "float64", "--method", "tsit5")
    assert run("toy", "--out", tmp_path / "run", *args) == 0
    assert {(line["gradient"], line["dtype"]) for line in metrics(tmp_path / "run")} == {("aca", "float64")}
    assert summary(tmp_path / "run")["settings"]["method"] == "tsit5"


def test_a_failed_solve_is_a_row(small, tmp_path, monkeypatch, capsys):
    original = errors.gradients

    def failing(settings, case, gradient, method):
        if gradient == "adjoint":
            found = original(settings, case, "aca", method)
            raise SolverError("step-size", "lost", t=1.0, dt=0.0, stats=found, backward=True)
        return original(settings, case, gradient, method)

    monkeypatch.setattr(errors, "gradients", failing)
    assert run("toy", "--gradient", "aca", "adjoint", "--out", tmp_path / "run") == 0
    failed = [line for line in metrics(tmp_path / "run") if "failed" in line]
    assert {line["gradient"] for line in failed} == {"adjoint"}
    assert all(line["exact dz0"] is None and line["backward"] for line in failed)
    assert "failed: step-size" in capsys.readouterr().out


def test_resumed_equals_uninterrupted(small, tmp_path):
    folder = tmp_path / "run"
    assert run("toy", "--gradient", "naive", "aca", "--out", folder) == 0
    whole = metrics(folder)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:20])
    assert run("toy", "--resume", folder) == 0
    assert metrics(folder) == whole


def test_the_plots(tmp_path):
    settings = Settings(gradient=("aca", "adjoint"), dtype=("float64",), k=(1.0,), times=(1.0, 2.0))
    line = {"k": 1.0, "dtype": "float64", "exact dz0": 1e-3, "exact dk": 0.0}
    failed = {**line, "exact dz0": None, "exact dk": None, "failed": "step-size"}
    lines = [
        {**line, "gradient": "aca", "T": 1.0},
        {**line, "gradient": "aca", "T": 2.0},
        {**line, "gradient": "adjoint", "T": 1.0},
        {**failed, "gradient": "adjoint", "T": 2.0},
    ]
    plot(lines, settings, "exact", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_mali_is_measured_at_its_own_times(tmp_path):
    settings = Settings(times=(4.0, 5.0), mali_times=(5.0,))
    assert wanted(settings, 4.0) == ["naive", "direct", "adjoint", "aca"]
    assert wanted(settings, 5.0)[-1] == "mali"
    assert _cell(None, "exact") == "-"


def test_growth_overflows_nothing():
    found = exact_gradient(Case(1.0, "float32", 20.0), 1.0)
    assert found["dz0"] == 2 * math.exp(40)
    assert json.dumps(found)
