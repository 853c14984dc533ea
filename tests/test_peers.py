"""The benchmark of all peers: its problems, its processes, its arithmetic, and one small run."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import torchaca as aca
from benchmarks import allocators
from benchmarks.peers import growth, measure, page, targets, worker
from benchmarks.peers.__main__ import check_device
from benchmarks.peers.contestants import COMPILED, CONTESTANTS, KEPT
from benchmarks.peers.fields_torch import field_of
from benchmarks.peers.floor import Floor
from benchmarks.peers.memory import resident_peak
from benchmarks.peers.process import JAX_PYTHON, ROOT, Process
from benchmarks.peers.protocol import Refusal
from benchmarks.peers.workloads import Counts, workloads

BY_NAME = {c.name: c for c in CONTESTANTS}


def row(name, total, **values):
    return measure.Row(BY_NAME[name], total=total, forward=total / 3, **values)


def test_a_workload_in_double_is_the_same_problem():
    for w in workloads().values():
        true = w.double(1e-12)
        y0 = torch.from_numpy(w.y0)
        found = field_of(w)(torch.zeros(()), y0)
        torch.testing.assert_close(
            field_of(true)(torch.zeros(()), y0.double()), found.double(), rtol=1e-4, atol=1e-4
        )
        assert true.dtype == "float64"


@pytest.mark.skipif(not JAX_PYTHON.exists(), reason="the JAX environment is made by `make benchmark`")
def test_jax_and_pytorch_solve_the_same_problem():
    code = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
from benchmarks.peers.contestants_diffrax import _inwards, _outwards
from benchmarks.peers.fields_jax import FIELDS
from benchmarks.peers.workloads import workloads
import numpy as np
out = {}
for name, w in workloads().items():
    w = w.double(1e-12)
    p = {k: jnp.asarray(_inwards(w, v)) for k, v in w.parameters.items()}
    f = _outwards(w, np.asarray(FIELDS[w.field](0.0, jnp.asarray(_inwards(w, w.y0)), p)))
    out[name] = [float((f * np.cos(np.arange(f.size)).reshape(f.shape)).sum()), float(abs(f).max())]
print(json.dumps(out))
"""
    done = subprocess.run([JAX_PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name, (weighted, largest) in json.loads(done.stdout).items():
        w = workloads()[name].double(1e-12)
        f = field_of(w)(torch.zeros(()), torch.from_numpy(w.y0)).detach().numpy()
        assert largest == pytest.approx(abs(f).max(), rel=1e-10)
        assert weighted == pytest.approx((f * np.cos(np.arange(f.size)).reshape(f.shape)).sum(), rel=1e-8)


def test_a_worker_that_fails_or_dies_is_a_reason_and_not_the_end():
    w = workloads()["three-body"]
    process = Process("torchaca", patience=60)
    try:
        refused = process.ask("setup", w, {"gradient": "no such gradient"}, "cpu")
        assert isinstance(refused, Refusal)
        assert "KeyError" in refused.reason
        process.worker.kill()
        assert isinstance(process.ask("versions"), Refusal)
        assert process.ask("versions")["torch"] == torch.__version__  # a new one
    finally:
        process.end()


class Slower:
    """A contestant whose steps take so long, by a clock of its own."""

    def __init__(self, seconds):
        self.seconds, self.now = iter(seconds), 0.0

    def train(self):
        spent = next(self.seconds)
        self.now += spent
        return spent / 2, spent


def test_a_turn_is_the_median_of_its_steps(monkeypatch):
    for seconds, median in (([0.25], 0.25), ([0.03125, *[0.015625] * 5], 0.015625)):
        contestant = Slower(seconds)
        monkeypatch.setattr(worker.time, "perf_counter", lambda contestant=contestant: contestant.now)
        assert worker.turn(contestant, 0.1) == (median / 2, median)
        assert next(contestant.seconds, None) is None  # as many steps as there is time for


def test_a_worker_that_takes_too_long_is_given_up():
    process = Process("torchaca", patience=0.01)
    reply = process.ask("versions")
    assert isinstance(reply, Refusal)
    assert "no answer" in reply.reason
    assert process.worker is None


def test_the_floor_counts_every_call_once():
    floor = Floor(evaluation=1.0, derivative=3.0, stages=6)
    assert floor.seconds(Counts(100, 50, 10, 5)) == 100 + 3 * 50  # a replay: f and its product for each of 50
    assert floor.seconds(Counts(100, 0, 10, 5)) == 100 + 6 * 10 * 2  # a kept graph: products alone
    assert floor.seconds(Counts(accepted=3)) is None


def test_gradient_distance_is_the_worst_and_wants_all_of_them():
    true = {"y0": np.array([3.0, 4.0]), "w": np.array([1e-3])}
    assert measure.gradient_distance(
        {"y0": np.array([3.0, 4.5]), "w": np.array([2e-3])}, true
    ) == pytest.approx(1.0)
    assert measure.gradient_distance({"y0": np.array([3.0, 4.0])}, true) is None


def test_peak_is_what_a_call_holds_at_one_time():
    size = 64 * 2**20

    def call():
        for _ in range(3):
            np.ones(size // 8)

    peak = resident_peak(call)
    if peak is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 0.95 * size < peak < 1.5 * size


def test_targets():
    tables = {
        "small": [
            row("torchaca", 30.0),
            row(KEPT, 20.0),
            row("torchaca, adjoint", 90.0),
            row(COMPILED, 2.0),
            row("torchdiffeq odeint", 25.0),
            row("torchdiffeq odeint_adjoint", 80.0),
            row("diffrax", 4.0),
            measure.Row(BY_NAME["torchdyn autograd"], "not installed"),
        ]
    }
    found = {(v.promise, v.against): v for v in targets.verdicts(tables)}
    by_outcome = {key[0]: (v.measured, v.outcome) for key, v in found.items()}
    assert by_outcome[f"{COMPILED}: training step, of diffrax's"] == (0.5, "met")
    assert by_outcome[f"torchdiffeq odeint's training step, of {COMPILED}'s"] == (12.5, "met")
    assert by_outcome[f"{KEPT}: training step, of the fastest PyTorch peer's"] == (0.8, "met")
    assert by_outcome["torchaca: training step, of the fastest PyTorch peer's"] == (1.2, "missed")
    assert by_outcome["torchaca: training step, of the fastest continuous adjoint's"] == (0.375, "met")
    assert {v.workload for v in found.values()} == {"small"}


def test_a_row_for_steps_of_each_sample_is_judged_where_it_is():
    rows = [row("torchaca", 5.0), row("torchode AutoDiffAdjoint", 4.0)]
    lanes = row("torchaca, vmap", 3.0)
    promise = "torchaca, vmap: training step, of the fastest PyTorch peer's"
    assert promise not in {v.promise for v in targets.verdicts({"van-der-pol": rows})}
    found = {v.promise: v.measured for v in targets.verdicts({"van-der-pol": [*rows, lanes]})}
    assert found[promise] == 0.75


def test_a_missing_row_leaves_a_dash():
    found = targets.verdicts({"small": [row("torchaca", 1.0)]})
    assert {v.outcome for v in found} == {"-"}


def test_growth_fits_a_line():
    points = tuple(growth.Point(size, 1, 0.5 + 2 * size) for size in (1.0, 2.0, 4.0, 8.0))
    slope, explained = growth.Curve("x", "steps", points).line
    assert slope == pytest.approx(2)
    assert explained == pytest.approx(1)
    proportional = tuple(growth.Point(s, 1, 3 * s) for s in (1.0, 10.0))
    assert growth.Curve("x", "steps", proportional).exponent == pytest.approx(1)


def test_numbers_on_the_page():
    assert [page.number(x) for x in (None, math.nan, 0.0, 1234.5, 12.345, 1.5e-5)] == [
        *("-", "-", "0", "1234", "12.3", "1.50e-05"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_device_is_one_sentence():
    with pytest.raises(SystemExit, match="finds no CUDA device"):
        check_device("cuda")


@pytest.mark.timeout(300)
def test_one_small_run(tmp_path):
    options = "--workloads small --contestants torchaca --eager --rounds 1 --no-growth --write"
    command = [sys.executable, "-m", "benchmarks.peers", *options.split(), tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "peers.md").read_text()
    assert done.stdout.strip() == text.strip()
    assert (tmp_path / "peers.png").stat().st_size > 0
    lines = {
        cells[1].strip(): cells for cells in (line.split("|") for line in text.splitlines()) if len(cells) > 8
    }
    ours = lines["torchaca"]
    assert 0 < float(ours[2]) < 1e-3  # errors beside the reference
    assert 0 < float(ours[3]) < 1e-2
    forward, backward = map(int, ours[4].split("+"))
    w = workloads()["small"]
    y0 = torch.from_numpy(w.y0).requires_grad_()
    solution = aca.solve(field_of(w), y0, [0.0, w.t1], rtol=w.tolerance, atol=w.tolerance)
    solution.ys[-1].sum().backward()
    assert (forward, backward) == (solution.stats.nfe, solution.stats.nfe_backward)
    assert text.count(" met |") + text.count(" missed |") == 2  # beside the continuous adjoint


def test_allocators_are_those_that_the_machine_has(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", {"jemalloc": "libjemalloc.so.2"}.get)
    assert allocators.allocators() == {allocators.SYSTEM: {}, "jemalloc": {"LD_PRELOAD": "libjemalloc.so.2"}}
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr("sys.argv", ["allocators"])
    with pytest.raises(SystemExit, match="apt install libtcmalloc"):
        allocators.main()


def test_a_contestant_under_several_allocators_is_a_line_with_medians():
    class Asked:
        def __init__(self, *replies):
            self.replies = [*replies]

        def ask(self, name, *arguments):
            return self.replies.pop(0)

    ready, turns = 0.5, [(0.0, 0.003), (0.0, 0.001), (0.0, 0.002)]
    processes = {
        "one": Asked(ready, *turns),
        "cannot": Asked(Refusal("no")),
        "dies": Asked(ready, *turns[:2], Refusal("gone")),
    }
    line = allocators.row(workloads()["small"], BY_NAME["torchaca"], processes, 3)
    medians = {"one": pytest.approx(2.0), "cannot": "-", "dies": "-"}
    assert line == {"problem": "small", "": "torchaca", **medians}
