import pytest
import torch
from backends import without_code
from torch._functorch import config as functorch_config

from torchaca.compiled import capture, compiler


def _loop(goes_on, body, carried):
    while goes_on(*carried):
        carried = body(*carried)
    return carried


@pytest.fixture
def interpreted(monkeypatch):
    """The compiled loops' own code, run by Python: everything but the compiler."""
    capture._entry.cache_clear()
    monkeypatch.setattr(compiler, "while_loop", _loop)
    monkeypatch.setattr(torch, "cond", lambda p, yes, no, operands: (yes if p else no)(*operands))
    monkeypatch.setattr(compiler, "compiled", lambda function, *, forward: traced(monkeypatch, function))
    yield
    capture._entry.cache_clear()


@pytest.fixture
def dynamo_alone(monkeypatch):
    """Dynamo without a compiler behind it."""
    without_code("eager", monkeypatch)


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def either_backend(request, monkeypatch):
    """Dynamo and autograd's half of the compiler; slow: all of it, which takes ten seconds a graph.

    The whole makes backward passes once it is known that graphs stay, the half at once: it has nothing to overwrite.
    """
    if request.param == "inductor":
        yield
        return
    without_code(request.param, monkeypatch)
    with functorch_config.patch(donated_buffer=False):
        yield


def traced(monkeypatch, function):
    """The function in a world that takes itself for a graph."""

    def run(*args):
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            return function(*args)

    return run
