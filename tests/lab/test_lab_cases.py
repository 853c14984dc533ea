"""Experiments made of independent cases: killed, resumed, and complete."""

import io
import os
import signal

import pytest
from lab_helpers import metrics, mosaic, run, run_in_a_fork, small_van_der_pol, summary
from rich.console import Console

from torchaca.core import Stats
from torchaca.errors import SolverError
from torchaca.lab import cases
from torchaca.lab import run as runs


def test_a_case_is_measured_once(tmp_path):
    made, _ = runs.start(small_van_der_pol(), {}, tmp_path / "run")
    console = Console(file=io.StringIO())
    asked = []

    def case(number):
        asked.append(number)
        return {"number": number}

    def failing():
        raise SolverError("blow-up", "lost", t=1.0, dt=0.0, stats=Stats())

    first = {"one": lambda: case(1), "two": failing}
    cases.measure(made, console, "counting", first)
    cases.measure(made, console, "counting", {**first, "three": lambda: case(3)})
    assert asked == [1, 3]
    assert [(line["row"], line.get("failed")) for line in made.metrics] == [
        ("one", None),
        ("two", "blow-up"),
        ("three", None),
    ]
    assert "counting  3/3  three  left 0:00" in console.file.getvalue()


def test_killed_and_resumed_equals_uninterrupted(small, tmp_path):
    killed, log, calls = tmp_path / "killed", runs.Run.log, 0
    args = ("van-der-pol", "--gradient", "aca", "direct")

    def dying(self, line):
        nonlocal calls
        calls += 1
        log(self, line)
        if calls == 4:  # the first gradient
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(run_in_a_fork(*args, "--out", killed, log=dying)) == signal.SIGKILL
    assert len(metrics(killed)) == 4
    assert run("van-der-pol", "--resume", killed) == 0
    assert run(*args, "--out", tmp_path / "whole") == 0
    assert metrics(killed) == metrics(tmp_path / "whole")


@pytest.mark.parametrize("name", ["cost", "conv-reconstruct"])
def test_a_torn_record_is_completed(small, tmp_path, name):
    mosaic(tmp_path / "small.zip")
    data = ("--data", tmp_path / "small.zip") if name == "conv-reconstruct" else ("--gradient", "aca")
    assert run(name, *data, "--out", tmp_path / "run") == 0
    whole, numbers = metrics(tmp_path / "run"), summary(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert run(name, "--resume", tmp_path / "run") == 0
    assert metrics(tmp_path / "run") == whole
    assert summary(tmp_path / "run").get("exponents") == numbers.get("exponents")
