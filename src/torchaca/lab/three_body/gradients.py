"""How exact each gradient method is on the whole training motion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchaca.errors import SolverError

from ..variants import relative_distance
from .masses import MassFit
from .node import MotionFit
from .settings import Settings

Solved = MassFit | MotionFit


def gradient_errors(settings: Settings, make: Callable[[Settings, str], Solved]) -> dict[str, Any]:
    """The relative error of every method's gradient of the loss of the whole motion.

    Parameters
    ----------
    make : callable
        `make(settings, gradient)` is the model to differentiate, with the weights to do it at.

    Returns
    -------
    dict
        `errors`: by name, beside ACA at the tolerances `settings.reference`; None where a solve failed.
    """
    assert settings.reference is not None
    tolerance = settings.reference
    tight = replace(settings, rtol=tolerance, atol=tolerance, node_tolerance=tolerance)
    truth = _gradient(make(tight, "aca"))
    return {"errors": {name: _error(make(settings, name), truth) for name in settings.gradient}}


def _error(fit: Solved, truth: Tensor) -> float | None:
    try:
        return relative_distance(_gradient(fit), truth)
    except SolverError:
        return None


def _gradient(fit: Solved) -> Tensor:
    loss, _ = fit.whole()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(fit.system.parameters()))])
