"""An event on packed states: its value, checked, and how fast it changes along the solution.

Of a batch, what is said here of a number holds for each sample: `(*lead,)` with the `lead` of the state's structure,
which is empty if there are no samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..errors import shorten
from ..field.dynamics import Dynamics
from ..loops.lanes import LANES
from ..norms import each
from ..numbers import Time, column, has_lanes, on_host
from ..torch_internals import pytree, transformed
from .event import Event

G_WRITES = (
    "g(t, y) changes y in place (an operation with an underscore, an index assignment, out=?): y belongs to the "
    "solver, and the solution would be wrong. Work on y.clone(); apply= is for changes of the state"
)


@dataclass(frozen=True, eq=False)
class Guard:
    """An event of a problem, number `index` of them."""

    event: Event
    index: int
    field: Dynamics

    def __call__(self, t: Time, y: Tensor) -> Tensor:
        """g at a packed state, `(*lead,)`.

        Raises
        ------
        TypeError, ValueError
            If that is no real number, or if g writes into the state.
        """
        f, counted = self.field, not y.is_inference()
        before = y._version if counted else 0
        given = self.event.g(f.time(t), f.structure.unpack(y), *f.args)
        if counted and y._version != before:
            raise ValueError(f"{self.name}: {G_WRITES}")
        if not isinstance(given, Tensor):
            raise TypeError(f"{self.name}: g(t, y) must return {self._wanted}, got {shorten(given)}")
        given = self._of_each(given)
        if given.is_complex() or not given.is_floating_point():
            raise TypeError(
                f"{self.name}: g(t, y) must be a real floating-point number, whose sign changes; got {given.dtype}"
            )
        if has_lanes(given):
            raise NotImplementedError(LANES)
        return given

    @property
    def name(self) -> str:
        """For messages."""
        return f"events[{self.index}]"

    @property
    def batch(self) -> int:
        """How many leading dimensions hold samples."""
        return len(self.field.structure.lead)

    @property
    def _wanted(self) -> str:
        if not self.batch:
            return "a 0-dim tensor"
        (n,) = self.field.structure.lead
        return f"one number for each sample, of shape ({n},) or ({n}, 1)"

    def _of_each(self, given: Tensor) -> Tensor:
        """What g has returned, in the shape that numbers have; `(B, 1, ..., 1)` is as good as `(B,)`."""
        lead, shape = tuple(self.field.structure.lead), tuple(given.shape)
        if shape == lead:
            return given
        if lead and shape[:1] == lead and given.numel() == len(given):
            return given.reshape(lead)
        if not lead:
            instead = (
                "write one Event for each, or .min()" if given.numel() > 1 else "write g(t, y).squeeze()"
            )
        elif shape == (*lead, *lead):
            instead = "t is (B, 1, ..., 1) and broadcasts against y, not against y[..., 0]: write t.flatten()"
        else:
            instead = "write one Event for each, or .flatten(1).amin(1)"
        raise ValueError(f"{self.name}: g(t, y) must return {self._wanted}, got shape {shape}: {instead}")

    def applied(self, t: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The packed state after the event, of the samples of the `mask`; apply may write into what it gets.

        Raises
        ------
        TypeError, ValueError
            If it is not one in the structure, shapes and dtypes of the state, or not finite.
        """
        if self.event.apply is None:
            return y
        f = self.field
        structure, before = f.structure, f.structure.unpack(y.clone())
        after = self.event.apply(f.time(t), before, *f.args)
        leaves = structure.leaves_of(after)
        if leaves is None or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise TypeError(
                f"{self.name}: apply(t, y) must return the structure of y, {_shapes(before)}, got {shorten(after)}"
            )
        for leaf, own in zip(leaves, pytree.tree_leaves(before), strict=True):
            if (leaf.shape, leaf.dtype) != (own.shape, own.dtype):
                raise ValueError(
                    f"{self.name}: apply(t, y) must keep shapes and dtypes: a tensor of shape {tuple(own.shape)} and "
                    f"{own.dtype} became one of shape {tuple(leaf.shape)} and {leaf.dtype}"
                )
        after = structure.pack(pytree.tree_unflatten(leaves, structure.tree))
        bad = ~each(torch.isfinite(after), self.batch).all(-1)
        bad = bad if mask is None else bad & mask
        if bool(bad.any()):
            at = t.reshape(-1)[int(bad.reshape(-1).int().argmax())].item()
            raise ValueError(f"{self.name}: apply(t, y) returned nan or inf at t = {at:g}")
        return after if mask is None else torch.where(column(mask, y, self.batch), after, y)

    def rate(self, t: Time, y: Tensor, slope: Tensor, size: float) -> tuple[float, float]:
        """`along` as host numbers."""
        g, rate = on_host(*self.along(t, y, slope, size))
        return g, rate

    def along(self, t: Time, y: Tensor, slope: Tensor, size: float | Tensor) -> tuple[Tensor, Tensor]:
        """g, and how fast it changes along the solution, where dy/dt is `slope`, in a step of that `size`."""
        if (
            torch.is_inference_mode_enabled()
        ):  # where nothing can be differentiated, and nobody wants more than this
            return self._difference(t, y, slope, size)
        found, by_t, by_y = self._slopes_in_transform(t, y) if transformed() else self._slopes(t, y)
        rate = each(by_t.double(), self.batch).sum(-1)
        return found.double(), rate if by_y is None else rate + inner(by_y, slope, self.batch)

    def _difference(self, t: Time, y: Tensor, slope: Tensor, size: float | Tensor) -> tuple[Tensor, Tensor]:
        """The same by a difference."""
        off = torch.finfo(y.dtype.to_real()).eps ** (1 / 3) * size
        before, now, after = (
            self(t + part, y + column(part, y, self.batch) * slope).double() for part in (-off, 0 * off, off)
        )
        return now, (after - before) / (2 * off)

    def _slopes_in_transform(self, t: Time, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g, and its derivatives by t and y, inside a torch.func transform."""
        time = self.field.time(t).detach()
        with torch.enable_grad():
            found, pulled, *_ = torch.func.vjp(self, time, y.detach())
            by_t, by_y = pulled(torch.ones_like(found))
        return found.detach(), by_t.detach(), by_y.detach()

    def _slopes(self, t: Time, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same outside of them; the last one is None if g does not depend on y."""
        with torch.enable_grad():
            state = y.detach().clone().requires_grad_()
            time = self.field.time(t).detach().clone().requires_grad_()
            found = self(time, state)
            if not found.requires_grad:
                return found.detach(), torch.zeros_like(time), None
            by_t, by_y = torch.autograd.grad(found.sum(), [time, state], allow_unused=True)
        return found.detach(), torch.zeros_like(time) if by_t is None else by_t, by_y


def inner(a: Tensor, b: Tensor, batch: int = 0) -> Tensor:
    """The real inner product of two tensors, or of those in so many leading dimensions, in float64."""
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    return each(a.double() * b.double(), batch).sum(-1)


def guards_of(p: Problem, events: tuple[Event, ...]) -> tuple[Guard, ...]:
    """The events of a problem, on its packed states."""
    call: Any = p.f.call
    return tuple(Guard(event, i, call) for i, event in enumerate(events))


def _shapes(state: Any) -> Any:
    return pytree.tree_map(lambda x: tuple(x.shape), state)
