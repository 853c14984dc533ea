"""`torchaca run cost`."""

import pytest
import torch
from lab_helpers import metrics, run, summary

import torchaca as aca
from torchaca.lab.cost.counts import Point, count
from torchaca.lab.cost.deviations import deviations, explanation
from torchaca.lab.cost.laws import along, exponents, slope
from torchaca.lab.cost.problem import DTYPE, Layers, Settings, Wasteful, chained_depth, graph_depth
from torchaca.lab.variants import variants

SETTINGS = Settings()


@pytest.mark.parametrize("layers", [1, 3])
def test_the_depth_of_a_graph_is_its_longest_path(layers):
    f = Layers(SETTINGS, layers)
    z = torch.ones(2, SETTINGS.size, dtype=DTYPE)
    once = f(torch.tensor(0.0), z)
    assert graph_depth(once) == layers
    assert graph_depth(f(torch.tensor(0.0), once) + once) == 2 * layers
    assert graph_depth(z) == 0


def test_local_graphs_in_a_row():
    assert chained_depth([2, 4, 6, 2, 4, 6], 2) == 12
    assert chained_depth([3, 3, 3], 3) == 9
    assert chained_depth([], 3) == 0


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_every_step_takes_as_many_trials(trials):
    control = Wasteful(1e-4, 1e-4, trials=trials)
    f = Layers(SETTINGS, 2)
    sol = aca.solve(f, torch.ones(2, 8, dtype=DTYPE), [0.0, 4.0], control=control)
    assert 1 + sol.stats.rejected / sol.stats.accepted == pytest.approx(
        trials, abs=0.4
    )  # the first and the last steps are others


def test_direct_and_aca_differentiate_the_same_layers():
    point = Point("m", 2.0, 3, 3)
    direct, found, naive = (
        count(SETTINGS, variant, point)
        for variant in variants(("direct", "aca", "naive"), "dopri5", aca.ALF())
    )
    assert direct["depth"] == found["depth"] == found["vjps"] == 6 * 3 * found["N_t"]
    assert naive["depth"] > 2 * direct["depth"]
    assert naive["memory"] > 2 * direct["memory"]
    assert found["reverse_error"] == 0


def along_layers_and_steps(memory):
    """Made-up measurements of ACA's memory along both axes."""
    places = [("N_f", n, 20) for n in (1, 2, 4, 8)] + [("N_t", 4, n) for n in (10, 20, 40, 80)]
    return [
        {"variant": "aca", "axis": axis, "N_f": f, "N_t": t, "N_r": 0, "m": 1.0, "memory": memory(f, t)}
        for axis, f, t in places
    ]


def test_exponents_of_a_known_law():
    lines = along_layers_and_steps(lambda f, t: t**0.5)
    assert exponents(lines, "aca", "memory", "N_t")[0] == pytest.approx(0.5)
    assert exponents(lines, "aca", "memory", "N_t")[1] == pytest.approx(0.9, abs=0.05)
    assert slope([1, 2, 3], [5, 7, 9]) == pytest.approx(2)


def test_a_deviation_is_explained_by_the_constants_that_were_measured():
    lines = along_layers_and_steps(lambda f, t: 12 * f + t - 2)
    said = deviations(lines, ["aca"], "memory")
    assert len(said) == 2
    assert all("12.0 N_f + 1.0 N_t - 2.0 is within 0.0% of all 8 points" in sentence for sentence in said)
    assert all(sentence.endswith("the O() with unequal constants.") for sentence in said)


def test_a_law_without_deviation_needs_no_sentence():
    assert deviations(along_layers_and_steps(lambda f, t: 3 * (f + t)), ["aca"], "memory") == []


def test_what_is_not_explained_says_so():
    assert "leaves as much unexplained" in explanation(
        along_layers_and_steps(lambda f, t: f**2 * t), "aca", "memory"
    )
    assert "too few points" in explanation(along_layers_and_steps(lambda f, t: f + t)[:3], "aca", "memory")


def test_from_command_to_page(small, tmp_path, capsys):
    """ACA's row holds: 6 evaluations a trial forward and a step backward, one state a step, none for a rejection."""
    folder = tmp_path / "run"
    args = ("--gradient", "aca", "adjoint")
    assert run("cost", *args, "--out", folder, "--docs", tmp_path / "docs") == 0
    lines = metrics(folder)
    steps, wasted = along(lines, "aca", "N_t"), along(lines, "aca", "m")
    for line in steps + wasted:
        trials = line["accepted"] + line["rejected"]
        assert line["nfe"] == 2 + 6 * trials, "f(t0, y0), Hairer's first step, 6 new stages a trial"
        assert line["nfe_backward"] == 6 * line["accepted"]
    accepted = [line["accepted"] for line in steps]
    assert slope(accepted, [line["memory"] for line in steps]) == pytest.approx(1, abs=1e-6)
    assert wasted[0]["rejected"] < wasted[-1]["rejected"]
    assert wasted[0]["memory"] - wasted[0]["accepted"] == wasted[-1]["memory"] - wasted[-1]["accepted"]
    assert along(lines, "adjoint", "N_t")[-1]["reverse_error"] > 1e-3
    out = capsys.readouterr().out
    assert "N_f N_t (m+1)" in out
    assert "unexplained" not in out
    assert summary(folder)["exponents"]
    assert (tmp_path / "docs" / "cost" / "cost.png").exists()
