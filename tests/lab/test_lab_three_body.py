"""`torchaca run three-body`."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lab_helpers import EPOCHS, metrics, run, small_three_body, summary
from PIL import Image

import torchaca as aca
from torchaca.core import Stats
from torchaca.errors import SolverError
from torchaca.lab import run as runs
from torchaca.lab.three_body.animation import animate
from torchaca.lab.three_body.lstm import Choice, SequenceFit, best_choice, validate
from torchaca.lab.three_body.masses import MassFit, initial_masses
from torchaca.lab.three_body.models import NeuralMotion, NextPosition, augmented
from torchaca.lab.three_body.node import MotionFit
from torchaca.lab.three_body.plots import plot_losses, plot_motion
from torchaca.lab.three_body.problem import DTYPE, K1, K2, MASSES, ThreeBody, initial_state, true_motion
from torchaca.lab.three_body.segments import segments, velocities

KILLED = """
import os, sys
import lab_helpers
from torchaca.lab import run as runs, three_body

three_body.EXPERIMENT = lab_helpers.small_three_body()
save, calls = runs.Run.save, 0

def killed(self, row, state):
    global calls
    calls += 1
    if calls == 5:  # the second epoch of the second seed: logged, not yet saved
        os._exit(9)
    save(self, row, state)

runs.Run.save = killed
lab_helpers.run("three-body", "--gradient", "aca", "--out", sys.argv[1])
"""


def test_constants():
    assert pytest.approx(0.200484, abs=1e-6) == K1
    assert pytest.approx(7.239324, abs=1e-6) == K2


def test_the_equations_of_motion():
    torch.manual_seed(0)
    y, masses = torch.randn(6, 3, dtype=DTYPE), torch.rand(3, dtype=DTYPE)
    r, v = y[:3], y[3:]
    pull = torch.zeros(3, 3, dtype=DTYPE)
    for i in range(3):
        for j in range(3):
            if j != i:
                pull[i] += K1 * masses[j] * (r[j] - r[i]) / (r[j] - r[i]).norm() ** 3
    found = ThreeBody(masses)(torch.tensor(0.0), y)
    torch.testing.assert_close(found, torch.cat((K2 * v, pull)))


def test_the_true_motion():
    data = true_motion(20, 1e-10)
    assert data.train_times.tolist() == pytest.approx([k / 20 for k in range(20)])
    assert data.test_times.tolist() == pytest.approx([(k + 0.5) / 20 for k in range(40)])
    assert torch.equal(data.train[0], initial_state()[:3])
    masses = torch.tensor(MASSES, dtype=DTYPE)[:, None]
    start, end = ((masses * r).sum(0) for r in (data.test[0], data.test[-1]))
    drift = K2 * (masses * initial_state()[3:]).sum(0) * (data.test_times[-1] - data.test_times[0])
    torch.testing.assert_close(end - start, drift, atol=1e-9, rtol=0)


def test_the_true_masses_have_no_error():
    settings = replace(small_three_body().defaults, rtol=1e-6, atol=1e-6)
    fit = MassFit(settings, true_motion(10, 1e-7), "aca", 0)
    fit.best_masses = torch.tensor(MASSES, dtype=DTYPE)
    found = fit.test()
    assert found["mse_sum"] < 1e-5
    assert found["mse_mean"] == pytest.approx(found["mse_sum"] / 9)
    assert found["mass_error"] == 0


def test_initial_masses():
    masses = torch.stack([initial_masses(seed, 0.1) for seed in range(50)])
    assert torch.equal(masses[3], initial_masses(3, 0.1))
    assert 0.9 <= masses.min() < 0.91
    assert 1.09 < masses.max() <= 1.1


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


def rotation():
    return torch.linalg.qr(torch.randn(3, 3, dtype=DTYPE)).Q


def test_augmented_inputs():
    torch.manual_seed(0)
    r = torch.randn(2, 3, 3, dtype=DTYPE)
    rows = augmented(r).unflatten(-1, (15, 3))
    assert torch.equal(rows[:, :3], r)
    for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        d = r[:, j] - r[:, i]
        for power in range(4):
            expected = d / d.norm(dim=1, keepdim=True) ** power
            torch.testing.assert_close(rows[:, 3 + 3 * power + pair], expected)
    turn = rotation()
    torch.testing.assert_close(augmented(r @ turn).unflatten(-1, (15, 3)), rows @ turn)


def test_a_neural_motion_can_be_the_true_one():
    """With the masses as weights of d/|d|^3 the layer is Newton's law; batched states are solved as single ones."""
    model = NeuralMotion(0, 1e-3)
    masses = torch.tensor(MASSES, dtype=DTYPE)
    with torch.no_grad():
        model.layer.weight.zero_()
        for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
            for axis in range(3):
                model.layer.weight[3 * i + axis, 36 + 3 * pair + axis] = K1 * masses[j]
                model.layer.weight[3 * j + axis, 36 + 3 * pair + axis] = -K1 * masses[i]
    y = torch.randn(5, 6, 3, dtype=DTYPE)
    truth = ThreeBody(masses)
    time = torch.tensor(0.0)
    torch.testing.assert_close(model(time, y), torch.stack([truth(time, one) for one in y]))


def test_initial_weights_depend_on_the_seed_alone():
    first, again, other = (NeuralMotion(seed, 1e-3).layer.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(1e-3, rel=0.2)
    before = torch.get_rng_state()
    one, two = (NextPosition(torch.randn(5, 2, 3, 3, dtype=DTYPE), False, 4, 3).head.weight for _ in range(2))
    assert torch.equal(one, two)
    assert before.shape == torch.get_rng_state().shape


def test_segments_of_the_training_motion():
    data = true_motion(200, 1e-10)
    found = segments(data, 0.1, 10)
    assert found.times.tolist() == pytest.approx([k / 100 for k in range(11)])
    assert found.start.shape == (18, 6, 3)
    assert torch.equal(found.start[0], initial_state())
    assert torch.equal(found.positions[0], found.start[:, :3])
    assert torch.equal(found.positions[3, 2], data.train[2 * 10 + 6])
    whole = segments(data, 1.0, 1000)
    assert whole.start.shape == (1, 6, 3)
    assert torch.equal(whole.times, data.train_times)
    truth = ThreeBody(torch.tensor(MASSES, dtype=DTYPE))
    for start in (0, 1):
        sol = aca.solve(truth, found.start[start], found.times, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sol.ys[:, :3], found.positions[:, start], atol=1e-3, rtol=0)


def test_velocities_of_the_training_motion():
    data = true_motion(400, 1e-10)
    truth = ThreeBody(torch.tensor(MASSES, dtype=DTYPE))
    sol = aca.solve(truth, initial_state(), data.train_times[:40], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(velocities(data)[:40], sol.ys[:, 3:].detach(), atol=1e-4, rtol=0)


def small_settings(**changes):
    return replace(small_three_body().defaults, **changes)


def test_a_node_learns_and_keeps_its_best_weights():
    data = true_motion(50, 1e-7)
    settings = small_settings(node_stages=((0.1, 3),), node_solves=5, node_tolerance=1e-4)
    fit = MotionFit(settings, data, "aca", 0)
    lines = [fit.epoch(number) for number in range(fit.epochs)]
    assert lines[-1]["segment_loss"] < 0.5 * lines[0]["segment_loss"]
    assert fit.best_loss == min(line["loss"] for line in lines)
    line_search = 25  # L-BFGS looks at its limit between line searches, of at most so many solves
    assert all(line["solves"] < 5 + line_search for line in lines)
    with pytest.raises(IndexError):
        fit.epoch(fit.epochs)


def test_a_solve_that_fails_in_the_line_search_is_a_loss(monkeypatch):
    fit = MotionFit(small_settings(node_solves=4), true_motion(20, 1e-6), "aca", 0)
    loss, calls = fit.loss, []

    def sometimes(part):
        calls.append(part)
        if len(calls) == 2:
            raise SolverError("step-size", "lost", t=0.5, dt=0.0, stats=Stats())
        return loss(part)

    monkeypatch.setattr(fit, "loss", sometimes)
    assert fit.epoch(0)["solves"] == len(calls) - 1

    def never(part):
        raise SolverError("step-size", "lost", t=0.5, dt=0.0, stats=Stats())

    monkeypatch.setattr(fit, "loss", never)
    with pytest.raises(SolverError):
        fit.epoch(1)


@pytest.mark.parametrize("augment", [False, True])
def test_lstm_predictions(augment):
    known = true_motion(20, 1e-6).train[:, None]
    model = NextPosition(known, augment, 4, 0)
    ahead, state = model(known)
    found = model.predict(known, 3)
    assert found.shape == (23, 1, 3, 3)
    assert torch.equal(found[0], known[0])
    torch.testing.assert_close(found[1:21], ahead)
    following, _ = model(found[20:21], state)
    torch.testing.assert_close(found[21:22], following)


def test_an_lstm_reads_every_point_and_is_tested_between_its_steps():
    data = true_motion(40, 1e-7)
    fit = SequenceFit(data.train, data, False, Choice(0.05, 4, 1e-2, 3), 0)
    assert fit.stride == 2
    assert torch.equal(fit.known[3, 1], data.train[7])
    losses = [fit.epoch(number)["loss"] for number in range(40)]
    assert losses[-1] < losses[0]
    with torch.no_grad():  # a model that predicts no motion stays where it was one step before
        fit.model.head.weight.zero_()
        fit.model.head.bias.copy_(-fit.model.increments[0] / fit.model.increments[1])
    positions = fit.test()["positions"]
    torch.testing.assert_close(positions[5], 0.25 * data.train[2] + 0.75 * data.train[4])  # t = 0.1375
    torch.testing.assert_close(positions[-1], data.train[38])


def test_the_search_looks_at_the_training_range_alone():
    data = true_motion(50, 1e-7)
    settings = small_settings(lstm_epochs=6, lstm_check=2, lstm_seeds=2)
    choice = Choice(0.02, 4, 1e-2, 6)
    found = validate(settings, data, True, choice)
    assert found["epochs"] in (2, 4, 6)
    assert len(found["errors"]) == 2
    assert found["error"] == pytest.approx(sum(found["errors"]) / 2)
    assert found == validate(settings, replace(data, test=data.test + 1), True, choice)
    assert found != validate(
        settings, replace(data, train=data.train + data.train_times[:, None, None]), True, choice
    )
    worse = {**found, "step": 0.5, "error": found["error"] + 1}
    assert best_choice([worse, found]) == replace(choice, epochs=found["epochs"])


def test_killed_and_resumed_equals_uninterrupted(small, tmp_path):
    killed = tmp_path / "killed"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, killed], env=environment, check=False, stdout=subprocess.DEVNULL
    )
    assert done.returncode == 9
    assert len(metrics(killed)) == 5
    assert run("three-body", "--resume", killed) == 0
    assert run("three-body", "--gradient", "aca", "--out", tmp_path / "whole") == 0
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
