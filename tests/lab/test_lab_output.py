"""Progress, tables and the measure of memory."""

import io

import pytest
import torch
from rich.console import Console

from torchaca.lab import progress
from torchaca.lab.table import Table, count, deviation, mean, median, number, spread
from torchaca.report.memory import SavedTensors

METRICS = {"loss": 0.01234, "nfe": 100, "nfe_backward": 70, "rejected": 3}


def test_plain_lines(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e9)
    console = Console(file=io.StringIO())
    with progress.bar(console, "aca seed 0", 5, done=2) as bar:
        for _ in range(3):
            bar.advance(METRICS)
    assert (
        console.file.getvalue() == "aca seed 0  5/5  loss 0.0123  NFE 100 fwd 70 bwd  rejected 3  left 0:00\n"
    )


def test_plain_lines_come_while_it_runs(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    console = Console(file=io.StringIO())
    with progress.bar(console, "aca", 3) as bar:
        for _ in range(3):
            bar.advance(METRICS)
    assert [line.split()[1] for line in console.file.getvalue().splitlines()] == ["1/3", "2/3", "3/3"]


def test_a_terminal_gets_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.bar(console, "aca seed 0", 2) as bar:
        bar.advance(METRICS)
        bar.advance(METRICS)
    out = console.file.getvalue()
    assert "2/2" in out
    assert "loss 0.0123" in out


def test_the_time_left_is_no_longer_than_what_is_given(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress, "perf_counter", lambda: now)
    free, limited = progress.Pace(10, 0, None), progress.Pace(10, 0, 30.0)
    now = 8.0
    free.done = limited.done = 2
    assert free.left() == 32.0
    assert limited.left() == 22.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1.234e-5, "1.2e-05"), (0.00123, "0.0012"), (0.5, "0.5"), (12.3, "12"), (123.4, "123"),
     (12345.0, "1.2e+04"), (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_statistics():
    assert mean([1.0, 3.0]) == 2.0
    assert median([5.0, 1.0, 2.0]) == 2.0
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert spread([1.0, 3.0]) == "2±1.4"
    assert spread([2.0]) == "2"
    assert spread([]) == "-"
    assert mean([]) is median([]) is deviation([1.0]) is None
    assert (count(12.6), count(None)) == ("13", "-")


def test_a_table_in_both_forms():
    table = Table("On [0, 1]", ["name", "x"], [["a|b", "1"]], ["Error[kind]"])
    assert (
        table.markdown() == "## On [0, 1]\n\n| name | x |\n| --- | ---: |\n| a\\|b | 1 |\n\n* Error[kind]\n"
    )
    console = Console(file=io.StringIO(), width=80)
    table.show(console)
    assert all(part in console.file.getvalue() for part in ("On [0, 1]", "a|b", "Error[kind]"))


def test_saved_tensors_are_counted_once_until_they_are_released():
    x = torch.ones(100, dtype=torch.float64, requires_grad=True)
    with SavedTensors() as saved:
        y = x * x  # saves x twice: 800 bytes
        z = y.exp()  # saves its result: 800 bytes
        assert saved.held == saved.peak == 1600
        z.sum().backward()
    assert saved.held == 0
    assert saved.peak == 1600


def test_a_graph_that_is_dropped_holds_nothing():
    x = torch.ones(100, dtype=torch.float64, requires_grad=True)
    with SavedTensors() as saved:
        for _ in range(3):
            (x * x).exp()  # exp saves its own result
    assert saved.held == 0
    assert saved.peak == 1600
