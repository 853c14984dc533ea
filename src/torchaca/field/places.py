"""Places that f reads from: which values stood there in the forward pass, put back for the backward pass.

A backward pass that evaluates f again needs f as it was: an attribute that was bound anew since (a control of each
segment, weights lent by `torch.func.functional_call`, `module.eval()`) is bound to its old value while it runs.
Global variables are not, since they are everybody's: where one makes f give other values, that is an error.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

Path = tuple[Any, ...]
"""Where something was found, `(path of its owner, key)`; written out by `label` when somebody has to read it."""

MISSING: Any = object()


def label(path: Path) -> str:
    """Write a path in words: `"f.net.0.weight"`."""
    owner, *rest = path
    text = label(owner) if isinstance(owner, tuple) else str(owner)
    return text + "".join(str(key) for key in rest)


class Place(NamedTuple):
    """`value` stands at `key` of `holder`: a dict, a list, a closure's cell, a class, or an object with slots.

    `public`: the holder is a module's namespace, which code that has nothing to do with f reads as well.
    """

    path: Path
    holder: Any
    key: Any
    value: Any
    public: bool = False

    def now(self) -> Any:
        """Read what stands there at present; `MISSING` if there is nothing."""
        holder, key = self.holder, self.key
        if isinstance(holder, dict):
            return dict.get(holder, key, MISSING)
        if isinstance(holder, types.CellType):
            try:
                return holder.cell_contents
            except ValueError:
                return MISSING
        if isinstance(holder, list):
            return holder[key] if key < len(holder) else MISSING
        if isinstance(holder, type):
            return vars(holder).get(key, MISSING)
        return getattr(holder, key, MISSING)

    def put(self, value: Any) -> None:
        """Bind the place to a value; `MISSING` removes what stands there."""
        holder, key = self.holder, self.key
        if isinstance(holder, types.CellType):
            if value is MISSING:
                del holder.cell_contents
            else:
                holder.cell_contents = value
        elif isinstance(holder, list):
            if key < len(holder) and value is not MISSING:
                holder[key] = value
        elif isinstance(holder, dict):
            if value is MISSING:
                dict.pop(holder, key, None)
            else:
                dict.__setitem__(holder, key, value)
        elif value is MISSING:
            delattr(holder, key)
        elif isinstance(holder, type):
            setattr(holder, key, value)
        else:
            object.__setattr__(holder, key, value)

    @property
    def identity(self) -> tuple[int, Any]:
        return id(self.holder), self.key


_LOCK = threading.Lock()
_IN_USE: dict[int, list[Reads]] = {}  # of each thread: the solves and backward passes that are under way
_PUT_BACK: dict[int, list[Place]] = {}  # of each thread: the places that hold their old values just now


@dataclass(eq=False)
class Reads:
    """The places that f reads from, with the values that the forward pass found there.

    `containers` are those that were found, with their lengths. `settled` is set at the end of the forward pass: what f
    itself has changed by then (a counter, a list that it fills) is its own, and stays as it is.
    """

    places: list[Place] = field(default_factory=list)
    containers: list[tuple[Path, Any, int]] = field(default_factory=list)
    settled: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that stand in these places."""
        return [place.value for place in self.places if isinstance(place.value, Tensor)]

    @property
    def filled(self) -> list[Any]:
        """The containers that have another length now."""
        return [container for _, container, length in self.containers if len(container) != length]

    def renew(self) -> list[Place]:
        """Take the values that stand there now; returns the places that have changed."""
        changed = []
        for i, place in enumerate(self.places):
            now = place.now()
            if now is not place.value:
                self.places[i] = place._replace(value=now)
                changed.append(self.places[i])
        return changed

    def settle(self) -> None:
        """End the forward pass: leave out what f has changed itself."""
        if not self.settled:
            filled = {id(container) for container in self.filled}
            self.places = [
                place for place in self.places if place.now() is place.value and id(place.value) not in filled
            ]
            self.containers, self.settled = [], True

    def changed(self) -> list[Place]:
        """The places that somebody has bound to other values since the forward pass."""
        return [place for place in self.places if place.now() is not place.value] if self.settled else []

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Around a solve: no other thread may put other values into these places meanwhile.

        Raises
        ------
        RuntimeError
            If another thread's backward pass has done so just now.
        """
        me = threading.get_ident()
        with _LOCK:
            if _PUT_BACK:
                others = [place for thread, places in _PUT_BACK.items() if thread != me for place in places]
                _refuse_shared(others, self.places)
            mine = _IN_USE.setdefault(me, [])
            mine.append(self)
        try:
            yield
        finally:
            with _LOCK:
                mine.remove(self)
                if not mine:
                    del _IN_USE[me]

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Around a backward pass: the forward pass's values stand in their places.

        Raises
        ------
        RuntimeError
            If another thread is evaluating the same f.
        """
        changed = [place for place in self.changed() if not place.public]
        with self.in_use():
            if not changed:
                yield
                return
            me = threading.get_ident()
            with _LOCK:
                in_use = [
                    reads for thread, all_reads in _IN_USE.items() if thread != me for reads in all_reads
                ]
                _refuse_shared(changed, [place for reads in in_use for place in list(reads.places)])
                before = [(place, place.now()) for place in changed]
                outer = _PUT_BACK.get(me, [])
                _PUT_BACK[me] = outer + changed
                for place in changed:
                    place.put(place.value)
            try:
                yield
            finally:
                with _LOCK:
                    for place, value in before:
                        place.put(value)
                    if outer:
                        _PUT_BACK[me] = outer
                    else:
                        del _PUT_BACK[me]


def _refuse_shared(changed: Iterable[Place], used: Iterable[Place]) -> None:
    used_here = {place.identity for place in used}
    for place in changed:
        if place.identity in used_here:
            raise RuntimeError(
                f"{label(place.path)} was bound to another value between a solve and its backward pass, which needs "
                "the old one, and another thread evaluates the same f just now: give each thread an f of its own "
                "(copy.deepcopy), hand the value over with args=(value, ...), or use gradient='direct'"
            )
