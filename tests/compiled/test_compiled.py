"""`compile=True` with the compiler: what is compiled once, what runs in the eager loop after all, what is refused."""

import time
import warnings

import pytest
import torch
from compiled_helpers import Net, assert_equal, both, loss_of

from torchaca import solve
from torchaca.compiled import loops, run

INSIDE = [0.0, 0.3, 0.31, 1.0, 1.7, 2.0]
OPTIONS = {"method": "bosh3", "rtol": 1e-4}


@pytest.fixture
def counted(monkeypatch):
    """How often a loop was compiled."""
    made = []
    plain = loops.compiled
    monkeypatch.setattr(loops, "compiled", lambda function: made.append(function.__name__) or plain(function))
    return made


def grads_of(f, y0, t, **options):
    start = y0.clone().requires_grad_()
    ys = solve(f, start, t, **{**OPTIONS, **options}).ys
    return ys, torch.autograd.grad(loss_of(ys), (start, *f.parameters()))


def assert_compiled_equals_eager(f, y0, t, tolerance=1e-12, **options):
    found = []
    for compiled in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found.append(grads_of(f, y0, t, compile=compiled, **options))
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


def test_compiled_once_for_all_values(counted):
    f, y0 = Net(), torch.randn(3, 2, dtype=torch.float64)
    assert_equal(*both(f, y0, INSIDE, tuple(f.parameters()), **OPTIONS))
    assert counted == ["sweep", "search"]
    limit = torch._dynamo.config.patch(error_on_recompile=True)
    start = time.perf_counter()
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
    assert time.perf_counter() - start < 5
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
def test_a_batch_of_any_size_is_compiled_for_twice(counted):
    f = Net(hidden=3)
    for batch in (3, 5, 6, 9):
        assert_compiled_equals_eager(f, torch.randn(batch, 2, dtype=torch.float64), [0.0, 1.0])
    assert counted == ["sweep", "search"] * 2
