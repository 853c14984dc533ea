"""The gradient of the ODE's exact solution, as nearly as it can be had, with an estimate of its own error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError
from ..gradients import ACA
from ..torch_internals import pytree
from .model import Grads, Model, Pass, differentiate, distance

METHOD = "dopri8"
COARSER = 100.0  # the next tolerance, in the one that did not come through
ATTEMPTS = 3  # further tolerances tried
SHARE = 0.1  # of the smallest error that is to be judged
FIRST, LEAST = 1e-3, 1e-6  # accuracies of a gradient that are asked for: at first, and at most
FLOOR = 20  # in roundings of the dtype: a lower rtol resolves nothing
DOUBLES = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


@dataclass(frozen=True)
class Reference:
    """The gradient to which the others are compared.

    Attributes
    ----------
    grads : dict
        Input name -> gradient.
    rtol : float
        The tolerance it was found at, with dopri8.
    dtype : torch.dtype
        The precision it was found in; float64 unless f could not be evaluated in it.
    error : float
        Its own relative error, as `ACA(grad_rtol=...)` estimates it.
    outputs : nested tensors
        The solution that it belongs to.
    """

    grads: Grads
    rtol: float
    dtype: torch.dtype
    error: float
    outputs: Any = None


def reference_of(model: Model, rtol: float, judged: Sequence[Grads]) -> Reference | str:
    """The gradient of the ODE's exact solution, or why there is none.

    Never that of one computed solution: its steps may be as much too long for their derivatives as anybody's. It is
    `ACA(grad_rtol=...)`, as accurate as it takes to tell the errors of the gradients that are to be judged.
    """
    if model.random:
        return "f draws random numbers, so there is no ODE with one solution to compare with"
    try:
        with in_double(model) as double:
            return _accurate(double, rtol, judged)
    except (RuntimeError, TypeError, ValueError):  # f cannot be evaluated in float64
        return _accurate(model, rtol, judged)


def _accurate(model: Model, rtol: float, judged: Sequence[Grads]) -> Reference | str:
    rtol = max(rtol, FLOOR * model.eps)
    coarser = COARSER if model.eps < 1e-10 else COARSER**0.5
    reason = ""
    for n in range(ATTEMPTS + 1):
        tried = rtol * coarser**n
        try:
            found = _at(model, tried, FIRST)
            smallest = min((d for g in judged if (d := distance(g, found.grads)) > 0), default=1.0)
            goal = max(SHARE * smallest, LEAST, FLOOR**2 * model.eps)
            if (found.stats.gradient_error or 0.0) > goal:
                found = _at(model, tried, goal)
        except SolverError as error:
            reason = str(error).partition("\n")[0]
            continue
        dtype = pytree.tree_leaves(model.y0)[0].dtype.to_real()
        error = found.stats.gradient_error or 0.0
        return Reference(found.grads, tried, dtype, float(error), found.outputs)
    return f"no tolerance from {rtol:.0e} to {rtol * coarser**ATTEMPTS:.0e} came through: {reason}"


def _at(model: Model, rtol: float, goal: float) -> Pass:
    """A gradient that is right to `goal`, or as nearly as it can be."""
    control = model.options.get("control")
    jumps = getattr(control, "jump_ts", model.options.get("jump_ts"))
    options: dict[str, Any] = {"method": METHOD, "rtol": rtol, "atol": 1e-2 * rtol, "on_failure": "status"}
    if jumps is not None:
        options["jump_ts"] = jumps
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"SolverError\[gradient-error")
        return differentiate(model, ACA(grad_rtol=goal), options)


@contextmanager
def in_double(model: Model) -> Iterator[Model]:
    """The model in double precision: every tensor that f, its arguments or the loss can see, and y0."""
    own = pytree.tree_map(lambda y: y.detach().to(doubled(y)).requires_grad_(), model.y0)
    leaves = zip(pytree.tree_leaves(model.y0), pytree.tree_leaves(own), strict=True)
    swap = {id(old): new for old, new in leaves}
    inputs = {name: swap.get(id(x), x) for name, x in model.inputs.items()}
    with _holding_doubles(model.reached):
        yield replace(model, y0=own, inputs=inputs)


@contextmanager
def _holding_doubles(tensors: Sequence[Tensor]) -> Iterator[None]:
    """The same tensors, as `Module.double()` changes them: in place, so that f sees it wherever it holds them."""
    kept = [(x, x.data) for x in tensors if x.dtype in DOUBLES]
    try:
        for x, data in kept:
            x.data = data.to(doubled(x))
        yield
    finally:
        for x, data in kept:
            x.data = data


def doubled(x: Tensor) -> torch.dtype:
    """The dtype of x in double precision."""
    return DOUBLES.get(x.dtype, x.dtype)
