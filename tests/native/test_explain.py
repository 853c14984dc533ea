"""What explains which executor a problem gets."""

import pytest
import torch

import torchaca as aca
from torchaca.compiled.failure import TooManyGraphs
from torchaca.executors import EXECUTORS, PREFERRED
from torchaca.native import Native

Y0, T = torch.ones(2, 3, 4, 4), [0.0, 1.0]
CONV = torch.nn.Conv2d(3, 3, 3, padding=1)


def test_what_is_covered_runs_natively():
    found = aca.explain(lambda t, y: -y, Y0, T)
    assert found == aca.Explanation("native")
    assert str(found).startswith("runs as 'native': f and its derivative as C")


def test_what_is_not_covered_is_named():
    found = aca.explain(lambda t, y: CONV(y), Y0, T)
    assert found.executor == "loops"
    assert "convolution" in found.passed_over["native"]
    assert "not as 'native': f has convolution" in str(found)


def test_what_no_compiler_takes_runs_in_the_eager_loop():
    found = aca.explain(lambda t, y: -y if y.sum() > 0 else y, Y0, T)
    assert found.executor == "eager"
    assert list(found.passed_over) == PREFERRED


@pytest.mark.parametrize("mode", [mode for mode in EXECUTORS if mode != "cuda-graphs"])
def test_it_says_what_stats_will_say(mode):
    found = aca.explain(lambda t, y: -y * t, torch.ones(2), T, compile=mode)
    assert found.executor == aca.solve(lambda t, y: -y * t, torch.ones(2), T, compile=mode).stats.executor


def test_bad_options_are_refused_as_in_solve():
    with pytest.raises(TypeError, match="no option 'rtoll'"):
        aca.explain(lambda t, y: -y, Y0, T, rtoll=1)
    with pytest.raises(ValueError, match="native solves so far: use compile=True"):
        aca.explain(lambda t, y: -y, Y0, T, compile="native", gradient="mali", method="alf")


def test_an_executor_that_answers_for_the_others_ends_the_search(monkeypatch):
    """Of an f that is traced without end, the compiled loops would say the same after a while."""

    def without_end(self, p):
        raise TooManyGraphs("it changes each time")

    monkeypatch.setattr(Native, "begin", without_end)
    found = aca.explain(lambda t, y: -y, Y0, T)
    assert found.executor == "eager"
    assert found.passed_over == {"native": "it changes each time"}
