"""Controls: who decides where steps end. Settings of the two of this library, and what any other has to fit."""

from __future__ import annotations

from typing import Any

from .core import Control, End
from .errors import shorten
from .loops.adaptive import Adaptive
from .loops.fixed import FixedSteps
from .loops.rule import I_CONTROL, PI_CONTROL, PID, PID_CONTROL

__all__ = ["I_CONTROL", "PID", "PID_CONTROL", "PI_CONTROL", "Adaptive", "Control", "End", "FixedSteps"]

FACTS, CALLED = ("adaptive", "tensors"), ("moves", "boundaries", "with_tensors", "within")


def check_control(control: Any, option: str = "control") -> Control:
    """Return an object that fits the protocol of a control, `torchaca.core.Control`.

    Raises
    ------
    TypeError
        If something is missing: it says what.
    """
    missing = [name for name in FACTS if not hasattr(control, name)]
    missing += [f"{name}()" for name in CALLED if not callable(getattr(control, name, None))]
    if len(missing) == len(FACTS) + len(CALLED):
        raise TypeError(
            f"{option} must be Adaptive(...), FixedSteps(...) or a control of your own, got {shorten(control)}"
        )
    if missing:
        raise TypeError(
            f"{option}={shorten(control)} is no control: it has no {', '.join(missing)}. docs/adding-a-control.md "
            "says what a control needs"
        )
    if not isinstance(control.adaptive, bool):
        raise TypeError(f"{option}.adaptive is True or False, got {shorten(control.adaptive)}")
    return control
