"""Training NODE18 by two processes: gradients are those of one process, whatever each rank's solves cost."""

import json
import os
import subprocess
import sys

import pytest
import torch
from cifar_cases import BATCH, COUNT, ROWS, Step, minibatches, samples, work
from gradient_cases import assert_same
from lab_helpers import cifar_mosaics, metrics, run
from ranks import RANKS, found_by_ranks, needs_gloo

from torchaca.lab.cifar import CIFAR10, load

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


@pytest.mark.slow
def test_torchrun(tmp_path):
    """Both processes run the command; the first one writes what a single process of two devices writes."""
    cifar_mosaics(tmp_path / "images.zip", CIFAR10, 110, 100)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--size", "smoke", "--model", "resnet18", "--data", "images.zip", "--devices", "2"]
    done = subprocess.run(
        [*command, "-m", "torchaca.lab.cli", "run", "cifar10", *options, "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CIFAR-10: test error in percent") == 1
    (line,) = metrics(tmp_path / "run")
    assert line["row"] == "resnet18 seed 0"
    assert (tmp_path / "run" / "summary.md").exists()
