"""`torchaca run hopper`: its data, its networks, and the run, killed and resumed."""

import hashlib
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_helpers import metrics, run, summary

from torchaca.lab import hopper
from torchaca.lab.experiment import UsageError
from torchaca.lab.hopper import curve, data, networks, parts, physics, rows, settings, train

FIRST_20 = "e05d6213e5d1930a7d884a726686d15f9f273f21f3f051b878411b9643bd9f6a"
"""The checksum of the first 20 sequences of hopper_sample.npz, as float32."""


def waves(count=12):
    """`(count, 200, 14)`: waves of different phases, instead of a hopper."""
    phase = np.arange(count)[:, None, None] + np.arange(14) / 3
    return np.sin(phase + np.arange(200)[:, None] / 15).astype(np.float32) + 2


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that does not exist yet; what is generated are waves."""
    made = []
    monkeypatch.setattr(data, "CACHE", tmp_path / "data" / "hopper.npy")
    monkeypatch.setattr(data, "generate", lambda count: made.append(count) or waves())
    return made


def small(**changes):
    size = {"sequences": 12, "window": 10, "batch": 4, "epochs": 2, "seeds": 1, "fractions": (0.2, 0.5)}
    network = {"units": 6, "layers": 0, "state": 4, "gru_units": 4, "latent": 3}
    return replace(hopper.EXPERIMENT, sizes={"smoke": {**size, **network, **changes}}, size="smoke")


def small_settings(**changes):
    return small(**changes).resolve({})


@pytest.fixture
def quick(cache, monkeypatch):
    """The experiment in a size that ends in seconds, on waves, without plots."""
    monkeypatch.setattr(physics, "engine", lambda: None)
    monkeypatch.setattr(data, "engine", lambda: None)
    monkeypatch.setattr(hopper, "EXPERIMENT", small())
    for name in ("outcome.plot_errors", "outcome.plot_curves", "rows.plot_reconstructions"):
        monkeypatch.setattr(f"torchaca.lab.hopper.{name}", lambda *args: args[-1].touch())


def test_generated_once_and_checked(cache):
    first = data.trajectories(None)
    np.testing.assert_array_equal(first, waves())
    np.testing.assert_array_equal(data.trajectories(None), first)
    assert cache == [physics.RECIPE["sequences"]]
    record = json.loads(data.CACHE.with_suffix(".json").read_text())
    assert record["recipe"] == physics.RECIPE
    assert record["sha256"] == hashlib.sha256(data.CACHE.read_bytes()).hexdigest()
    np.testing.assert_array_equal(data.trajectories(str(data.CACHE)), first)
    data.check(None, 12)
    with pytest.raises(UsageError, match="has 12 sequences, 13 are wanted"):
        data.check(None, 13)


def test_a_corrupt_or_foreign_cache_is_refused(cache, tmp_path):
    data.trajectories(None)
    content, record = data.CACHE.read_bytes(), data.CACHE.with_suffix(".json")
    data.CACHE.write_bytes(content[:-1] + b"x")
    with pytest.raises(UsageError, match="is corrupt: its sha256 is"):
        data.trajectories(None)
    data.CACHE.write_bytes(content)
    record.write_text(json.dumps({**json.loads(record.read_text()), "recipe": {"seed": 7}}))
    with pytest.raises(UsageError, match="another recipe"):
        data.check(None, 12)
    record.unlink()
    with pytest.raises(
        UsageError, match=r"neither hopper_sample\.npz nor a file that this command has generated"
    ):
        data.check(str(data.CACHE), 12)
    with pytest.raises(UsageError, match="there is no such file"):
        data.check(str(tmp_path / "nowhere.npz"), 12)


def test_the_sample_is_known_by_its_checksum(tmp_path, monkeypatch):
    np.savez(tmp_path / "sample.npz", hopper=waves())
    content = (tmp_path / "sample.npz").read_bytes()
    monkeypatch.setattr(data, "SAMPLE", hashlib.sha256(content).hexdigest())
    np.testing.assert_array_equal(data.trajectories(str(tmp_path / "sample.npz")), waves())


def test_a_missing_engine_says_the_pip_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(physics.util, "find_spec", lambda name: None)
    assert run("hopper", "--size", "smoke") == 2
    assert 'need mujoco to be generated: pip install "torchaca[mujoco]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_generator_is_the_one_of_the_sample():
    try:
        physics.engine()
    except UsageError as missing:
        pytest.skip(str(missing))
    assert hashlib.sha256(physics.generate(20).tobytes()).hexdigest() == FIRST_20


def test_windows_split_and_normalisation():
    raw = waves()
    made = data.prepare(raw, 10, 30, seed=0)
    assert made.train.shape == (8, 30, 14)
    assert made.test.shape == (2, 30, 14)
    np.testing.assert_allclose(made.times, np.arange(30) / 200)
    low, high = raw.min((0, 1)), raw.max((0, 1))
    starts = set()
    for i, window in enumerate(torch.cat((made.train, made.test))):
        back = window.numpy() * high + low
        fits = [start for start in range(171) if np.allclose(raw[i, start : start + 30], back, atol=1e-5)]
        assert len(fits) == 1
        starts.update(fits)
    assert len(starts) > 5
    assert torch.equal(data.prepare(raw, 10, 30, seed=0).train, made.train)
    assert not torch.equal(data.prepare(raw, 10, 30, seed=1).train, made.train)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_as_many_points_as_asked_for_are_seen(fraction):
    mask = data.seen(40, 100, fraction, torch.Generator().manual_seed(0))
    assert mask.sum(1).tolist() == [round(100 * fraction)] * 40
    assert len({tuple(row.tolist()) for row in mask}) == 40
    assert torch.equal(mask, data.seen(40, 100, fraction, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", networks.CELLS)
def test_the_baselines(name):
    size = train.Settings(units=20, layers=0, gru_units=10)
    latent = train.network("aca", size, 14, 0)
    net = train.network(name, size, 14, 0)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (latent, net)]
    assert 0.95 < sizes[1] / sizes[0] <= 1
    x, times = torch.rand(2, 8, 14), torch.arange(8) / 200
    mask = torch.ones(2, 8, 14, dtype=torch.bool)
    before = net(x, times, mask)
    x[:, 5:] = 0
    after = net(x, times, mask)
    torch.testing.assert_close(after[0, :, :6], before[0, :, :6])
    assert not torch.allclose(after[0, :, 6:], before[0, :, 6:])


def test_the_time_since_the_last_point():
    seen = torch.tensor([[False, True, False, False, True]])
    gaps = networks._since_last(torch.arange(5.0), seen)
    assert gaps.tolist() == [[0, 1, 1, 2, 3]]


def test_the_weight_of_the_divergence():
    assert [train.kl_weight(epoch) for epoch in (0, 9, 10, 11)] == [0, 0, 0, pytest.approx(0.01)]


def test_the_same_start_for_every_gradient():
    size = train.Settings(units=6, layers=0)
    a, b = (train.network(name, size, 14, 1).state_dict() for name in ("aca", "adjoint"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_from_command_to_page(quick, tmp_path, capsys):
    options = ("--gradient", "aca", "direct", "adjoint", "--docs", tmp_path / "docs")
    assert run("hopper", *options, "--out", tmp_path / "run") == 0
    lines = [line for line in metrics(tmp_path / "run") if "epoch" in line]
    assert len(lines) == 2 * 2 * 5
    loss = {line["row"]: line["loss"] for line in lines if line["epoch"] == 0}
    assert loss["aca 20% seed 0"] == pytest.approx(loss["direct 20% seed 0"], rel=1e-5)
    out = capsys.readouterr().out
    assert all(word in out for word in ("latent ODE, aca", "0.27", "NFE backward", "at first"))
    found = summary(tmp_path / "run")
    assert all(row["mse"] > 0 for row in found["rows"])
    assert found["gradient_distances"]["0.5"]["aca trained"] < 1e-4
    assert (tmp_path / "docs" / "hopper" / "reconstructions-20.png").exists()
    assert "Where the error of aca is" in (tmp_path / "docs" / "hopper" / "summary.md").read_text()
    (aca,) = [row for row in found["rows"] if (row["model"], row["fraction"]) == ("aca", 0.5)]
    assert aca["parts"]["test"] == pytest.approx(aca["mse"], rel=0.5)


@pytest.mark.parametrize(
    "recipe", [{}, {"optimizer": "muon", "schedule": "cosine", "encode": "seen"}], ids=str
)
def test_killed_and_resumed_equals_uninterrupted(quick, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(hopper, "EXPERIMENT", small(fractions=(0.5,), baselines=("rnn",), layers=1, **recipe))
    options = ("--gradient", "aca", "direct", "--out")
    step, calls = train.Fit.training_step, 0

    def killed(self, batch):
        nonlocal calls
        calls += 1
        if calls == 5:  # the second epoch of the latent ODE
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(train.Fit, "training_step", killed)
        run("hopper", *options, tmp_path / "killed")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert run("hopper", "--resume", tmp_path / "killed") == 0
    assert run("hopper", *options, tmp_path / "whole") == 0
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    errors = [[row["mse"] for row in summary(tmp_path / name)["rows"]] for name in ("killed", "whole")]
    assert errors[0] == errors[1]


def test_the_plots(tmp_path):
    from torchaca.lab.hopper.plots import plot_curves, plot_errors, plot_reconstructions

    made = data.prepare(waves(), 12, 20, 0)
    draws = made.test[:2] + 0.1 * torch.randn(5, 2, 20, 14)
    plot_reconstructions(made, data.seen(2, 20, 0.2), draws, torch.full((20, 14), 0.1), tmp_path / "r.png")
    about = {"fraction": 0.1, "mse": 0.1, "seed": 0, "curve": [0.2, 0.1]}
    rows = [{"model": name, **about} for name in ("aca", "rnn")]
    plot_errors(rows, {"aca": ("0.3",)}, tmp_path / "e.png")
    plot_curves(rows, {"aca": ("0.3",)}, tmp_path / "c.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("r.png", "e.png", "c.png"))


def test_sharding_is_refused_at_the_door(monkeypatch):
    monkeypatch.setattr(hopper, "check_hardware", lambda settings: None)
    with pytest.raises(UsageError, match="--strategy fsdp2 shards wide networks"):
        hopper.EXPERIMENT.check(train.Settings(strategy="fsdp2", devices=2))


def test_the_first_line_says_what_was_run_and_what_it_shows():
    from torchaca.lab.hopper.headline import first_line

    changes = {"seeds": 1, "fractions": (0.1,), "gradient": ("aca", "adjoint")}
    rows = [
        {"model": name, "fraction": 0.1, "mse": mse, "epochs": 2, "of": 2}
        for name, mse in (("aca", 0.1), ("adjoint", 0.102), ("rnn-gru", 0.11))
    ]
    line = first_line(rows, train.Settings(sequences=20, epochs=2, **changes), {"aca": ("0.31",)})
    assert line.startswith(
        "20 of the paper's 10000 sequences, 300 of its 300 units, 2 of its 300 epochs, 1 seed. "
    )
    assert "by aca has 10.00 (x 1e-2): below at 10% the recurrent networks' best, 11.00." in line
    assert line.endswith("to 2.0%.")
    assert "0.31" not in line  # of another size
    line = first_line(rows[:1], train.Settings(epochs=2, **changes), {"aca": ("0.31",)})
    assert line.startswith("The paper's size (10000 sequences, 300 units), 2 of its 300 epochs")
    assert line.endswith("has 10.00 (x 1e-2), the paper's has 0.31.")
    assert "(some rows have fewer)" in first_line([{**rows[0], "epochs": 1}], train.Settings(**changes), {})


def test_the_seen_points_are_what_the_network_is_given():
    made = data.prepare(waves(), 12, 20, 0)
    fit = train.Fit("aca", small_settings(encode="seen"), made, 0.2, 0)
    mask = data.seen(3, 20, 0.2)
    values, times, known = fit.given(made.train[:3], mask)
    assert values.shape == (3, 4, 14)
    assert known.all()
    for i in range(3):
        torch.testing.assert_close(values[i], made.train[i][mask[i]])
        torch.testing.assert_close(times[i], made.times[mask[i]])
    whole = train.Fit("rnn", small_settings(encode="seen"), made, 0.2, 0)
    assert whole.given(made.train[:3], mask)[0].shape == (3, 20, 14)
    assert fit.draws(made.train[:3], mask, 2).shape == (2, 3, 20, 14)


def test_with_all_points_seen_both_encoders_are_one():
    made = data.prepare(waves(), 12, 20, 0)
    mask = torch.ones(3, 20, dtype=torch.bool)
    found = []
    for encode in ("all", "seen"):
        fit = train.Fit("aca", small_settings(encode=encode), made, 1.0, 0)
        torch.manual_seed(0)
        found.append(fit.loss(made.train[:3], mask, 2).loss)
    torch.testing.assert_close(found[0], found[1])


def test_the_schedules():
    cosine = small_settings(schedule="cosine", warm_up=0.2)
    factors = [settings.lr_factor(cosine, step, 100) for step in range(101)]
    assert factors[:20] == sorted(factors[:20])
    assert max(factors) == factors[20] == 1
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[100] == pytest.approx(0)
    decay = [settings.lr_factor(train.Settings(), step, 100) for step in (0, 1, 5000)]
    assert decay == [pytest.approx(0.999), pytest.approx(0.999**2), 0.1]
    assert settings.differences(train.Settings()) == []
    assert "schedule cosine for decay" in settings.differences(cosine)
    assert "then a cosine to zero" in settings.recipe(cosine)


def test_short_rows_are_the_first_epochs_of_the_whole_ones(quick, tmp_path, monkeypatch):
    short = (("direct", 0.5, 1), ("adjoint", 0.5, 1), ("naive", 0.5, 1))
    changes = {"schedule": "cosine", "encode": "seen", "baseline_epochs": 1, "baselines": ("rnn",)}
    experiment = small(
        fractions=(0.5,), epochs=3, short=short, gradient=("aca", "direct", "adjoint"), **changes
    )
    monkeypatch.setattr(hopper, "EXPERIMENT", experiment)
    assert run("hopper", "--out", tmp_path / "run") == 0
    found = {row["model"]: row for row in summary(tmp_path / "run")["rows"]}
    assert {name: row["epochs"] for name, row in found.items()} == {
        "aca": 3,
        "rnn": 1,
        "direct": 1,
        "adjoint": 1,
    }
    assert found["direct"]["curve"][0] == pytest.approx(found["aca"]["curve"][0], rel=1e-5)
    assert found["direct"]["curve"][0] != pytest.approx(found["aca"]["curve"][1], rel=1e-5)
    page = (tmp_path / "run" / "summary.md").read_text()
    assert "The same first epochs by other gradients" in page
    assert "| latent ODE, direct | 50% | 1 of 3 |" in page
    assert "1 of the recurrent networks" in page


def test_fewer_epochs_at_a_fraction():
    chosen = small_settings(
        epochs=3, fewer=((0.5, 2),), short=(("direct", 0.5, 9),), gradient=("aca", "direct")
    )
    found = {case.row: case.epochs for case in rows.cases(chosen)}
    assert found["aca 20% seed 0"] == 3
    assert found["aca 50% seed 0"] == found["direct 50% seed 0"] == 2
    made = data.prepare(waves(), 12, 20, 0)
    assert [train.Fit("aca", chosen, made, fraction, 0).steps for fraction in (0.2, 0.5)] == [3 * 3, 2 * 3]


def test_the_curve_file(quick, tmp_path, capsys):
    assert run("hopper", "--gradient", "aca", "--out", tmp_path / "run", "--docs", tmp_path / "docs") == 0
    copied = (tmp_path / "docs" / "hopper" / "curve.csv").read_text()
    head, *lines = copied.splitlines()
    assert head == "row,epoch,train_mse,test_mse,seconds,nfe"
    assert [line.split(",")[:2] for line in lines[:2]] == [["aca 20% seed 0", "1"], ["aca 20% seed 0", "2"]]
    assert len(lines) == 2 * 3 * 2
    logged = [line for line in metrics(tmp_path / "run") if "epoch" in line]
    assert float(lines[1].split(",")[3]) == pytest.approx(logged[1]["test_mse"], rel=1e-4)
    (tmp_path / "run" / "summary.json").unlink()  # as of a run that was killed
    assert curve.main([str(tmp_path / "run"), "--write", str(tmp_path / "c.csv")]) == 0
    assert (tmp_path / "c.csv").read_text() == copied
    capsys.readouterr()
    assert curve.main([str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == copied


def test_a_row_out_of_time_says_how_far_it_came(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(hopper, "EXPERIMENT", small(fractions=(0.5,), baselines=(), epochs=500))
    assert run("hopper", "--gradient", "aca", "--time-limit", "1e-3", "--out", tmp_path / "run") == 0
    assert (
        "stopped early: latent ODE, aca 50% has 1 of 500 epochs"
        in (tmp_path / "run" / "summary.md").read_text()
    )


def test_the_matrix_products_are_as_before_a_run(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(hopper, "EXPERIMENT", small(fractions=(0.5,), baselines=("rnn",), matmul="medium"))
    assert run("hopper", "--gradient", "aca", "--out", tmp_path / "run") == 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_unknown_parts_of_a_recipe_are_refused(cache):
    for name in ("encode", "optimizer", "schedule"):
        with pytest.raises(UsageError, match=f"unknown {name} 'none'"):
            hopper.EXPERIMENT.check(replace(train.Settings(), **{name: "none"}))


def test_muon_takes_the_matrices_between_hidden_units():
    chosen = train.Settings(optimizer="muon", units=20, layers=2, gru_units=10)
    for name, shapes in (("aca", [(20, 20)] * 4), ("rnn", None), ("rnn-gru", None)):
        net = train.network(name, chosen, 14, 0)
        muon, adam = train.optimizers(net, chosen)
        found = [parameter for group in muon.param_groups for parameter in group["params"]]
        others = [parameter for group in adam.param_groups for parameter in group["params"]]
        assert isinstance(muon, torch.optim.Muon)
        assert {id(p) for p in (*found, *others)} == {id(p) for p in net.parameters()}
        if shapes:
            assert [tuple(p.shape) for p in found] == shapes
        else:
            assert [p is net.cell.weight_hh_l0 for p in found] == [True]
    (alone,) = train.optimizers(net, train.Settings())
    assert isinstance(alone, torch.optim.Adamax)
    assert "Muon, learning rate 0.01" in settings.recipe(chosen)


def test_the_parts_of_the_error(monkeypatch):
    made = data.prepare(waves(), 12, 20, 0)
    made = replace(made, test=torch.zeros(4, 20, 14))
    made.test[0, 10, 8] = 3.0  # a jump
    fit = train.Fit("rnn", small_settings(), made, 0.2, 0)
    wrong = torch.zeros(4, 20, 14)
    wrong[0, 0, :7], wrong[1, -1] = 2.0, 1.0
    draws = torch.stack((made.test + wrong, made.test - wrong))
    monkeypatch.setattr(fit, "draws", lambda x, mask, samples: draws if len(x) == 4 else draws[:, : len(x)])
    mask = torch.zeros(4, 20, dtype=torch.bool)
    mask[:, -1] = True
    found = parts.error_parts(fit, made, mask)
    whole = (4 * 7 + 14) / (4 * 20 * 14)
    assert found["test"] == pytest.approx(whole)
    assert found["mean of draws"] == 0
    assert found["positions"] + found["velocities"] == pytest.approx(2 * whole)
    assert found["velocities"] == pytest.approx(7 / (4 * 20 * 7))
    assert found["seen"] == pytest.approx(14 / (4 * 14))
    assert found["first tenth"] == pytest.approx(28 / (4 * 2 * 14))
    assert found["last tenth"] == pytest.approx(14 / (4 * 2 * 14))
    assert found["roughest third"] == pytest.approx(28 / (20 * 14))
    assert set(found) == set(parts.LINES)


def test_what_stands_between_an_error_and_the_papers():
    told = [
        {"test": test, "training": training}
        for test, training in ((0.003, 0.001), (0.004, 0.002), (0.006, 0.005))
    ]
    own = [
        {"model": "aca", "seed": 0, "fraction": 0.1 * i, "parts": dict.fromkeys(parts.LINES, 0.0) | each}
        for i, each in enumerate(told, 1)
    ]
    table = parts.parts_table(own, "aca", ("0.31", "0.31", "0.31"))
    assert table.rows[0] == ["the test sequences", "0.3", "0.4", "0.6"]
    said = table.notes[1:]
    assert said[0] == "10%: 0.30, the paper has 0.31: reached."
    assert "have 0.20, which is below that: what stands between is overfitting" in said[1]
    assert "have 0.50, above that as well: it is not trained out" in said[2]
    assert len(parts.parts_table(own, "aca").notes) == 1
    own[0]["parts"]["test"] = 0.003127
    same = parts.parts_table(own, "aca", ("0.31",)).notes[1]
    assert same.endswith("the paper has 0.31: equal in the paper's digits (0.313).")
