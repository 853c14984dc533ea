"""`torchaca run three-body`, stopped and resumed."""

import errno
import os

import pytest
from lab_helpers import EPOCHS, metrics, run, run_in_a_fork, summary

from torchaca.lab import run as runs


def test_killed_and_resumed_equals_uninterrupted(small, tmp_path):
    killed, save, calls = tmp_path / "killed", runs.Run.save, 0
    args = ("three-body", "--gradient", "aca")

    def dying(self, row, state):
        nonlocal calls
        calls += 1
        if calls == 5:  # the second epoch of the second seed: logged, not yet saved
            os._exit(9)
        save(self, row, state)

    assert os.WEXITSTATUS(run_in_a_fork(*args, "--out", killed, save=dying)) == 9
    assert len(metrics(killed)) == 5
    assert run("three-body", "--resume", killed) == 0
    assert run(*args, "--out", tmp_path / "whole") == 0
    assert_same_numbers(killed, tmp_path / "whole")


@pytest.mark.parametrize("row", ["node aca seed 0", "lstm-aug-input seed 0"])
def test_interrupted_and_resumed_equals_uninterrupted(row, small, tmp_path, monkeypatch):
    options = ("--size", "whole", "--gradient", "aca", "--seeds", "1")
    save = runs.Run.save

    def interrupted(self, name, state):
        if name == row and state["epochs"] == 2:  # logged, not yet saved
            raise KeyboardInterrupt
        save(self, name, state)

    monkeypatch.setattr(runs.Run, "save", interrupted)
    assert run("three-body", *options, "--out", tmp_path / "part") == 130
    assert (metrics(tmp_path / "part")[-1]["row"], metrics(tmp_path / "part")[-1]["epoch"]) == (row, 1)
    monkeypatch.setattr(runs.Run, "save", save)
    assert run("three-body", "--resume", tmp_path / "part") == 0
    assert run("three-body", *options, "--out", tmp_path / "whole") == 0
    assert_same_numbers(tmp_path / "part", tmp_path / "whole")


def assert_same_numbers(resumed, whole):
    assert metrics(resumed) == metrics(whole)
    found, expected = (summary(folder)["methods"] for folder in (resumed, whole))
    assert [method["mse_sum"] for method in found] == [method["mse_sum"] for method in expected]


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
    assert [line["row"] for line in metrics(tmp_path / "run")] == ["ode aca seed 0", "ode direct seed 0"]
    assert "0 to 1 of 3" in capsys.readouterr().out
    assert run("three-body", "--time-limit", "1000", "--resume", tmp_path / "run") == 0
    assert len(metrics(tmp_path / "run")) == 2 * 2 * EPOCHS
    assert f"{EPOCHS} of {EPOCHS}" in capsys.readouterr().out
