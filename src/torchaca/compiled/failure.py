"""Where compiling fails: one exception that says why, and a PyTorch that is left as it was found."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from ..torch_internals import (
    disable_saved_tensors_hooks,
    enable_forward_grad,
    forward_level,
    get_dynamic_layer_stack_depth,
    get_inplace_requires_grad_allowed,
    is_forward_grad_enabled,
    pop_dynamic_layer_stack_and_undo_to_depth,
    set_inplace_requires_grad_allowed,
    why_hooks_are_disabled,
)

# What PyTorch's compiler says beside the error that it raises, or of an f that it then compiles.
CHATTER = "Dynamo |Error detected in "
DEVICES = ("cpu", "cuda")


EVENTS = "events are found in the eager loop"


class CannotCompile(Exception):
    """Why a solve runs in the eager loop, or in the next executor; the text ends a sentence.

    `final`: others that compile would fail as well, after a while.
    """

    final = False


class TooManyGraphs(CannotCompile):
    """Something that f reads changes again and again."""

    final = True


def wrapped_in(error: BaseException) -> CannotCompile | None:
    """The refusal that Dynamo has wrapped into errors of its own, if that is what it is."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CannotCompile):
        cause = cause.__cause__ or getattr(cause, "inner_exception", None)
    return cause


def first_line(error: BaseException) -> str:
    """What an error of the compiler says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("backend=")]
    told = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")]
    return (told or lines or [type(error).__name__])[0].rstrip(".")


class Modes(NamedTuple):
    """PyTorch's modes at one moment: an attempt to compile leaves those behind in which it failed."""

    grad: bool
    forward_grad: bool
    level: int
    depth: int
    inplace: bool
    hooks: str | None
    autocast: tuple[tuple[bool, torch.dtype], ...]

    @staticmethod
    def now() -> Modes:
        return Modes(
            torch.is_grad_enabled(),
            is_forward_grad_enabled(),
            forward_level(),
            get_dynamic_layer_stack_depth(),
            get_inplace_requires_grad_allowed(),
            why_hooks_are_disabled(),
            tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in DEVICES),
        )

    def restore(self) -> None:
        """Go back to that moment."""
        if get_dynamic_layer_stack_depth() > self.depth:
            pop_dynamic_layer_stack_and_undo_to_depth(self.depth)
        while forward_level() > self.level:
            forward_ad.exit_dual_level()
        set_inplace_requires_grad_allowed(self.inplace)
        disable_saved_tensors_hooks(self.hooks)
        for kind, (enabled, dtype) in zip(DEVICES, self.autocast, strict=True):
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        enable_forward_grad(self.forward_grad)
        torch.set_grad_enabled(self.grad)


@contextlib.contextmanager
def attempt() -> Iterator[None]:
    """Around what compiles: if it fails, modes and random numbers are as before, and only its error is heard."""
    modes, numbers = Modes.now(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=CHATTER)
        warnings.filterwarnings("ignore", module=r"torch\.")  # also where the user has warnings raised
        try:
            yield
        except BaseException:
            modes.restore()
            torch.set_rng_state(numbers)
            raise
