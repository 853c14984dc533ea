"""What f returned, in the structure, the shapes and the dtypes of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..numbers import Time, has_lanes, value
from ..state import HALF, Leaf, Structure, described
from ..torch_internals import pytree
from .calling import takes_state_first


def fit(out: Any, structure: Structure, func: Callable[..., Any]) -> Any:
    """`out` in the dtypes of the state, if f returned the state's structure and shapes.

    Half precision where the state is wider is autocast's doing and is widened; any other dtype is an error.

    Raises
    ------
    TypeError, ValueError
        Naming what f returned, what it had to return, and what to try.
    """
    leaves, tree = pytree.tree_flatten(out)
    if tree != structure.tree:
        leaves = structure.leaves_of(out)
    if leaves is None:
        wanted = pytree.tree_unflatten(list(structure.leaves), structure.tree)
        raise TypeError(
            f"f(t, y) returned {described(out)} where the state is {described(wanted)}: return dy/dt in the structure "
            f"of y0{swapped(func)}"
        )
    fitted = []
    for k, leaf in zip(leaves, structure.leaves, strict=True):
        name = f" for y{leaf.path}" if leaf.path else ""
        if not isinstance(k, Tensor):
            raise TypeError(f"f(t, y) returned a {type(k).__name__}{name}, not a tensor{swapped(func)}")
        shape = structure.shape_of(leaf)
        if k.shape != shape:
            raise ValueError(
                f"f(t, y) returned shape {tuple(k.shape)}{name} where the state has {tuple(shape)}: "
                f"dy/dt has the shape of y{swapped(func)}"
            )
        if k.dtype != leaf.dtype:
            if k.is_complex() and not leaf.dtype.is_complex:
                raise TypeError(
                    f"f(t, y) returned {k.dtype}{name} where the state is {leaf.dtype}, which has no imaginary part: "
                    f"convert y0 (y0.to({k.dtype})), or return the real part (dy.real) if that is what you mean"
                )
            if k.dtype not in HALF:
                raise TypeError(
                    f"f(t, y) returned {k.dtype}{name} where the state is {leaf.dtype}: convert y0 "
                    f"(y0.to({k.dtype})) or f's parameters (model.to({leaf.dtype})) so that they agree"
                )
            k = k.to(leaf.dtype)
        fitted.append(k)
    return pytree.tree_unflatten(fitted, structure.tree)


def coerce(out: Any, structure: Structure, func: Callable[..., Any], *, broadcasts: bool = True) -> Any:
    """As `fit`, but converts what torchdiffeq converts: dtypes, but not complex to real, and shapes.

    In a tuple, what has as many entries; for a single tensor, what differs by dimensions of size 1 or, if it
    `broadcasts`, what can be expanded (torchdiffeq does that with fixed steps alone).
    """
    leaves, tree = pytree.tree_flatten(out)
    if len(leaves) == len(structure.leaves) and all(isinstance(k, Tensor) for k in leaves):
        pairs = zip(leaves, structure.leaves, strict=True)
        leaves = [_as(k, leaf, flat=not structure.plain, broadcasts=broadcasts) for k, leaf in pairs]
        tree = structure.tree
    return fit(pytree.tree_unflatten(leaves, tree), structure, func)


def coerce_unexpanded(out: Any, structure: Structure, func: Callable[..., Any]) -> Any:
    """As `coerce`, but nothing is expanded."""
    return coerce(out, structure, func, broadcasts=False)


def _as(k: Tensor, leaf: Leaf, *, flat: bool, broadcasts: bool) -> Tensor:
    if leaf.dtype.is_complex or not k.is_complex():  # else `fit` refuses
        k = k.to(leaf.dtype)
    same = [n for n in k.shape if n != 1] == [n for n in leaf.shape if n != 1]
    if k.numel() == leaf.shape.numel() and (same or (flat and k.ndim == 1)):
        return k.reshape(leaf.shape)
    if flat or not broadcasts:
        return k  # `fit` refuses
    try:
        return k.expand(leaf.shape)
    except RuntimeError:
        return k  # `fit` says it better


def swapped(func: Callable[..., Any]) -> str:
    """A hint where f looks as if it took (y, t)."""
    if advice := takes_state_first(func):
        return f" (f is called as f(t, y); {advice})"
    return " (f is called as f(t, y), in this order)"


def note_first_call(error: Exception, func: Callable[..., Any], t: Time, y: Any) -> None:
    """Add to an error that f itself raised on its first call how f was called; reads no device, which may be broken."""
    on_host = not isinstance(t, Tensor) or (t.device.type == "cpu" and not has_lanes(t))
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(y)]
    flat = isinstance(error, IndexError | RuntimeError) and all(len(shape) < 2 for shape in shapes)
    error.add_note(
        f"torchaca called f(t, y) with t = {value(t) if on_host else 't0'} and y of shape "
        f"{shapes[0] if len(shapes) == 1 else shapes}{swapped(func)}"
        f"{'. If f takes a batch, give it one: y0[None]' if flat else ''}"
    )
