"""f as the solver sees it: packed states, host times, every call counted and checked."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..core import Stats
from ..numbers import Time
from ..state import Structure
from ..torch_internals import pytree
from .calling import NOT_A_LEAF, call_with_flags, refuse_signature
from .devices import explain_devices, explain_dtypes, refuse_result_elsewhere
from .fitting import fit, note_first_call
from .histories import coarser


@dataclass(eq=False)
class Dynamics:
    """`f(t, y, *args)` of the user as a function of (host or tensor time, packed state).

    f gets t as a 0-dim tensor in y's real dtype (at least float32), made without waiting for a device. If the state is
    a batch, it is `(B, 1, ..., 1)`; a host number stands for `start`, the times at which the samples start, or without
    them for one time of all. If f calls `autograd.grad` itself (`needs_grad`), it runs with grad mode on, on a detached
    state, also while the solver builds no graph. If f writes `y.requires_grad = True`, it gets tensors that allow it
    even if they are not leaves. `fit` takes what f returns. What the first evaluation showed: `gathered` names a
    parameter that f gathers from other processes for each evaluation, `detached` says whether a derivative by the state
    that f took itself has no graph (None: it took none). The last `rows` arguments have one for each sample.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    structure: Structure
    device: torch.device
    stats: Stats
    fit: Callable[..., Any] = fit
    needs_grad: bool = False
    detached: bool | None = None
    gathered: str = ""
    start: Tensor | None = None
    rows: int = 0
    _caller: Callable[..., Any] | None = None
    _asked: Time = math.nan
    _last: tuple[float | None, Tensor | None] = (None, None)
    _returned: tuple[weakref.ref[Tensor], int] | None = None
    _some: tuple[Tensor, Dynamics, bool] | None = None

    @cached_property
    def time_dtype(self) -> torch.dtype:
        """In which f gets the time."""
        return self.structure.dtype.to_real()

    @cached_property
    def dtypes(self) -> list[torch.dtype]:
        """In which f computes each tensor of the state, as far as is known."""
        return [leaf.dtype for leaf in self.structure.leaves]

    def with_tensors(self, swap: dict[int, Tensor]) -> Dynamics:
        """The same f with tensors in its arguments exchanged, by id (for a replay's own leaves, say)."""
        if not swap:
            return self
        other = copy(self)
        other.dtypes, other._some = self.dtypes, None  # what one evaluation shows holds for both
        other.args = pytree.tree_map(lambda leaf: swap.get(id(leaf), leaf), self.args)
        return other

    def starting(self, start: Tensor, rows: int) -> Dynamics:
        """The same f of samples that start at other times; so many of its last arguments have one row for each."""
        other = copy(self)
        other.dtypes, other._some = self.dtypes, None
        other.start, other.rows = start, rows
        return other

    def fewer(self, index: Tensor) -> Dynamics:
        """The same f of some samples of a batch, those of the index."""
        n = len(self.args) - self.rows
        if self._some is None or self._some[0] is not index:
            other = copy(self)
            other.dtypes, other._some = self.dtypes, None
            other.structure = replace(self.structure, lead=(len(index),))
            other.start = None if self.start is None else self.start[index]
            other.args = (*self.args[:n], *(_of_some(x, index) for x in self.args[n:]))
            self._some = index, other, any(x.requires_grad for x in pytree.tree_leaves(other.args[n:]))
            return other
        _, other, attached = self._some
        if attached:  # they may belong to the graph of one step
            other = copy(other)
            other.args = (*self.args[:n], *(_of_some(x, index) for x in self.args[n:]))
        return other

    def time(self, t: Time, nudge: Time | None = None) -> Tensor:
        """`t` as f gets it; with `nudge`, the next representable time towards that one."""
        if nudge is not None:
            exact = self.time(t)
            with torch.no_grad():
                at = exact.detach()
                shift = torch.nextafter(at, self.time(nudge).detach()) - at
            self._asked = t
            return exact + shift
        self._asked = t
        if self.structure.lead:
            return self._of_samples(t)
        if isinstance(t, Tensor):  # one that fits is not touched: somebody may watch what f does with it
            fits = t.dtype == self.time_dtype and t.device == self.device
            return t if fits else t.to(device=self.device, dtype=self.time_dtype)
        last, made = self._last
        # Stages that end at one time share one tensor: `t is last` also spares the second fill on a device.
        if made is None or t is not last or (not made.is_inference() and made._version):
            made = torch.scalar_tensor(t, dtype=self.time_dtype, device=self.device)  # half of `full`'s time
            self._last = (t, made)
        return made

    def _of_samples(self, t: Time) -> Tensor:
        """The time of each sample, which broadcasts against its state."""
        shape, dtype = self.structure.time_shape, self.time_dtype
        if not isinstance(t, Tensor):
            t = torch.scalar_tensor(t, dtype=dtype, device=self.device) if self.start is None else self.start
        t = t.to(device=self.device, dtype=dtype)
        if t.shape == shape:
            return t
        return t.reshape(shape) if t.ndim else t.expand(shape)

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        """One evaluation, counted and checked; with `nudge`, at the next representable time towards that one.

        Raises
        ------
        ValueError
            If f changes y or t in place, or writes into a tensor that it has returned before.
        """
        self.stats.nfe += 1
        time = self.time(t, nudge)
        if self.needs_grad and not (y.requires_grad and torch.is_grad_enabled()):
            return self._differentiating(time, y)
        first, structure, versions = self.stats.nfe <= 1, self.structure, _versions(time, y)
        fit = self._fit_first if first else self.fit
        while True:
            try:
                state = y if structure.plain else structure.unpack(y)
                k = received(
                    (self._caller or self.func)(time, state, *self.args), y, structure, fit, self.func
                )
                break
            except Exception as error:
                if not self._can_repeat(error, time, y, first):
                    raise
            self.stats.nfe += 1
            if self.needs_grad and not (y.requires_grad and torch.is_grad_enabled()):
                return self._differentiating(time, y)
        if versions != _versions(time, y):
            raise ValueError(WRITES.format("y" if versions[1:] != _versions(time, y)[1:] else "t"))
        if first and k.device != self.device:
            refuse_result_elsewhere(k, self.func, self.args, self.device)
        self._refuse_shared_buffer(k)
        return k

    def _differentiating(self, time: Tensor, y: Tensor) -> Tensor:
        """The same of an f that differentiates its state itself, with a state that allows it."""
        self.stats.nfe -= 1
        if torch.is_grad_enabled():
            return self(time, y.detach().requires_grad_())
        with torch.enable_grad():
            return self(time, y.detach().requires_grad_()).detach()

    @contextmanager
    def observing(self, state: Tensor) -> Iterator[None]:
        """Around an evaluation at `state`: note whether f differentiates it, and whether it keeps a graph of that."""
        if not state.requires_grad:
            yield
            return

        def seen(grad: Tensor) -> None:
            self.needs_grad = True
            self.detached = not grad.requires_grad

        hook = state.register_hook(seen)
        try:
            yield
        finally:
            hook.remove()

    def evaluate(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        """The same, not counted."""
        self.stats.nfe -= 1
        return self(t, y, nudge)

    def _writes(self, time: Tensor, y: Tensor) -> bool:
        """Whether f changes a copy of y that it is handed."""
        with torch.no_grad():
            copy = y.detach().clone()
            before = copy._version
            handed = copy if self.structure.plain else self.structure.unpack(copy)
            with suppress(Exception):
                self.func(time.detach().clone(), handed, *self.args)
            return copy._version != before

    def _can_repeat(self, error: Exception, time: Tensor, y: Tensor, first: bool) -> bool:
        """Whether f has to be called once more, on tensors that allow what it does; explains errors that it made.

        Raises
        ------
        RuntimeError, ValueError, TypeError
            For an error whose cause is known.
        """
        text = str(error) if isinstance(error, RuntimeError) else ""
        if NOT_A_LEAF in text and self._caller is None:
            self._caller = partial(call_with_flags, self.func)
            return True
        if "does not require grad" in text and not (y.requires_grad and torch.is_grad_enabled()):
            self.needs_grad = True
            return True
        if isinstance(error, StopIteration):  # in a generator it would end the steps
            raise RuntimeError(
                f"f raised StopIteration at t = {time.detach().item():g}: it reads an iterator that has ended, but how "
                "often and at which times f is called is up to the solver. Look the value up by t instead"
            ) from error
        if first:
            state = self.structure.unpack(y)
            if isinstance(error, RuntimeError):
                explain_devices(error, self.func, self.args, self.device)
                explain_dtypes(error, self.func, self.args, [leaf.dtype for leaf in self.structure.leaves])
            if isinstance(error, TypeError | RuntimeError | IndexError):
                refuse_signature(self.func, len(self.args), error)
            note_first_call(error, self.func, self._asked, state)
        if "in-place operation" in text and self._writes(time, y):
            raise ValueError(WRITES.format("y")) from error
        return False

    def _fit_first(self, out: Any, structure: Structure, func: Callable[..., Any]) -> Any:
        """`fit` for what the first call returned; looks at its devices, and notes dtypes that are coarser than y's."""
        refuse_result_elsewhere(out, self.func, self.args, self.device)
        returned, tree = pytree.tree_flatten(out)
        if tree != structure.tree:
            returned = structure.leaves_of(out) or []
        for i, (leaf, k) in enumerate(zip(structure.leaves, returned, strict=False)):
            if isinstance(k, Tensor) and k.dtype.is_floating_point:
                self.dtypes[i] = coarser(leaf.dtype, k.dtype)
        return self.fit(out, structure, func)

    def note_precision(self, inside: torch.dtype | None) -> None:
        """In which half precision f computes something, if in any."""
        if inside is not None:
            self.dtypes[:] = [coarser(dtype, inside) for dtype in self.dtypes]

    def _refuse_shared_buffer(self, out: Tensor) -> None:
        """Stages are kept until the step is done: f must not write over one that it returned before."""
        if self._returned is not None:
            before = self._returned[0]()
            if before is not None and before._version != self._returned[1]:
                raise ValueError(
                    "f(t, y) writes into a tensor that it has returned before (a preallocated buffer?): "
                    "return buffer.clone()"
                )
        self._returned = None if out.is_inference() else (weakref.ref(out), out._version)


def packed(
    func: Callable[..., Any], structure: Structure, fit: Any, t: Tensor, y: Tensor, args: Sequence[Any]
) -> Tensor:
    """One call of the user's function on a packed state, so that Dynamo can trace it."""
    state = y if structure.plain else structure.unpack(y)
    return received(func(t, state, *args), y, structure, fit, func)


def received(k: Any, y: Tensor, structure: Structure, fit: Any, func: Callable[..., Any]) -> Tensor:
    """What f has returned for the packed state `y`, packed."""
    if not structure.plain:
        return structure.pack(fit(k, structure, func))
    return (
        k if isinstance(k, Tensor) and k.shape == y.shape and k.dtype == y.dtype else fit(k, structure, func)
    )


WRITES = (
    "f(t, y) changes {0} in place (an operation with an underscore, an index assignment, out=?): {0} belongs to the "
    "solver, and the solution would be wrong. Work on {0}.clone()"
)


@torch.enable_grad()
def _of_some(rows: Any, index: Tensor) -> Any:
    """An argument with rows, of some samples; whoever evaluates f later may want a graph."""
    if isinstance(rows, Tensor):
        return rows.index_select(0, index)
    return pytree.tree_map(lambda x: x.index_select(0, index), rows)


def _versions(time: Tensor, y: Tensor) -> tuple[int, int]:
    """How often each was changed in place; inference tensors do not count."""
    return 0 if time.is_inference() else time._version, 0 if y.is_inference() else y._version
