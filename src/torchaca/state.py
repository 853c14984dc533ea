"""Nested state <-> one tensor; the only code that knows that structure exists.

The solver works on one tensor of at least float32. A state that is one such tensor is used as it is, of any
shape. Anything else (nested tuples, lists, dicts; half precision) is packed: leaves are flattened, in the order in
which they lie in memory, and joined in the widest dtype among them, and `f` still sees its own structure, shapes,
memory layouts and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .errors import shorten
from .layout import memory_order, permuted, restored
from .norms import rms
from .torch_internals import pytree

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Leaf:
    """Shape and dtype of one tensor of the state and its place `[start:stop]` in the packed vector.

    `order` is that of its dimensions in memory, if it is packed in another order than theirs.
    """

    path: str
    shape: torch.Size
    dtype: torch.dtype
    start: int
    stop: int
    order: tuple[int, ...] | None = None

    def flat(self, x: Tensor) -> Tensor:
        """The entries of `x`, a tensor of this shape, in packed order; leading dimensions stay."""
        lead = x.shape[: x.ndim - len(self.shape)]
        return (x if self.order is None else permuted(x, self.order)).reshape(*lead, self.stop - self.start)

    def place(self, index: int) -> tuple[int, ...]:
        """Where the entry `index` of what `flat` gives is in the tensor."""
        order = self.order or tuple(range(len(self.shape)))
        where = torch.unravel_index(torch.tensor(index, device="cpu"), [self.shape[d] for d in order])
        return tuple(int(where[order.index(d)]) for d in range(len(order)))

    def shaped(self, part: Tensor) -> Tensor:
        """The inverse of `flat`; leading dimensions stay."""
        lead = part.shape[:-1]
        if self.order is None:
            return part.reshape((*lead, *self.shape))
        return restored(part.reshape((*lead, *(self.shape[d] for d in self.order))), self.order)


@dataclass(frozen=True)
class Structure:
    """How a user's state is packed. `plain`: it is one tensor that needs no packing.

    `lead` are the leading dimensions, of all leaves and of the packed state, that hold independent problems; leaves
    are those of one problem.
    """

    plain: bool
    tree: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    dtype: torch.dtype
    lead: tuple[int, ...] = ()

    def pack(self, state: Any) -> Tensor:
        """The state as one tensor: itself if plain, else `(*lead, sum of the leaves' sizes)`."""
        if self.plain:
            return state
        leaves = zip(self.leaves, pytree.tree_leaves(state), strict=True)
        return torch.cat([leaf.flat(x).to(self.dtype) for leaf, x in leaves], dim=-1)

    def shape_of(self, leaf: Leaf) -> torch.Size:
        """The shape of a leaf, with the leading dimensions."""
        return torch.Size((*self.lead, *leaf.shape))

    @cached_property
    def time_shape(self) -> tuple[int, ...]:
        """`(*lead, 1, ..., 1)`, which broadcasts against the leaf with most dimensions."""
        return *self.lead, *[1] * max(len(leaf.shape) for leaf in self.leaves)

    def unpack(self, packed: Tensor) -> Any:
        """The inverse of `pack`; leading dimensions (times, say) are kept in front of every leaf."""
        if self.plain:
            return packed
        leaves = [
            leaf.shaped(self._restore(packed[..., leaf.start : leaf.stop], leaf)) for leaf in self.leaves
        ]
        return pytree.tree_unflatten(leaves, self.tree)

    def leaves_of(self, nested: Any) -> list[Any] | None:
        """The leaves of `nested` in the state's order (dicts have none of their own), None if its places are others."""
        found = {pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path(nested)[0]}
        places = [leaf.path for leaf in self.leaves]
        return [found[place] for place in places] if found.keys() == set(places) else None

    @staticmethod
    def _restore(part: Tensor, leaf: Leaf) -> Tensor:
        if part.is_complex() and not leaf.dtype.is_complex:
            part = part.real
        return part.to(leaf.dtype)

    def component(self, index: int) -> str:
        """Where the flat entry `index` of a packed state sits in the user's: `"component (3, 1)"`."""
        sample, index = divmod(index, self.leaves[-1].stop) if self.lead else (0, index)
        of = f" of sample {sample}" if self.lead else ""
        for leaf in self.leaves:
            if leaf.start <= index < leaf.stop:
                name = f" of y{leaf.path}" if leaf.path else ""
                return f"component {leaf.place(index - leaf.start)}{name}{of}"
        return f"component {index}{of}"

    def spread(self, tolerance: Any, name: str, like: Tensor) -> float | Tensor:
        """A tolerance for the packed state: a float, or a tensor that broadcasts against it.

        Accepts a number, a tensor that broadcasts against a single-tensor state, or, for a nested state, one
        tolerance per leaf (in the state's structure, a flat sequence or a vector).
        """
        if isinstance(tolerance, (int, float)):
            return float(tolerance)
        if isinstance(tolerance, str):
            raise TypeError(f"{name} must be a number or numbers, got {tolerance!r}")
        if isinstance(tolerance, Tensor) and tolerance.numel() == 1:
            return float(tolerance)
        if self.plain:
            spread = torch.as_tensor(tolerance, dtype=like.real.dtype, device=like.device)
            if not _fits(spread.shape, like.shape):
                raise ValueError(
                    f"{name} of shape {tuple(spread.shape)} does not broadcast against y0 of shape {tuple(like.shape)}"
                )
            return spread
        if isinstance(tolerance, Tensor) and tolerance.ndim == 1:
            parts = list(tolerance)
        else:
            parts = self.leaves_of(tolerance) or pytree.tree_leaves(tolerance)
        if len(parts) != len(self.leaves):
            raise ValueError(
                f"{name} has {len(parts)} entries for a state of {len(self.leaves)} tensors: "
                "give one number, or one per tensor"
            )
        tensors = [torch.as_tensor(part, dtype=like.real.dtype, device=like.device) for part in parts]
        for t, leaf in zip(tensors, self.leaves, strict=True):
            if not _fits(t.shape, self.shape_of(leaf)):
                raise ValueError(
                    f"{name} of shape {tuple(t.shape)} does not broadcast against y0{leaf.path} of shape "
                    f"{tuple(self.shape_of(leaf))}"
                )
        pairs = zip(tensors, self.leaves, strict=True)
        return torch.cat([leaf.flat(t.expand(self.shape_of(leaf))) for t, leaf in pairs], dim=-1)

    def check_batch(self, batch: Any, y0: Tensor) -> None:
        """Refuse what cannot be the number of leading dimensions of y0 that are independent problems.

        Raises
        ------
        ValueError
        """
        most = y0.ndim if self.plain else len(self.lead)
        if not (isinstance(batch, int) and 0 <= batch <= most):
            raise ValueError(
                f"batch is how many leading dimensions of y0 are independent problems: with y0 of shape "
                f"{tuple(y0.shape)} a whole number from 0 to {most}, got {shorten(batch)}"
            )

    def mixed_rms(self, packed: Tensor) -> Tensor:
        """The largest of the leaves' RMS values (torchdiffeq's norm for tuples)."""
        sizes = [leaf.stop - leaf.start for leaf in self.leaves]
        parts = packed.reshape(-1).split(sizes)
        return torch.stack([rms(part) for part in parts]).max()

    def norm_of(self, user: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
        """A user's norm, who sees the user's structure (in the solver's precision)."""
        if self.plain:
            return user

        def norm(packed: Tensor) -> Tensor:
            leaves = [leaf.shaped(packed[leaf.start : leaf.stop]) for leaf in self.leaves]
            return user(pytree.tree_unflatten(leaves, self.tree))

        return norm


def _fits(shape: torch.Size, into: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, into) == into
    except RuntimeError:
        return False


def wide(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The narrowest dtype of at least float32 that holds them all."""
    dtype = torch.float32
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return dtype


LEAF = pytree.tree_structure(0)  # of a single tensor; a walk to find that takes longer than an operation


def structure_of(y0: Any, batch: int = 0) -> Structure:
    """The structure of an initial state; checks that it is made of floating point or complex tensors.

    `batch`: so many leading dimensions, the same ones in all tensors, hold independent problems.

    Raises
    ------
    TypeError
        For a state with anything but tensors of a floating or complex dtype in it.
    ValueError
        For a state without tensors, with tensors on several devices, or with other leading dimensions.
    """
    with_paths, tree = ([((), y0)], LEAF) if isinstance(y0, Tensor) else pytree.tree_flatten_with_path(y0)
    if not with_paths:
        raise ValueError(f"y0 holds no tensor: {y0!r}")
    for path, leaf in with_paths:
        _check_leaf(leaf, pytree.keystr(path))
    tensors: list[Tensor] = [leaf for _, leaf in with_paths]
    if len({x.device for x in tensors}) > 1:
        places = ", ".join(f"y0{pytree.keystr(path)} on {x.device}" for path, x in with_paths)
        raise ValueError(f"y0 has tensors on several devices, {places}: move them to one with .to(device)")
    dtype = wide([x.dtype for x in tensors])
    plain = isinstance(y0, Tensor) and y0.dtype == dtype
    lead = _lead([(f"y0{pytree.keystr(path)}", x) for path, x in with_paths], batch)
    leaves: list[Leaf] = []
    start = 0
    for path, x in with_paths:
        order = None if plain or batch else memory_order(x)
        shape = x.shape[batch:]
        end = start + shape.numel()
        leaves.append(Leaf(pytree.keystr(path), shape, x.dtype, start, end, tuple(order) if order else None))
        start = end
    return Structure(plain, tree, tuple(leaves), dtype, lead)


def _lead(named: Sequence[tuple[str, Tensor]], batch: int) -> tuple[int, ...]:
    """The first `batch` dimensions of all tensors.

    Raises
    ------
    ValueError
        If one has too few, or others.
    """
    (first, x), *_ = named
    for name, other in named:
        if other.ndim < batch:
            raise ValueError(
                f"with batch={batch} the leading dimension of y0 holds the samples, and {name} is 0-dim"
            )
        if other.shape[:batch] != x.shape[:batch]:
            raise ValueError(
                f"batch sizes differ: {first} has {x.shape[0]} samples and {name} has {other.shape[0]} (the leading "
                f"dimensions of shapes {tuple(x.shape)} and {tuple(other.shape)})"
            )
    return tuple(x.shape[:batch])


def described(state: Any) -> str:
    """A structure in words: a tensor, or a container and where its tensors are."""
    if not isinstance(state, tuple | list | dict):
        return "a tensor"
    places = ", ".join(pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(state)[0])
    return f"a {type(state).__name__} with entries {places}"


def _check_leaf(leaf: Any, path: str) -> None:
    name = f"y0{path}"
    if not isinstance(leaf, Tensor):
        kind = type(leaf).__name__
        wrapped = "" if callable(leaf) else f", or wrap it: torch.as_tensor({name}, dtype=torch.float32)"
        article = "an" if kind[0].lower() in "aeiou" else "a"
        raise TypeError(f"{name} is {article} {kind}, not a tensor: the order is f, y0, t{wrapped}")
    if not (leaf.is_floating_point() or leaf.is_complex()):
        raise TypeError(f"{name} has dtype {leaf.dtype}; an ODE state is real or complex: use {name}.float()")


def of_any_size(tolerance: Any) -> Any:
    """The tolerance; if it is for the entries of some y0, another one in its place."""
    if tolerance is None or isinstance(tolerance, int | float | str):
        return tolerance
    if isinstance(tolerance, Tensor) and (tolerance.numel() == 1 or tolerance.requires_grad):
        return tolerance
    return 1.0
