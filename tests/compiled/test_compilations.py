"""What is compiled anew, counted: what docs/compile.md says, and nothing else. Dynamo works, its compiler does not."""

import contextlib
import warnings

import pytest
import torch
from compiled_helpers import loss_of
from torch import nn
from torch._dynamo.callback import callback_handler

from torchaca import ACA, solve

DOUBLE = torch.float64


@pytest.fixture
def compilations(dynamo_alone):
    """A list that grows with each graph that Dynamo makes."""
    made = []

    def note(args):
        made.append(args)

    callback_handler.register_start_callback(note)
    yield made
    callback_handler.remove_start_callback(note)


def inside(n, start=0.0, end=1.0):
    return torch.linspace(start, end, n).tolist()


def inference(x):
    with torch.inference_mode():
        return x.clone()


def driven(t, y, rate):
    return -rate * y


class Field(nn.Module):
    """As small as can be: what takes time here is tracing."""

    def __init__(self):
        super().__init__()
        self.rate, self.shift = (nn.Parameter(torch.tensor(x, dtype=DOUBLE)) for x in (0.7, 0.1))

    def forward(self, t, y):
        return self.shift - self.rate * y


Y0 = torch.ones(3, 2, dtype=DOUBLE)
SAME = [
    {"t": inside(3)},
    {"t": inside(40)},
    {"t": inside(300)},
    {"t": inside(5, 1.0, 0.0)},
    {"t": torch.linspace(0, 2, 7)},
    {"t": [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]},
    {"rtol": 1e-3, "atol": 1e-4},
    {"rtol": torch.tensor(1e-3, dtype=DOUBLE)},
    {"dt0": 0.01, "dt_min": 1e-6, "dt_max": 0.3, "max_steps": 99, "atol": 1e-2},
    {"y0": Y0.clone().requires_grad_()},
    {"y0": inference(Y0), "context": torch.inference_mode},
    {"context": torch.no_grad},
    {"context": torch.inference_mode},
    {"context": torch.no_grad, "t": inside(9)},
    {"context": torch.inference_mode, "t": inside(11)},
    {},
]
"""Options that nothing is compiled anew for, one after the other."""


def trained(f, y0=Y0, t=(0.0, 0.5, 1.0), context=contextlib.nullcontext, **options):
    with context(), warnings.catch_warnings():
        warnings.filterwarnings("error", "compile=")
        ys = solve(
            f, y0, t, **{"method": "bosh3", "rtol": 1e-2, "gradient": ACA(checkpoints="all"), **options}
        ).ys
    if ys.requires_grad:
        loss_of(ys).backward()


@pytest.mark.parametrize(
    ("mode", "first"),
    [("loops", torch.inference_mode), ("steps", torch.no_grad), ("steps", contextlib.nullcontext)],
)
def test_nothing_is_compiled_anew_for(mode, first, compilations):
    class Own(Field):  # its graphs are new
        pass

    f = Own()
    trained(f, context=first, compile=mode)
    trained(f, compile=mode)
    assert len(compilations) == 3  # f, the forward pass, the backward pass
    for options in SAME:
        trained(f, compile=mode, **options)
        assert len(compilations) == 3, options
    for other in (f.eval(), f.train(), Own()):
        trained(other, compile=mode)
    assert len(compilations) == 3


@pytest.mark.parametrize("mode", [pytest.param("loops", marks=pytest.mark.slow), "steps"])
def test_a_second_batch_size_is_compiled_for_all_batch_sizes(mode, compilations):
    class Own(Field):
        pass

    f = Own()
    trained(f, torch.ones(64, 100, dtype=DOUBLE), compile=mode)
    assert len(compilations) == 3
    trained(f, torch.ones(90, 100, dtype=DOUBLE), compile=mode)
    assert len(compilations) == 6
    for batch in (300, 64, 7):  # other numbers of steps in a chunk as well
        for options in ({}, {"t": inside(30)}, {"context": torch.inference_mode}):
            trained(f, torch.ones(batch, 100, dtype=DOUBLE), compile=mode, **options)
    assert len(compilations) == 6


@pytest.mark.parametrize("mode", [pytest.param("loops", marks=pytest.mark.slow), "steps"])
def test_arguments_that_belong_to_inference_mode(mode, compilations):
    rate = torch.ones(2, dtype=DOUBLE)
    trained(driven, args=(rate,), context=torch.no_grad, compile=mode)
    graphs = len(compilations)
    trained(driven, args=(inference(rate),), context=torch.inference_mode, compile=mode)
    assert len(compilations) <= graphs + 2


@pytest.mark.slow
def test_what_is_compiled_anew(compilations):
    """A tolerance for each component; other tensors that are differentiated."""

    class Own(Field):
        pass

    f = Own()
    trained(f, compile="loops")
    for tolerance in (1e-2, 1e-3):
        rtol = torch.full((2,), tolerance, dtype=DOUBLE)
        rtol[0] *= 0.5
        trained(f, rtol=rtol, compile="loops")
        trained(f, rtol=inference(rtol), context=torch.inference_mode, compile="loops")
        assert len(compilations) == 4
    next(f.parameters()).requires_grad_(False)
    trained(f, compile="loops")
    assert len(compilations) == 7
    trained(f, context=torch.no_grad, compile="loops")
    next(f.parameters()).requires_grad_(True)
    trained(f, compile="loops")
    assert len(compilations) == 7
