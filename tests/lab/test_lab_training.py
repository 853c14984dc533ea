"""The training loop: interrupted anywhere, it ends with the numbers of an uninterrupted one."""

import io
import random

import pytest
import torch
from lab_helpers import metrics, small_three_body
from rich.console import Console

from torchaca.core import Stats
from torchaca.errors import SolverError
from torchaca.lab import run as runs
from torchaca.lab.experiment import UsageError
from torchaca.lab.training import share, train

EPOCHS = 5


class Walk:
    """A trainee whose numbers depend on its state, on torch's and on Python's randomness."""

    def __init__(self, fails_at=None):
        self.x = torch.zeros(3)
        self.fails_at = fails_at

    def epoch(self, number):
        if number == self.fails_at:
            raise SolverError("blow-up", "too large", t=0.5, dt=0.1, stats=Stats(), backward=True)
        self.x = self.x + torch.randn(3) * random.random()
        return {"loss": self.x.sum().item(), "nfe": 7, "nfe_backward": 5, "rejected": 1}

    def state(self):
        return {"x": self.x}

    def load(self, state):
        self.x = state["x"]


def go(run, trainee, **options):
    console = Console(file=io.StringIO())
    train(run, console, "walk", trainee, seed=3, epochs=EPOCHS, **options)
    return console.file.getvalue()


def start(folder):
    return runs.start(small_three_body(), {}, folder)[0]


def again(folder):
    return runs.resume(small_three_body(), {}, folder)[0]


@pytest.mark.parametrize("place", ["epoch", "log", "save"])
@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_resumed_equals_uninterrupted(place, epoch, tmp_path, monkeypatch):
    go(start(tmp_path / "whole"), Walk())
    calls = 0
    owner = Walk if place == "epoch" else runs.Run
    original = getattr(owner, place)

    def killed(*args):
        nonlocal calls
        calls += 1
        if calls == epoch + 1:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, killed)
        with pytest.raises(KeyboardInterrupt):
            go(start(tmp_path / "killed"), Walk())
    random.seed(99)
    torch.manual_seed(99)
    go(again(tmp_path / "killed"), Walk())
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert len(metrics(tmp_path / "whole")) == EPOCHS


def test_a_failing_solve_ends_the_row(tmp_path):
    said = go(start(tmp_path / "run"), Walk(fails_at=2))
    assert "failed: blow-up" in said
    *trained, last = metrics(tmp_path / "run")
    assert [line["epoch"] for line in trained] == [0, 1]
    assert (last["failed"], last["backward"], last["epoch"]) == ("blow-up", True, 2)
    go(again(tmp_path / "run"), Walk(fails_at=2))
    assert len(metrics(tmp_path / "run")) == 3


def test_metrics_that_are_lost_are_an_error(tmp_path):
    run = start(tmp_path / "run")
    go(run, Walk())
    run.keep(lambda line: line["epoch"] != 1)
    with pytest.raises(UsageError, match="4 of the 5 epochs of 'walk'"):
        go(again(tmp_path / "run"), Walk())


@pytest.mark.parametrize("least", [0, 1, 2])
def test_no_epoch_after_the_time(least, tmp_path):
    run = start(tmp_path / "run")
    go(run, Walk(), seconds=0.0, least=least)
    assert len(run.metrics) == least
    go(run, Walk(), seconds=60.0)
    assert len(run.metrics) == EPOCHS


def test_time_is_shared_by_what_is_left(tmp_path, monkeypatch):
    run = start(tmp_path / "run")
    monkeypatch.setattr(run, "elapsed", lambda: 40.0)
    assert share(run, None, ["a", "b"], ["a"]) is None
    assert share(run, 100.0, ["a", "b", "c"], ["a"]) == 60.0
    assert share(run, 100.0, ["a", "b", "c"], ["a", "b"]) == 30.0
    assert share(run, 100.0, ["b", "c", "d"], ["a"]) == 20.0
    assert share(run, 30.0, ["b", "c"], ["a"]) == 0.0
