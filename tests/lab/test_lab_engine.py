"""Training on Lightning: interrupted anywhere, it ends with the digits of an uninterrupted row."""

import functools
import io
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lab_helpers import metrics, small_three_body
from rich.console import Console
from torch.utils.data import TensorDataset

from torchaca.core import Stats
from torchaca.errors import SolverError
from torchaca.lab import engine
from torchaca.lab import run as runs
from torchaca.lab.experiment import UsageError

EPOCHS, COUNT, SIZE = 3, 16, 6
BATCHES = 3


@dataclass(frozen=True)
class Settings:
    precision: str = "32"
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"


class Model(engine.Trained):
    """Its numbers depend on weights, momenta, buffers, the schedule of its steps, and random numbers."""

    def __init__(self, fails_at=None, dies_at=None):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        self.fails_at, self.dies_at, self.last = fails_at, dies_at, 0.0

    def training_step(self, batch):
        x, y = batch
        if self.global_step == self.fails_at:
            raise SolverError("blow-up", "too large", t=0.5, dt=0.1, stats=Stats(), backward=True)
        if self.global_step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (self.net(x + torch.randn_like(x)) - y).square().mean()
        self.last = loss.item()
        return loss

    def validation_step(self, batch):
        self.log("error", (self.net(batch[0]) - batch[1]).abs().mean())

    test_step = validation_step

    def measures(self):
        return {"loss": self.last, "nfe": 7, "nfe_backward": 5, "rejected": self.global_step % 2}

    def configure_optimizers(self):
        optimizer = torch.optim.Adamax(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def model(**options):
    torch.manual_seed(1)
    return Model(**options)


def loader(seed=0):
    x = torch.linspace(-1, 1, 2 * COUNT).reshape(COUNT, 2)
    return engine.Loader(TensorDataset(x, x.sum(1, keepdim=True)), engine.Batches(COUNT, SIZE, seed))


def go(run, module, **options):
    console = Console(file=io.StringIO())
    options = {"hardware": Settings(), "seed": 3, "epochs": EPOCHS, "validation": loader(None), **options}
    engine.fit(run, console, "walk", module, loader(), **options)
    return console.file.getvalue()


def start(folder):
    return runs.start(small_three_body(), {}, folder)[0]


def again(folder):
    return runs.resume(small_three_body(), {}, folder)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The metrics and weights of an uninterrupted row."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trained = model()
    go(start(folder), trained)
    return metrics(folder), trained.state_dict()


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["each batch saved", "each epoch saved"])
@pytest.mark.parametrize(
    ("owner", "place", "calls"),
    [
        (Model, "training_step", range(1, EPOCHS * BATCHES + 1)),
        (runs.Run, "log", (1, 3)),
        (engine.hardware.Checkpoints, "save_checkpoint", (1, 2, 3)),
    ],
    ids=["step", "log", "save"],
)
def test_resumed_equals_uninterrupted(owner, place, calls, every, whole, tmp_path, monkeypatch):
    original = getattr(owner, place)
    for call in calls:
        made = 0

        @functools.wraps(original)
        def killed(*args, call=call, **options):
            nonlocal made
            made += 1
            if made == call:
                raise KeyboardInterrupt
            return original(*args, **options)

        folder = tmp_path / str(call)
        with monkeypatch.context() as patch:
            patch.setattr(owner, place, killed)
            with pytest.raises(KeyboardInterrupt):
                go(start(folder), model(), every=every)
        torch.manual_seed(99)
        resumed = model()
        go(again(folder), resumed, every=every)
        assert metrics(folder) == whole[0], call
        torch.testing.assert_close(resumed.state_dict(), whole[1], rtol=0, atol=0)


def test_killed_and_resumed(whole, tmp_path):
    child = os.fork()
    if child == 0:
        go(start(tmp_path / "run"), model(dies_at=4), every=0.0)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(metrics(tmp_path / "run")) == 1
    go(again(tmp_path / "run"), model())
    assert metrics(tmp_path / "run") == whole[0]


def test_the_metrics_and_the_progress(whole, tmp_path):
    lines, _ = whole
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[0].keys() == {"row", "epoch", "loss", "nfe", "nfe_backward", "rejected", "error"}
    assert [round(line["rejected"] * BATCHES) for line in lines] == [2, 1, 2]
    said = go(start(tmp_path / "run"), model())
    assert f"walk  {EPOCHS * BATCHES}/{EPOCHS * BATCHES}  loss" in said
    assert "NFE 7 fwd 5 bwd" in said


def test_nothing_else_is_said(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(start(tmp_path / "run"), model())
    assert capfd.readouterr() == ("", "")


def test_a_trained_row_is_loaded(whole, tmp_path):
    go(start(tmp_path / "run"), model())
    trained = model()
    go(again(tmp_path / "run"), trained)
    torch.testing.assert_close(trained.state_dict(), whole[1], rtol=0, atol=0)
    assert len(metrics(tmp_path / "run")) == EPOCHS


@pytest.mark.parametrize("least", [0, 1, 2])
def test_no_epoch_after_the_time(least, whole, tmp_path):
    run = start(tmp_path / "run")
    go(run, model(), seconds=0.0, least=least)
    assert len(run.metrics) == least
    go(again(tmp_path / "run"), model(), seconds=60.0)
    assert metrics(tmp_path / "run") == whole[0]


def test_a_failing_solve_ends_the_row(tmp_path):
    run = start(tmp_path / "run")
    assert "failed: blow-up" in go(run, model(fails_at=4))
    first, last = metrics(tmp_path / "run")
    assert first["epoch"] == 0
    assert (last["failed"], last["backward"], last["epoch"]) == ("blow-up", True, 1)
    go(again(tmp_path / "run"), model(fails_at=4))
    assert len(metrics(tmp_path / "run")) == 2


def test_the_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        batches = engine.Batches(50, 8, seed)
        batches.set_epoch(epoch)
        return [index for batch in batches for index in batch]

    assert sorted(order(0, 0)) == list(range(50)) == order(None, 1)
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_several_devices_share_a_minibatch(monkeypatch):
    shares = []
    for rank in range(2):
        monkeypatch.setattr("torchaca.lab.engine.loader._share", lambda rank=rank: (rank, 2))
        shares.append(list(engine.Batches(9, 4, 5)))
    assert [len(batch) for batch in shares[0]] == [2, 2] == [len(batch) for batch in shares[1]]
    monkeypatch.undo()
    first = next(iter(engine.Batches(9, 4, 5)))
    assert sorted(shares[0][0] + shares[1][0]) == sorted(first)


def test_two_processes(tmp_path):
    two = Settings(devices=2, strategy="ddp_fork")
    trained, run = model(), start(tmp_path / "run")
    go(run, trained, hardware=two, epochs=2, every=0.0)
    go(again(tmp_path / "run"), trained, hardware=two)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0, 1, 2]
    assert len(run.metrics) == 2
    uninterrupted = model()
    go(start(tmp_path / "whole"), uninterrupted, hardware=two)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "run")
    torch.testing.assert_close(trained.state_dict(), uninterrupted.state_dict(), rtol=0, atol=0)


SPAWNS = """
import sys
import test_lab_engine as t

if __name__ == "__main__":
    t.go(t.start(t.Path(sys.argv[1])), t.model(), hardware=t.Settings(devices=2), epochs=2)
"""


@pytest.mark.slow
def test_two_new_processes(tmp_path):
    (tmp_path / "script.py").write_text(SPAWNS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, tmp_path / "script.py", tmp_path / "run"], env=environment, check=True)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0, 1]


def test_evaluation_is_repeatable():
    trained = model()
    first = engine.evaluate(trained, loader(None), hardware=Settings(), seed=0)
    assert first.keys() == {"error"}
    assert engine.evaluate(trained, loader(None), hardware=Settings(), seed=0) == first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(precision="16"), "unknown precision '16'"),
        (Settings(accelerator="gpus"), "Did you mean 'gpu'"),
        (Settings(devices=0), "--devices 0: at least one"),
        (Settings(strategy="ddp_spawn"), "has no effect on one device"),
        pytest.param(
            Settings(accelerator="gpu"),
            "--accelerator gpu: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_hardware_that_there_is_not(settings, said):
    with pytest.raises(UsageError, match=said):
        engine.check_hardware(settings)


@pytest.mark.parametrize(
    "lost", ["callbacks", "state_dict", "optimizer_states", "loops", "record", "row", "weight"]
)
def test_checkpoints_of_something_else_are_refused(lost, tmp_path):
    run = start(tmp_path / "run")
    go(run, model(), epochs=1)
    state = run.load("walk")
    if lost == "record":
        del state["callbacks"]["record"]
    elif lost == "row":
        state["callbacks"]["record"]["row"] = "another"
    elif lost == "weight":
        state["state_dict"]["net.0.weight"] = torch.zeros(7)
    else:
        del state[lost]
    run.save("walk", state)
    with pytest.raises(
        UsageError, match=r"walk\.pt is no checkpoint of 'walk' \(.*\): .*delete .* to train this row anew"
    ):
        go(again(tmp_path / "run"), model())


def test_lost_metrics_are_an_error(tmp_path):
    run = start(tmp_path / "run")
    go(run, model())
    run.keep(lambda line: line["epoch"] != 1)
    with pytest.raises(UsageError, match="2 of the 3 epochs of 'walk'"):
        go(again(tmp_path / "run"), model())
