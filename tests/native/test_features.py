"""The features of docs/conformance.md under each executor: right, or refused with what to do instead."""

import warnings

import pytest
import torch
from conformance import EXACT, INSTEAD, STEPS, Truths, derivative, said_by_torchaca, worst
from conformance_cases import FEATURES

from torchaca import ACA, Direct, SolverError
from torchaca.executors import EXECUTORS

SLOW = ("loops", "steps")  # PyTorch's compiler
MODES = [
    pytest.param(mode, marks=[pytest.mark.slow] if mode in SLOW else [])
    for mode in EXECUTORS
    if mode and mode != "cuda-graphs"
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_right_or_refused(feature, mode):
    torch.manual_seed(0)
    case = FEATURES[feature]()
    options = {"method": "dopri5", **(STEPS if case.options is None else case.options)}
    right = Truths(case).direct(options)
    for gradient in (ACA(checkpoints="all"), Direct())[: 2 if mode in SLOW else 1]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "compile=")
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            try:
                found = derivative(case, gradient, {**options, "compile": mode})
            except (ValueError, TypeError, NotImplementedError, SolverError) as refusal:
                said = said_by_torchaca(refusal) and INSTEAD.search(str(refusal))
                found = right if said else {}
        assert worst(found, right) <= (case.tolerance or EXACT)
