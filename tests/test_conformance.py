"""The page docs/conformance.md is what a run finds, and a run finds what is wrong."""

from dataclasses import dataclass, replace

import pytest
import torch
from conformance import PAGE, STEPS, Truths, judged, measured, page, run
from conformance_cases import FEATURES

import torchaca
from torchaca import Direct


@pytest.mark.timeout(300)
def test_every_cell_is_right_or_refused_and_the_page_says_so():
    matrices = run()
    assert not {title: matrix.wrong for title, matrix in matrices.items() if matrix.wrong}
    assert PAGE.read_text() == page(matrices), "run `python tests/conformance.py`, and look at what changed"


@dataclass(frozen=True)
class Broken:
    """Direct, with something done to its outputs."""

    change: object
    name: str = "broken"
    wants_inputs: bool = False
    wants_graph_size: bool = False

    def __call__(self, p, inputs):
        outcome = Direct()(p, inputs)
        return replace(outcome, ys=self.change(outcome.ys))


def refused(words):
    def change(ys):
        raise ValueError(words)

    return change


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda ys: ys, "right"),
        (lambda ys: ys.detach() + (1 + 1e-8) * (ys - ys.detach()), "WRONG, by 1.0e"),
        (lambda ys: ys.detach() + float("nan") * (ys - ys.detach()), "WRONG, by inf"),
        (lambda ys: ys.detach().requires_grad_(), "WRONG, by"),
        (refused("use gradient='aca'"), "ValueError, not of torchaca"),
    ],
    ids=["right", "a little off", "nan", "detached", "refused elsewhere"],
)
def test_what_is_wrong_is_seen(change, verdict):
    case = FEATURES["`args`, nested"]()
    cell = measured(case, Broken(change), {"method": "dopri5", **STEPS}, Truths(case))
    assert cell.verdict.startswith(verdict)


def test_a_wrong_direct_is_seen(monkeypatch):
    case = FEATURES["the initial state"]()
    options = {"method": "dopri5", **STEPS}
    assert measured(case, Direct(), options, Truths(case)).verdict == "right"
    solved = Direct.__call__

    def scaled(self, p, inputs):
        outcome = solved(self, p, inputs)
        return replace(outcome, ys=outcome.ys.detach() + 1.001 * (outcome.ys - outcome.ys.detach()))

    monkeypatch.setattr(Direct, "__call__", scaled)
    assert measured(case, Direct(), options, Truths(case)).verdict.startswith("WRONG, by 1.0e+02")


def test_a_refusal_needs_a_way_out_and_a_crash_is_none():
    assert judged(lambda: 0.5).verdict == "right"
    assert judged(lambda: 1.5).verdict.startswith("WRONG")
    assert judged(lambda: 1 / 0).verdict == "ZeroDivisionError: division by zero"
    cell = judged(lambda: torchaca.solve(None, torch.ones(1), [0.0, 1.0], rtoll=1))
    assert (cell.verdict, cell.words) == (
        "refused without a way out: solve() has no option 'rtoll'. Did you mean 'rtol'?",
        "",
    )
    cell = judged(lambda: torchaca.solve(abs, torch.ones(1), [0.0, 1.0], rtol=1e-3, n_steps=2))
    assert cell.verdict == "refused"
    assert cell.words == "rtol= has no effect with fixed steps (n_steps=): drop one of them"
