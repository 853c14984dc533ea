"""How far apart the gradients of several methods are, in networks that they train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

REFERENCE = "direct"
ALWAYS = ("aca", "naive", "adjoint")
When = Literal["at first", "trained"]
WHEN: tuple[When, ...] = ("at first", "trained")


def compared(names: Iterable[str]) -> list[str]:
    """The methods whose distances are measured: of these the others than the reference, and some in any case."""
    return [name for name in dict.fromkeys((*names, *ALWAYS)) if name != REFERENCE]


def relative_distances(names: Iterable[str], gradient: Callable[[str, When], Tensor]) -> dict[str, float]:
    """|g - g_direct| / |g_direct| of every method, as "NAME at first" and "NAME trained".

    Parameters
    ----------
    names : iterable of str
        Gradient methods, as `compared` takes them.
    gradient : callable
        `gradient(name, when)`: the gradient of one loss with respect to all parameters, flat, at the initial weights
        or at trained ones.
    """
    found = {}
    for when in WHEN:
        truth = gradient(REFERENCE, when)
        for name in compared(names):
            found[f"{name} {when}"] = float((gradient(name, when) - truth).norm() / truth.norm())
    return found


def flat_gradient(module: nn.Module) -> Tensor:
    """`.grad` of all parameters that have one, one after another."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
