"""Training NODE18 by two processes: gradients are those of one process, whatever each rank's solves cost."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from cifar_cases import BATCH, COUNT, ROWS, Step, minibatches, samples, work
from gradient_cases import assert_same
from lab_helpers import cifar_mosaics, metrics, run
from ranks import RANKS, found_by_ranks, needs_gloo

from torchaca.lab.cifar import CIFAR10, load
from torchaca.lab.files import load_state

pytestmark = needs_gloo
NUMBERS = range(-(-COUNT // BATCH))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found for each row and minibatch."""
    return found_by_ranks(work, tmp_path_factory.mktemp("ranks"), "fork")


def joined(row, number):
    """One process, the whole minibatch in one solve."""
    step = Step(row)
    step(minibatches()[number]).backward()
    return step


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@pytest.mark.parametrize("number", NUMBERS)
def test_gradients_of_fixed_steps_are_those_of_the_joined_minibatch(results, number):
    want = joined(ROWS["anode18"], number).gradients()
    for rank in results:
        assert_same(rank[f"anode18 {number}"]["gradients"], want, 1e-11)


@pytest.mark.parametrize("name", ["node18-aca", "node18-adjoint"])
@pytest.mark.parametrize("number", NUMBERS)
def test_gradients_of_adaptive_steps_are_those_of_each_share_on_its_own_grid(results, name, number):
    indices = minibatches()[number][2].tolist()
    step, data = Step(ROWS[name]), samples()
    for rank in range(RANKS):
        share = indices[rank::RANKS]
        # Scaled as a rank scales its loss: the adjoint's backward steps depend on it.
        (step(data[share]) * len(share) * RANKS / len(indices)).backward()
    want = {name: gradient / RANKS for name, gradient in step.gradients().items()}
    for rank in results:
        assert_same(rank[f"{name} {number}"]["gradients"], want, 1e-9)


@pytest.mark.parametrize("number", NUMBERS)
def test_gradients_of_adaptive_steps_tend_to_those_of_the_joined_minibatch(results, number):
    """To the solves' accuracy: f's derivative jumps in its ReLUs."""
    want = flat(joined(ROWS["node18-aca"], number).gradients())
    for rank in results:
        found = flat(rank[f"node18-aca {number}"]["gradients"])
        assert torch.linalg.vector_norm(found - want) <= 1e-2 * torch.linalg.vector_norm(want)


def test_ranks_take_different_numbers_of_evaluations(results):
    for name in ("node18-aca", "node18-adjoint"):
        assert any(
            results[0][f"{name} {number}"]["nfe"] != results[1][f"{name} {number}"]["nfe"]
            for number in NUMBERS
        )


def test_the_last_minibatch_is_shared_unevenly(results):
    assert [[rank[f"anode18 {number}"]["images"] for rank in results] for number in NUMBERS] == [
        [4, 3],
        [3, 2],
    ]


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """An epoch by two processes, the rest by one; minibatches and augmentation stay those of the seed."""
    load.cache_clear()
    cifar_mosaics(tmp_path / "images.zip", CIFAR10, 110, 20)
    options = ("--size", "smoke", "--model", "node18", "--gradient", "aca", "--data", tmp_path / "images.zip")
    folder = tmp_path / "run"
    two = ("--devices", 2, "--strategy", "ddp_fork", "--time-limit", 1e-3)
    assert run("cifar10", *options, "--epochs", 2, "--test-images", 20, *two, "--out", folder) == 0
    assert [line["epoch"] for line in metrics(folder) if "epoch" in line] == [0]
    assert run("cifar10", "--resume", folder, "--devices", 1, "--strategy", "auto", "--time-limit", 600) == 0
    lines = [line for line in metrics(folder) if "epoch" in line]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(line["nfe"] > 0 for line in lines)
    sessions = json.loads((folder / "config.json").read_text())["sessions"]
    assert len(sessions) == 2


def torchrun(*options):
    """What two processes of `torchaca run cifar10` print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "torchaca.lab.cli", "run", "cifar10", *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_torchrun(tmp_path):
    """Both processes run the command; the first one writes what a single process of two devices writes."""
    cifar_mosaics(tmp_path / "images.zip", CIFAR10, 110, 100)
    options = ("--size", "smoke", "--model", "resnet18", "--data", tmp_path / "images.zip", "--devices", 2)
    printed = torchrun(*options, "--out", tmp_path / "run")
    assert printed.count("CIFAR-10: test error in percent") == 1
    (line,) = metrics(tmp_path / "run")
    assert line["row"] == "resnet18 seed 0"
    assert (tmp_path / "run" / "summary.md").exists()


def learned(folder):
    """Numbers of a run's metrics but for times, tensors of its row, settings of its optimizer and schedule."""
    lines = [
        {k: v for k, v in line.items() if not isinstance(v, str) and k not in {"seconds", "elapsed"}}
        for line in metrics(folder)
    ]
    state = load_state(next((folder / "checkpoints").glob("*.pt")))
    (optimizer,) = state["optimizer_states"]
    momentum = {str(number): own["momentum_buffer"] for number, own in optimizer["state"].items()}
    return lines, {**state["state_dict"], **momentum}, optimizer["param_groups"], state["lr_schedulers"]


def assert_learned_the_same(found, want):
    for line, expected in zip(found[0], want[0], strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    for name, tensor in want[1].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6)
    assert found[1].keys() == want[1].keys()
    assert found[2:] == want[2:]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A run folder for each strategy, with one of two epochs."""
    folder = tmp_path_factory.mktemp("halves")
    load.cache_clear()
    cifar_mosaics(folder / "images.zip", CIFAR10, 110, 20)
    options = ("--size", "smoke", "--model", "node18", "--gradient", "aca", "--data", folder / "images.zip")
    options += ("--epochs", 2, "--test-images", 20, "--devices", 2, "--time-limit", 1e-3)
    torchrun(*options, "--strategy", "fsdp2", "--out", folder / "fsdp2")
    assert run("cifar10", *options, "--strategy", "ddp_fork", "--out", folder / "ddp") == 0
    return folder


@pytest.mark.slow
def test_fsdp2_learns_what_ddp_learns(halves):
    assert_learned_the_same(learned(halves / "fsdp2"), learned(halves / "ddp"))


@pytest.mark.slow
def test_one_process_goes_on_with_what_fsdp2_has_learned(halves, tmp_path):
    for strategy in ("fsdp2", "ddp"):
        shutil.copytree(halves / strategy, tmp_path / strategy)
        one = ("--devices", 1, "--strategy", "auto", "--time-limit", 600)
        assert run("cifar10", "--resume", tmp_path / strategy, *one) == 0
    assert_learned_the_same(learned(tmp_path / "fsdp2"), learned(tmp_path / "ddp"))


@pytest.mark.slow
def test_fsdp2_goes_on_with_what_ddp_has_learned(halves, tmp_path):
    shutil.copytree(halves / "ddp", tmp_path / "ddp")
    assert run("cifar10", "--resume", tmp_path / "ddp", "--time-limit", 600) == 0
    shutil.copytree(halves / "ddp", tmp_path / "fsdp2")
    torchrun("--resume", tmp_path / "fsdp2", "--strategy", "fsdp2", "--time-limit", 600)
    assert_learned_the_same(learned(tmp_path / "fsdp2"), learned(tmp_path / "ddp"))


def test_fsdp2_needs_torchrun(tmp_path, capsys):
    options = ("--size", "smoke", "--devices", 2, "--strategy", "fsdp2", "--out", tmp_path / "run")
    assert run("cifar10", *options) == 2
    assert "torchrun --standalone --nproc-per-node 2 -m torchaca.lab.cli" in capsys.readouterr().err
    assert run("cifar10", *options, "--ema", 0.9) == 2
    assert "--ema averages whole weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
