"""The gradient of the ODE's exact solution, as nearly as it can be had, with an estimate of its own error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError
from ..torch_internals import pytree
from .model import Grads, Model, Pass, differentiate, distance

METHOD = "dopri8"
COARSER = 100.0  # the second reference's tolerance, in the first one's
ATTEMPTS = 3  # tolerances tried, each `COARSER` than the one before, until two neighbours come through
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
        Its distance from the same at a coarser tolerance, relative to its size: more than its own error.
    """

    grads: Grads
    rtol: float
    dtype: torch.dtype
    error: float


def reference_of(model: Model, rtol: float) -> Reference | str:
    """The gradient of the ODE's exact solution, or why there is none."""
    if model.random:
        return "f draws random numbers, so there is no ODE with one solution to compare with"
    try:
        with in_double(model) as double:
            return _converged(double, rtol)
    except (RuntimeError, TypeError, ValueError):  # f cannot be evaluated in float64
        return _converged(model, rtol)


def _converged(model: Model, rtol: float) -> Reference | str:
    rtol, before = max(rtol, FLOOR * model.eps), None
    coarser = COARSER if model.eps < 1e-10 else COARSER**0.5
    reason = ""
    for n in range(ATTEMPTS + 1):
        try:
            found = _at(model, rtol * coarser**n)
        except SolverError as error:
            before, reason = None, str(error).partition("\n")[0]
            continue
        if before is not None:
            dtype = pytree.tree_leaves(model.y0)[0].dtype.to_real()
            finest = rtol * coarser ** (n - 1)
            return Reference(before.grads, finest, dtype, distance(found.grads, before.grads))
        before = found
    return f"no tolerance from {rtol:.0e} to {rtol * coarser**ATTEMPTS:.0e} came through: {reason}"


def _at(model: Model, rtol: float) -> Pass:
    control = model.options.get("control")
    jumps = getattr(control, "jump_ts", model.options.get("jump_ts"))
    options: dict[str, Any] = {"method": METHOD, "rtol": rtol, "atol": 1e-2 * rtol}
    return differentiate(model, "aca", **options, **({} if jumps is None else {"jump_ts": jumps}))


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
