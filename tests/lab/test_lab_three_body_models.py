"""The three-body problem, and the models that learn it."""

from dataclasses import replace

import pytest
import torch
from lab_helpers import small_three_body

import torchaca as aca
from torchaca.core import Stats
from torchaca.errors import SolverError
from torchaca.lab.three_body.lstm import Choice, SequenceFit, best_choice, validate
from torchaca.lab.three_body.masses import MassFit, initial_masses
from torchaca.lab.three_body.models import NeuralMotion, NextPosition, augmented
from torchaca.lab.three_body.node import MotionFit
from torchaca.lab.three_body.problem import DTYPE, K1, K2, MASSES, ThreeBody, initial_state, true_motion
from torchaca.lab.three_body.segments import segments, velocities


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
