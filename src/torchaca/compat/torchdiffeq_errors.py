"""Errors that are torchaca's and torchdiffeq's at once, so that programs written for either go on catching them.

torchdiffeq asserts: `max_num_steps exceeded (7>=7)`, `underflow in dt 0.0`, "non-finite values in state `y`: ...". Its
users catch AssertionError and look at how the text begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from ..core import Stats, Times
from ..errors import SolverError, shorten


class OdeintError(SolverError, AssertionError):
    """A `SolverError` that is torchdiffeq's AssertionError as well; `words` are torchdiffeq's, before our diagnosis."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        words: str,
        t: float,
        dt: float,
        stats: Stats,
        backward: bool = False,
    ) -> None:
        super().__init__(kind, message, t=t, dt=dt, stats=stats, backward=backward)
        self.words = words

    @staticmethod
    def of(error: SolverError, control: Any, y0: Tensor) -> OdeintError:
        """The error of a solve from `y0` under `control`."""
        made = OdeintError(
            error.kind,
            error.args[0],
            words=_words(error, control, y0),
            t=error.t,
            dt=error.dt,
            stats=error.stats,
            backward=error.backward,
        )
        made.reached = error.reached
        return made

    def __reduce__(self) -> Any:
        make, *rest = super().__reduce__()
        return partial(make, words=self.words), *rest

    def __str__(self) -> str:
        return f"{self.words}\n{super().__str__()}"


def _words(error: SolverError, control: Any, y0: Tensor) -> str:
    """What torchdiffeq says where a solve stops like this."""
    trials = error.stats.accepted + error.stats.rejected
    if getattr(control, "adaptive", False):
        if trials >= control.max_steps:
            return f"max_num_steps exceeded ({trials}>={control.max_steps})"
        # It shrinks a step that ends in nan until time has no smaller one, or takes the smallest that it may.
        if control.dt_min > 0 or (error.kind == "y0" and control.dt0 is not None):
            state = shorten(y0.detach(), 200) if error.kind == "y0" else f"at t = {error.t:.10g}"
            return f"non-finite values in state `y`: {state}"
    return f"underflow in dt {error.dt}"


class InvalidValue(ValueError, AssertionError):
    """An argument that torchdiffeq asserts about."""


class InvalidType(TypeError, AssertionError):
    """An argument of a type that torchdiffeq asserts about."""


@contextmanager
def asserted() -> Iterator[None]:
    """Around checks of arguments: their errors can be caught as AssertionError too."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise
        both = InvalidType if isinstance(error, TypeError) else InvalidValue
        raise both(*error.args).with_traceback(error.__traceback__) from error.__cause__


def check_tolerance(tolerance: Any, name: str) -> None:
    """Refuse a tolerance that wants a gradient, of which there is none.

    Raises
    ------
    InvalidValue
    """
    parts = tolerance if isinstance(tolerance, tuple | list) else (tolerance,)
    if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        raise InvalidValue(f"{name} cannot require gradient: pass {name}.detach()")


def check_grid(grid: Times, ts: Times) -> None:
    """Refuse a grid that does not go from the first output time to the last.

    Raises
    ------
    InvalidValue
    """
    (start, *_), (*_, end) = ts.values, ts.values
    for name, mine, theirs in (("start", grid.values[0], start), ("end", grid.values[-1], end)):
        if abs(mine - theirs) > 1e-6 * abs(end - start):
            raise InvalidValue(
                f"grid_constructor's grid must {name} where t does: {mine:g} is not {theirs:g}"
            )
