"""Integrals along a solution, as a part of the state: a running loss, an energy, a regulariser."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import shorten
from .torch_internals import pytree


def with_integral(f: Callable[..., Any], loss: Callable[..., Tensor]) -> WithIntegral:
    """Make the field of the state `(y, integral)`, where d integral / dt = loss(t, y).

    Parameters
    ----------
    f : Module or callable
        `f(t, y, *args)`, as in `torchaca.solve`.
    loss : Module or callable
        `loss(t, y)` or `loss(t, y, dy)`, where dy is f(t, y): 0-dim, or `(B,)` for one integral a sample.

    Returns
    -------
    WithIntegral
        A module, whose parameters are those of f and loss.

    Examples
    --------
    >>> g = with_integral(lambda t, y: -y, lambda t, y, dy: dy.square().sum())
    >>> sol = torchaca.solve(g, g.start(torch.ones(2)), [0.0, 1.0])
    >>> y, integral = sol.ys
    """
    for name, given in (("f", f), ("loss", loss)):
        if isinstance(given, type) or not callable(given):
            raise TypeError(
                f"with_integral(f, loss): {name} must be a function or a module, got {shorten(given)}"
            )
    return WithIntegral(f, loss)


class WithIntegral(nn.Module):
    """The field of `(y, integral)`; made by `with_integral`.

    The integral is a component like any other: its error is controlled, it has the gradient of the method, and
    rejected trials and replays leave nothing behind.
    """

    def __init__(self, f: Callable[..., Any], loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.f, self.loss = f, loss
        self.takes_slope = _takes_three(loss)

    def forward(self, t: Tensor, state: tuple[Any, Tensor], *args: Any) -> tuple[Any, Tensor]:
        """The derivative of y, and that of the integral."""
        y, _ = state
        dy = self.f(t, y, *args)
        return dy, self.loss(t, y, dy) if self.takes_slope else self.loss(t, y)

    def start(self, y0: Any, t0: Any = 0.0, args: tuple[Any, ...] = ()) -> tuple[Any, Tensor]:
        """The state to start from: `(y0, zeros)`.

        Parameters
        ----------
        y0 : Tensor or nested tensors
        t0, args
            Where, and with which further arguments of f, the shape of the loss is found out: one evaluation.

        Raises
        ------
        TypeError
            If the loss is no tensor of real numbers.
        """
        with torch.no_grad():
            like = next(iter(pytree.tree_leaves(y0)))
            t = torch.as_tensor(t0, dtype=like.dtype.to_real(), device=like.device)
            _, rate = self(t, (y0, None), *args)
        if not (isinstance(rate, Tensor) and rate.is_floating_point()):
            raise TypeError(
                f"loss(t, y) returns a real tensor, 0-dim or one number a sample, got {shorten(rate)}"
            )
        return y0, torch.zeros_like(rate)


def _takes_three(loss: Callable[..., Any]) -> bool:
    """Whether a loss takes dy beside t and y."""
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # a builtin
        return False
    try:
        signature.bind(0, 1, 2)
    except TypeError:
        return False
    return True
