"""f as the solver sees it: packed states, host times, every call counted and checked."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..core import Stats
from ..errors import shorten
from ..numbers import Time, has_lanes
from ..state import HALF, Leaf, Structure
from ..torch_internals import number_of, pytree, results_of
from .calling import NOT_A_LEAF, FlagSettable, refuse_signature
from .devices import explain_devices, refuse_result_elsewhere
from .histories import is_leaf_node


class Dynamics:
    """`f(t, y, *args)` of the user as a function of (host or tensor time, packed state).

    f gets t as a 0-dim tensor in y's real dtype (at least float32), made without waiting for a device. Where f
    calls `autograd.grad` itself (`needs_grad`), it runs with grad mode on, on a detached state, also while the
    solver builds no graph. If f writes `y.requires_grad = True` (`sets_flags`), it gets tensors that allow it even if
    they are not leaves. What the first evaluation showed: `dtypes` are those in which f computes each tensor of
    the state, `gathered` names a parameter that f gathers from other processes for each evaluation, `detached` says
    whether a derivative by the state that f took itself has no graph (None: it took none).
    """

    def __init__(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        structure: Structure,
        y0: Tensor,
        stats: Stats,
        lenient: bool = False,
        broadcasts: bool = True,
    ):
        if isinstance(func, type):
            raise TypeError(f"f is the class {func.__name__}: pass an object of it, {func.__name__}(...)")
        self.func = func
        self.args = tuple(args)
        self.structure = structure
        self.stats = stats
        self.time_dtype = structure.dtype.to_real()
        self.device = y0.device
        self.needs_grad = False
        self.detached: bool | None = None
        self.sets_flags = False
        self.fit = fit if not lenient else coerce if broadcasts else coerce_unexpanded
        self.gathered = ""
        self.dtypes = [leaf.dtype for leaf in structure.leaves]
        self._asked: Time = math.nan
        self._last: tuple[float | None, Tensor | None] = (None, None)
        self._returned: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)

    def with_tensors(self, swap: dict[int, Tensor]) -> Dynamics:
        """The same f with tensors in its arguments exchanged, by id (for a replay's own leaves, say)."""
        if not swap:
            return self
        other = copy(self)
        other.args = pytree.tree_map(lambda leaf: swap.get(id(leaf), leaf), self.args)
        return other

    def time(self, t: Time, nudge: Time | None = None) -> Tensor:
        """`t` as f gets it; with `nudge`, the next representable time towards that one."""
        if nudge is not None:
            exact = self.time(t)
            with torch.no_grad():
                shift = torch.nextafter(exact.detach(), self.time(nudge).detach()) - exact
            self._asked = t
            return exact + shift
        self._asked = t
        if isinstance(t, Tensor):
            return t.to(device=self.device, dtype=self.time_dtype)
        last, made = self._last
        # Stages that end at one time share one tensor: `t is last` also spares the second fill on a device.
        if made is None or t is not last or (not made.is_inference() and made._version):
            made = torch.scalar_tensor(t, dtype=self.time_dtype, device=self.device)  # half of `full`'s time
            self._last = (t, made)
        return made

    def __call__(self, t: Time, y: Tensor, nudge: Time | None = None) -> Tensor:
        self.stats.nfe += 1
        time = self.time(t, nudge)
        if not self.needs_grad:
            try:
                return self.evaluate(time, y)
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                self.needs_grad = True
                self.stats.nfe += 1
        if torch.is_grad_enabled():
            return self.evaluate(time, y if y.requires_grad else y.detach().requires_grad_())
        with torch.enable_grad():
            return self.evaluate(time, y.detach().requires_grad_()).detach()

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

    def evaluate(self, time: Tensor, y: Tensor) -> Tensor:
        """One call of the user's function, packed and checked.

        Raises
        ------
        ValueError
            If f has changed y or t in place.
        """
        structure, versions = self.structure, _versions(time, y)
        try:
            if structure.plain:
                k = self._called(time, y)
                if not isinstance(k, Tensor) or k.shape != y.shape or k.dtype != y.dtype:
                    k = self.fit(k, structure, self.func)
            else:
                k = structure.pack(self.fit(self._called(time, structure.unpack(y)), structure, self.func))
        except RuntimeError as error:
            if "in-place operation" in str(error) and self._writes(time, y):
                raise ValueError(WRITES.format("y")) from error
            raise
        if versions != _versions(time, y):
            raise ValueError(WRITES.format("y" if versions[1:] != _versions(time, y)[1:] else "t"))
        return k

    def evaluate_copy(self, time: Tensor, y: Tensor) -> Tensor:
        """`evaluate` on a copy of y that counts its changes, as what is made in inference mode does not."""
        with torch.inference_mode(False), torch.no_grad():
            copy = y.clone()
        return self.evaluate(time, copy)

    def _writes(self, time: Tensor, y: Tensor) -> bool:
        """Whether f changes a copy of y that it is handed."""
        with torch.no_grad():
            copy = y.detach().clone()
            before = copy._version
            handed = copy if self.structure.plain else self.structure.unpack(copy)
            with suppress(Exception):
                self.func(time.detach().clone(), handed, *self.args)
            return copy._version != before

    def _called(self, time: Tensor, y: Any) -> Any:
        first = self.stats.nfe <= 1
        try:
            out = self._call(time, y)
            if first:
                refuse_result_elsewhere(out, self.func, self.args, y)
                self._note_dtypes(out)
            if isinstance(out, Tensor):
                self._refuse_shared_buffer(out)
            return out
        except StopIteration as error:  # in a generator it would end the steps
            raise RuntimeError(
                f"f raised StopIteration at t = {time.detach().item():g}: it reads an iterator that has ended, but how "
                "often and at which times f is called is up to the solver. Look the value up by t instead"
            ) from error
        except Exception as error:
            if first:
                if isinstance(error, RuntimeError):
                    explain_devices(error, self.func, self.args, y)
                if isinstance(error, TypeError | RuntimeError):
                    refuse_signature(self.func, len(self.args), error)
                _note_first_call(error, self.func, self._asked, y)
            raise

    def _call(self, time: Tensor, y: Any) -> Any:
        """Call f; a second time, on tensors whose flag can be set, if it sets `requires_grad` and must not."""
        if not self.sets_flags:
            try:
                return self.func(time, y, *self.args)
            except RuntimeError as error:
                if NOT_A_LEAF not in str(error):
                    raise
                self.sets_flags = True
                self.stats.nfe += 1
        return self.func(FlagSettable.of(time), pytree.tree_map(FlagSettable.of, y), *self.args)

    def _note_dtypes(self, out: Any) -> None:
        """What f returned, where that is coarser than the state."""
        returned, tree = pytree.tree_flatten(out)
        if tree != self.structure.tree:
            returned = self.structure.leaves_of(out) or []
        for i, (leaf, k) in enumerate(zip(self.structure.leaves, returned, strict=False)):
            if isinstance(k, Tensor) and k.dtype.is_floating_point:
                self.dtypes[i] = coarser(leaf.dtype, k.dtype)

    def note_graph(self, k: Tensor, since: int) -> None:
        """What f computed in on the way to `k`, where that is half precision: nodes from `since` on are f's."""
        self.note_precision(half_inside(k, since))

    def note_precision(self, inside: torch.dtype | None) -> None:
        """In which half precision f computes something, if in any."""
        if inside is not None:
            self.dtypes[:] = [coarser(dtype, inside) for dtype in self.dtypes]

    def _refuse_shared_buffer(self, out: Tensor) -> None:
        """Stages are kept until the step is done: f must not write over one that it returned before."""
        reference, version = self._returned
        before = reference()
        if before is not None and before._version != version:
            raise ValueError(
                "f(t, y) writes into a tensor that it has returned before (a preallocated buffer?): "
                "return buffer.clone()"
            )
        self._returned = (lambda: None, 0) if out.is_inference() else (weakref.ref(out), out._version)


WRITES = (
    "f(t, y) changes {0} in place (an operation with an underscore, an index assignment, out=?): {0} belongs to the "
    "solver, and the solution would be wrong. Work on {0}.clone()"
)


def _versions(time: Tensor, y: Tensor) -> tuple[int, int]:
    """How often each was changed in place; inference tensors do not count."""
    return 0 if time.is_inference() else time._version, 0 if y.is_inference() else y._version


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype with fewer digits."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def half_inside(k: Tensor, since: int) -> torch.dtype | None:
    """The coarsest half precision among the results of the graph nodes made from `since` on, if there is any."""
    found: torch.dtype | None = None
    pending, visited = [k.grad_fn], set[Node]()
    while pending:
        node = pending.pop()
        if node is None or node in visited or number_of(node) < since:
            continue
        visited.add(node)
        if is_leaf_node(node):  # a weight, which f may widen first
            continue
        for made in results_of(node):
            if made.dtype in HALF:
                found = made.dtype if found is None else coarser(found, made.dtype)
        pending.extend(other for other, _ in node.next_functions)
    return found


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
        raise TypeError(
            f"f(t, y) returned {shorten(tree)} where the state is {shorten(structure.tree)}: "
            f"return dy/dt in the structure of y0{_swapped(func)}"
        )
    fitted = []
    for k, leaf in zip(leaves, structure.leaves, strict=True):
        name = f" for y{leaf.path}" if leaf.path else ""
        if not isinstance(k, Tensor):
            raise TypeError(f"f(t, y) returned a {type(k).__name__}{name}, not a tensor{_swapped(func)}")
        if k.shape != leaf.shape:
            raise ValueError(
                f"f(t, y) returned shape {tuple(k.shape)}{name} where the state has {tuple(leaf.shape)}: "
                f"dy/dt has the shape of y{_swapped(func)}"
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


def _swapped(func: Callable[..., Any]) -> str:
    """A hint where f looks as if it took (y, t)."""
    target = getattr(func, "forward", func)
    try:
        names = [name.lower() for name in inspect.signature(target).parameters][:2]
    except (TypeError, ValueError):
        return ""
    if (
        len(names) == 2
        and names[1] in {"t", "time", "s", "tau"}
        and names[0] not in {"t", "time", "s", "tau"}
    ):
        return f" (f is called as f(t, y); yours is f({names[0]}, {names[1]}): pass lambda t, y: f(y, t))"
    return " (f is called as f(t, y), in this order)"


def _note_first_call(error: Exception, func: Callable[..., Any], t: Time, y: Any) -> None:
    """Add to an error that f itself raised on its first call how f was called; reads no device, which may be broken."""
    on_host = not isinstance(t, Tensor) or (t.device.type == "cpu" and not has_lanes(t))
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(y)]
    error.add_note(
        f"torchaca called f(t, y) with t = {float(t) if on_host else 't0'} and y of shape "
        f"{shapes[0] if len(shapes) == 1 else shapes}{_swapped(func)}"
    )
