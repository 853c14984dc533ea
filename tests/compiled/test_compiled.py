"""`compile="loops"` with the compiler: compiled once, refused, or after all in the eager loop."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from compiled_helpers import Net, assert_equal, both, loss_of
from torch import nn

import torchaca as aca
from torchaca import solve
from torchaca.compiled import compiler, run

INSIDE = [0.0, 0.3, 0.31, 1.0, 1.7, 2.0]
OPTIONS = {"method": "bosh3", "rtol": 1e-4, "gradient": aca.ACA(checkpoints="all")}


@pytest.fixture
def counted(monkeypatch):
    """How often a loop was compiled."""
    made = []
    plain = compiler.compiled
    monkeypatch.setattr(
        compiler,
        "compiled",
        lambda function, **kind: made.append(function.__name__) or plain(function, **kind),
    )
    return made


def grads_of(f, y0, t, **options):
    start = y0.clone().requires_grad_()
    ys = solve(f, start, t, **{**OPTIONS, **options}).ys
    return ys, torch.autograd.grad(loss_of(ys), (start, *f.parameters()))


def assert_compiled_equals_eager(f, y0, t, tolerance=1e-12, **options):
    found = []
    for compiled in ("loops", False):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "compile='loops'")
            found.append(grads_of(f, y0, t, compile=compiled, **options))
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


def test_compiled_once_for_all_values(counted):
    f, y0 = Net(), torch.randn(3, 2, dtype=torch.float64)
    assert_equal(*both(f, y0, INSIDE, tuple(f.parameters()), **OPTIONS))
    assert counted == ["sweep", "search"]
    limit = torch._dynamo.config.patch(error_on_recompile="loops")
    with limit:
        assert_compiled_equals_eager(f, 0.5 * y0, [2.0, 1.1, 0.0])
        assert_compiled_equals_eager(
            f, y0, torch.linspace(0, 1, 7), rtol=1e-3, atol=1e-4, dt0=0.1, max_steps=77
        )
        with torch.no_grad():
            for p in f.parameters():
                p.mul_(0.9)
            f.gain.mul_(0.5)
        assert_compiled_equals_eager(f, y0, INSIDE)
        other = Net()
        assert_compiled_equals_eager(other, y0, INSIDE)
    assert counted == ["sweep", "search"]


@pytest.mark.slow
def test_float32_under_autocast_with_chunks_of_eight(counted, monkeypatch):
    monkeypatch.setattr(run, "CHUNK_BYTES", 1)
    f, y0 = Net(dtype=torch.float32), torch.randn(3, 2)
    options = {"method": "heun_euler", "rtol": None, "n_steps": 19}
    with torch.autocast("cpu", torch.bfloat16):
        assert_compiled_equals_eager(f, y0, [0.0, 0.95, 2.0], 1e-2, **options)
    assert counted == ["sweep", "march"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkpoints_none_under_autocast():
    f, y0 = Net(dtype=torch.float32), torch.randn(3, 2, requires_grad=True)
    options = {
        "method": "bosh3",
        "dt0": 0.5,
        "dt_min": 0.5,
        "rtol": 1e9,
        "gradient": aca.ACA(checkpoints="none"),
    }
    found = []
    for compiled in ("loops", False):
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            warnings.filterwarnings("error", "compile='loops'")
            ys = solve(f, y0, INSIDE, compile=compiled, **options).ys
        found.append((ys, torch.autograd.grad(loss_of(ys), (y0, *f.parameters()))))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_a_batch_of_any_size_is_compiled_for_twice(counted):
    f = Net(hidden=3)
    for batch in (3, 5, 6, 9):
        assert_compiled_equals_eager(f, torch.randn(batch, 2, dtype=torch.float64), [0.0, 1.0])
    assert counted == ["sweep", "search"] * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "options",
    [
        {"method": "dopri5", "rtol": 1e-6},
        {"method": "tsit5", "rtol": 1e-6, "norm": "max"},
        {"method": "fehlberg5", "rtol": 1e-5},  # f1 is an evaluation of its own
        {"method": "heun_euler", "rtol": 1e-2},  # no evaluation is handed on
        {"method": "dopri5", "rtol": None, "n_steps": 5},
        # The interpolant has stages of its own. The first step is long enough for an error above rounding, whose
        # noise would be that of the next step size.
        {"method": "dopri8", "rtol": 1e-10, "dt0": 0.5},
        {"method": "tsit5", "rtol": 1e-6, "gradient": aca.ACA(checkpoints="none")},
        {"method": "heun_euler", "rtol": 1e-2, "jump_ts": [0.0, 0.5]},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_methods(options):
    assert_compiled_equals_eager(Net(), torch.randn(3, 2, dtype=torch.float64), INSIDE, **options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_times():
    t, f = torch.tensor(INSIDE, dtype=torch.float64, requires_grad=True), Net()
    eager, compiled = both(f, torch.randn(3, 2, dtype=torch.float64), t, (t, *f.parameters()), **OPTIONS)
    assert_equal(eager, compiled)
    assert eager[1][1].abs().min() > 0


PROCESS = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from compiled_helpers import Net
from torchaca import solve
torch.manual_seed(0)
ys = solve(Net(), torch.ones(3, 2, dtype=torch.float64), [0.0, 1.0], method="bosh3", compile='loops').ys
ys.sum().backward() if ys.requires_grad else None
print(torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"], ys.sum().item())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_process_finds_the_graphs_in_the_disk_cache(tmp_path):
    here, source = Path(__file__).parent, Path(aca.__file__).parents[1]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(source)}
    command = [sys.executable, "-W", "error:compile='loops'", "-c", PROCESS, str(here)]
    outputs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert [hits for hits, _ in outputs] == ["0", "2"]
    assert outputs[0][1] == outputs[1][1]


def branching(t, y):
    return -y if y.sum() > 0 else y


class Counting(nn.Module):
    """Counts its calls, which no compiled loop would do."""

    calls = 0

    def forward(self, t, y):
        self.calls += 1
        return -y


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, t, y):
        return self.norm(y)


class Dropping(nn.Module):
    def forward(self, t, y):
        return nn.functional.dropout(y, 0.5, self.training)


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (branching, "cannot be traced .*data-dependent"),
        (Counting(), "cannot be traced .*side effects"),
        (Normed(), "changes a tensor in place"),
        (Dropping(), "draws random numbers"),
    ],
    ids=["branch", "counter", "batch norm", "dropout"],
)
def test_what_cannot_be_compiled_runs_in_the_eager_loop(f, reason):
    y0 = torch.randn(3, 2)
    for _ in range(2):
        torch.manual_seed(1)
        with pytest.warns(
            UserWarning, match=f"compile='loops': f {reason}.*; this solve runs in the eager loop"
        ):
            got = solve(f, y0, [0.0, 1.0], method="rk4", n_steps=4, compile="loops")
        torch.manual_seed(1)
        want = solve(f, y0, [0.0, 1.0], method="rk4", n_steps=4)
        assert got.stats == want.stats
        if not isinstance(f, Normed):  # whose statistics move on
            assert torch.equal(got.ys, want.ys)


def test_an_error_of_f_stays_an_error():
    with pytest.warns(UserWarning, match="cannot be traced"), pytest.raises(RuntimeError, match="shapes"):
        solve(lambda t, y: y @ torch.ones(3, 3), torch.ones(2, 2), [0.0, 1.0], compile="loops")


def test_without_a_compiler(monkeypatch):
    def failing(*args):  # as PyTorch does, which would remember a missing compiler for the whole process
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr(compiler, "compiled", lambda function, *, forward: failing)
    f, y0 = Net(hidden=5), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(INSIDE, dtype=torch.float64, requires_grad=True)
    for options in ({"method": "euler", "n_steps": 2}, {"method": "dopri8"}, {"gradient": "direct"}) * 2:
        times = t if "gradient" not in options else INSIDE
        with pytest.warns(UserWarning, match="the compiler failed.*No working C.*runs in the eager loop"):
            got = solve(f, y0, times, compile="loops", **options)
        want = solve(f, y0, times, **options)
        assert torch.equal(got.ys, want.ys)
        assert got.stats == want.stats
        wrt = (y0, *f.parameters())
        grads = [torch.autograd.grad(loss_of(sol.ys), wrt, retain_graph=True) for sol in (got, want)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


REFUSED = {
    "gradient='aca' with": {"gradient": "adjoint"},
    "with all checkpoints or none": {"gradient": aca.ACA(checkpoints="sqrt")},
    "the graph of all steps": {"gradient": "direct", "method": "heun_euler"},
    "dense output": {"dense": True},
    "a norm of your own": {"norm": lambda x: x.abs().max()},
    "debug=True": {"debug": True},
    "complex states": {"y0": torch.ones(2, dtype=torch.complex64)},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_there_yet_is_refused(reason):
    options = {"y0": torch.ones(2), "t": [0.0, 1.0], "compile": "loops", **REFUSED[reason]}
    with pytest.raises(ValueError, match=f"{reason}.*: use compile=False"):
        solve(lambda t, y: -y, options.pop("y0"), options.pop("t"), **options)


def test_refused_inside_transforms():
    with pytest.raises(ValueError, match=r"torch.func transform.*: use compile=False"):
        torch.func.grad(lambda y: solve(lambda t, y: -y, y, [0.0, 1.0], compile="loops").ys.sum())(
            torch.ones(2)
        )
