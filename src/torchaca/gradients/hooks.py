"""Users' hooks of tensors, which are for whole gradients and not for one replay's share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..torch_internals import hooks_of, stash, stashed


@contextmanager
def hooks_off(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Python hooks of these tensors sleep: they are for whole gradients, not for one replay's share.

    Raises
    ------
    ValueError
        Where a tensor with a history retains its gradient, which is a hook that cannot sleep.
    """
    for tensor in tensors:
        if tensor.retains_grad and not tensor.is_leaf:
            raise ValueError(
                f"f captures a tensor of shape {tuple(tensor.shape)} with retain_grad(): its .grad would hold the "
                "share of one step. Hand the tensor over with args=(tensor, ...), or use gradient='direct'"
            )
    for tensor in tensors:
        _make_whole(tensor)
    outer = in_replay()
    stash(REPLAY, True)
    try:
        yield
    finally:
        stash(REPLAY, outer)


REPLAY = "torchaca: a backward pass is computing shares of gradients"


def in_replay() -> bool:
    """Whether this thread, or the one whose backward pass this thread helps with, computes shares of gradients."""
    return stashed(REPLAY)


class WholeGradients:
    """A user's hook of a tensor, which sleeps while shares of its gradient are computed.

    It takes the place of the hook for good: to take hooks out for the time of a backward pass would take them from
    other threads, too.
    """

    def __init__(self, hook: Callable[[Tensor], Tensor | None]) -> None:
        self.hook = hook

    def __call__(self, grad: Tensor) -> Tensor | None:
        return None if in_replay() else self.hook(grad)


def _make_whole(tensor: Tensor) -> None:
    hooks = hooks_of(tensor)
    if not hooks:
        return
    for key, hook in list(hooks.items()):
        if not isinstance(hook, WholeGradients) and key in hooks:
            hooks[key] = WholeGradients(hook)
