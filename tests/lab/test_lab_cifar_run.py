"""`torchaca run cifar10 | cifar100` and `torchaca evaluate`, from the command to the page."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from lab_helpers import cifar_mosaics, metrics, run, summary

from torchaca.lab import cli, files
from torchaca.lab.cifar import CIFAR10, CIFAR100, load
from torchaca.lab.cifar_node import cifar10, loggers, outcome
from torchaca.lab.cifar_node.evaluation import Solver, solvers
from torchaca.lab.cifar_node.module import Training
from torchaca.lab.cifar_node.recipe import Settings, row_of, schedule
from torchaca.lab.experiment import UsageError

LABELS = ["resnet18", "node18-aca", "node18-adjoint", "node18-naive", "anode18"]
PLOTS = ("plot_curves", "plot_spread", "plot_solvers", "plot_evaluations")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Three minibatches an epoch of a network of width 2, and few solvers."""
    sizes = {
        "smoke": {
            "width": 2,
            "side": 8,
            "train_images": 110,
            "test_images": 20,
            "batch": 40,
            "epochs": 2,
            "seeds": 1,
            "schedule": "one-cycle",
            "dt": (0.5,),
            "tolerances": (1e-2,),
        }
    }
    monkeypatch.setattr(cifar10, "EXPERIMENT", replace(cifar10.EXPERIMENT, sizes=sizes, size="smoke"))
    load.cache_clear()


@pytest.fixture
def without_plots(monkeypatch):
    for name in PLOTS:
        monkeypatch.setattr(outcome, name, lambda *args: args[-1].touch())


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "images.zip"
    cifar_mosaics(path, CIFAR10, 110, 20)
    return path


def aca(images, folder, *more):
    """The exit code of a run of NODE18-ACA alone."""
    return run("cifar10", "--model", "node18", "--gradient", "aca", "--data", images, "--out", folder, *more)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_from_command_to_page(images, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("cifar10", "--data", images, "--out", folder, "--docs", tmp_path / "docs") == 0
    numbers = summary(folder)
    assert [row["label"] for row in numbers["models"]] == LABELS
    assert all(row["epochs"] == [2] for row in numbers["models"])
    assert numbers["models"][0]["solvers"] == {}
    assert list(numbers["models"][1]["solvers"]) == [
        "Euler h=0.5",
        "RK2 h=0.5",
        "RK4 h=0.5",
        "HeunEuler tol=0.01",
        "RK23 tol=0.01",
        "RK45 tol=0.01",
    ]
    published = {path.name for path in (tmp_path / "docs" / "cifar10").iterdir()}
    plots = {"error.png", "spread.png", "solvers.png", "evaluations.png"}
    assert published == {"summary.md", "summary.json", "config.json", *plots}
    for name in plots:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    (distances,) = numbers["gradient_distances"]
    assert distances["aca at first"] < 1e-4
    assert distances["aca trained"] < 1e-4 < distances["adjoint trained"]
    out = said(capsys)
    assert "at those of node18-aca seed 0" in out
    assert "110 of 110 training images and 20 of 20 test images of images.zip, 8 x 8 pixels; width 2" in out
    first = next(line for line in metrics(folder) if line["row"] == "node18-aca seed 0")
    blocks = [first[f"nfe_block{i}"] for i in range(1, 5)]
    assert sum(blocks) == pytest.approx(first["nfe"])
    assert f"NFE {sum(blocks):.0f}"[:5] in out


def test_the_trained_solver_is_found_again(images, tmp_path, without_plots):
    """HeunEuler at the tolerance of the training is the training solver: the same error."""
    folder = tmp_path / "run"
    assert aca(images, folder) == 0
    (row,) = summary(folder)["models"]
    assert row["solvers"]["HeunEuler tol=0.01"]["change_mean"] == pytest.approx(0, abs=1e-6)


def test_killed_within_an_epoch_and_resumed(images, tmp_path, without_plots, monkeypatch):
    whole, options = tmp_path / "whole", ("--ema", 0.5)
    assert aca(images, whole, *options) == 0
    folder, original = tmp_path / "run", Training.training_step
    monkeypatch.setattr(outcome, "CHECKPOINT_SECONDS", 0.0)

    def step(self, batch, batch_idx):
        if self.global_step == 4:  # the second of the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    child = os.fork()
    if child == 0:
        Training.training_step = step
        aca(images, folder, *options)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    state = files.load_state(folder / "checkpoints" / "node18-aca-seed-0.pt")
    assert state["global_step"] == 4
    assert run("cifar10", "--resume", folder) == 0
    assert metrics(folder) == metrics(whole)
    found, want = (
        files.load_state(place / "checkpoints" / "node18-aca-seed-0.pt")["state_dict"]
        for place in (folder, whole)
    )
    torch.testing.assert_close(found, want, rtol=0, atol=0)


def test_the_average_is_what_is_tested(images):
    settings = Settings(width=2, side=8, ema=0.9, model=("anode18",))
    module = Training(settings, CIFAR10, row_of("anode18", None, 0), 10)
    before = module.model.head.weight.detach().clone()
    module.update_average()  # the first average is the weights themselves
    with torch.no_grad():
        module.model.head.weight += 1
    module.update_average()
    torch.testing.assert_close(module.tested.head.weight, before + 0.1)
    assert not any(p.requires_grad for p in module.tested.parameters())


def test_checkpoints_in_parts(images, tmp_path, without_plots, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 10_000)
    folder = tmp_path / "run"
    assert aca(images, folder, "--time-limit", 1e-3) == 0
    found = list((folder / "checkpoints").iterdir())
    assert len(found) > 3
    assert all(path.stat().st_size <= 10_000 for path in found)
    assert len({path.name.split(".")[2] for path in found if path.suffix != ".pt"}) == 1  # of one checkpoint
    assert run("cifar10", "--resume", folder, "--time-limit", 600) == 0
    assert [line["epoch"] for line in metrics(folder) if "epoch" in line] == [0, 1]
    next((folder / "checkpoints").glob("*.0")).write_bytes(b"something else")
    with pytest.raises(UsageError, match="its parts are not those of its sums"):
        files.load_state(folder / "checkpoints" / "node18-aca-seed-0.pt")


def test_schedules():
    def rates(name):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        rate = schedule(Settings(schedule=name), optimizer, 9)
        found = []
        for _ in range(9):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            rate.step()
        return found

    assert rates("step") == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001] * 3)
    cosine, cycle = rates("cosine"), rates("one-cycle")
    assert cosine[0] == pytest.approx(0.1)
    assert sorted(cosine, reverse=True) == cosine
    assert 0.09 < max(cycle) <= 0.1  # its highest point lies between two steps
    assert cycle[0] < 0.01 > cycle[-1]


def test_channels_last_and_half_precision(images, tmp_path, without_plots):
    assert aca(images, tmp_path / "run", "--channels-last", "--precision", "bf16-mixed", "--epochs", 1) == 0
    (row,) = summary(tmp_path / "run")["models"]
    assert row["solvers"]["HeunEuler tol=0.01"]["failed"] == 0


def test_tensorboard_is_optional(images, tmp_path, monkeypatch, capsys, without_plots):
    monkeypatch.setattr(loggers, "PACKAGES", ("tensorboard_of_nobody",))
    assert aca(images, tmp_path / "run", "--tensorboard") == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "resnet50"), "unknown model 'resnet50'. Did you mean 'resnet18'?"),
        (("--schedule", "linear"), "unknown schedule 'linear'"),
        (("--gradient", "mali"), "mali undoes the steps of reversible methods only"),
        (("--width", 0), "width = 0: a whole number above 0"),
        (("--ema", 1), "--ema 1: a decay from 0 to below 1"),
        (("--accelerator", "gpu"), "--accelerator gpu: "),
        (("--test-images", 21), "images.zip has 20 test images, 21 are wanted"),
    ],
)
def test_what_cannot_be_trained(options, words, images, tmp_path, capsys):
    if options[0] == "--accelerator" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run("cifar10", "--data", images, "--out", tmp_path / "run", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wrong_images_are_refused_before_training(tmp_path, capsys):
    path = tmp_path / "images.zip"
    cifar_mosaics(path, CIFAR100, 100, 100)
    assert run("cifar10", "--data", path, "--out", tmp_path / "run") == 2
    assert "images.zip has 100 classes, CIFAR-10 has 10" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:1000])
    assert run("cifar10", "--data", path, "--out", tmp_path / "run") == 2
    assert "does not read as CIFAR-10" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_cifar100_with_loss_says_so(tmp_path, capsys, without_plots):
    path = tmp_path / "images.zip"
    cifar_mosaics(path, CIFAR100, 100, 100, encoding="JPEG 4:4:4")
    more = ("--model", "anode18", "--size", "smoke", "--out", tmp_path / "run")
    assert run("cifar100", "--data", path, *more) == 0
    assert "these are not standard CIFAR-100 numbers" in said(capsys)
    assert not summary(tmp_path / "run")["standard"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of NODE18-ACA and ResNet18 over one epoch, and its images."""
    folder = tmp_path_factory.mktemp("trained")
    cifar_mosaics(folder / "images.zip", CIFAR10, 110, 20)
    sizes = {
        "smoke": {
            "width": 2,
            "side": 8,
            "train_images": 110,
            "test_images": 20,
            "batch": 40,
            "epochs": 1,
            "seeds": 1,
            "gradient": ("aca",),
            "model": ("resnet18", "node18"),
            "dt": (0.5,),
            "tolerances": (1e-2,),
        }
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "EXPERIMENT", replace(cifar10.EXPERIMENT, sizes=sizes, size="smoke"))
        for name in PLOTS:
            patch.setattr(outcome, name, lambda *args: args[-1].touch())
        load.cache_clear()
        assert run("cifar10", "--data", folder / "images.zip", "--out", folder / "run") == 0
    return folder


def evaluated(*args):
    return cli.main(["evaluate", *map(str, args)])


def test_evaluate_is_the_run_s_own_table(trained, tmp_path, capsys):
    checkpoint = trained / "run" / "checkpoints" / "node18-aca-seed-0.pt"
    options = ("--methods", "euler", "HeunEuler", "--dt", 0.5, "--tolerances", 1e-2, 1e-3)
    assert evaluated(checkpoint, *options, "--out", tmp_path / "out") == 0
    assert "node18-aca-seed-0" in said(capsys)
    (row,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert list(row["solvers"]) == ["Euler h=0.5", "HeunEuler tol=0.01", "HeunEuler tol=0.001"]
    own = summary(trained / "run")["models"][1]["solvers"]
    for title in ("Euler h=0.5", "HeunEuler tol=0.01"):
        assert row["solvers"][title]["error_mean"] == own[title]["error_mean"]
        assert row["solvers"][title]["nfe"] == own[title]["nfe"]
    assert (tmp_path / "out" / "solvers.png").read_bytes().startswith(b"\x89PNG")
    assert "| Euler h=0.5 |" in (tmp_path / "out" / "evaluation.md").read_text()


def test_evaluate_refuses_other_checkpoints(trained, tmp_path, capsys):
    folder = trained / "run" / "checkpoints"
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    state = files.load_state(folder / "node18-aca-seed-0.pt")
    state["torchaca"]["settings"]["width"] = 3
    files.save_state(tmp_path / "wide.pt", state)
    for path, words in {
        folder / "resnet18-seed-0.pt": "is a resnet18, which has no ODE blocks",
        tmp_path / "other.pt": "is a checkpoint of another model",
        tmp_path / "text.pt": "does not read as a checkpoint",
        tmp_path / "nothing.pt": "does not read as a checkpoint",
        tmp_path / "wide.pt": "does not fit the node18-aca of this version",
    }.items():
        assert evaluated(path) == 2
        assert words in capsys.readouterr().err
    assert evaluated(folder / "node18-aca-seed-0.pt", "--methods", "RK5") == 2
    assert "unknown method 'RK5'" in capsys.readouterr().err
    assert evaluated(folder / "node18-aca-seed-0.pt", "--dt", 0) == 2
    assert "--dt 0: a number above 0" in capsys.readouterr().err


def test_solvers_by_the_names_of_the_paper():
    found = solvers(["RK2", "HeunEuler", "tsit5"], [0.5], [0.1])
    assert found == [Solver("midpoint", 0.5), Solver("heun_euler", 0.1), Solver("tsit5", 0.1)]
    assert [solver.title for solver in found] == ["RK2 h=0.5", "HeunEuler tol=0.1", "tsit5 tol=0.1"]
    with pytest.raises(UsageError, match="unknown method 'RK3'"):
        solvers(["RK3"], [0.5], [0.1])


@pytest.mark.slow
def test_compiled_layers_train_the_same_network(images, tmp_path, without_plots):
    for name, more in {"plain": (), "compiled": ("--compile",)}.items():
        assert aca(images, tmp_path / name, "--epochs", 1, *more) == 0
    one, two = (
        next(line["loss"] for line in metrics(tmp_path / name) if "loss" in line)
        for name in ("plain", "compiled")
    )
    assert one == pytest.approx(two, rel=1e-3)
