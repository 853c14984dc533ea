"""Which states ACA keeps, and how it gets the others back in reverse order.

The number of steps of an adaptive solve is not known in advance, so states are kept online: evenly spaced, and when
there are too many, every other one is dropped and the spacing doubles. The backward pass knows the number of steps
and fills the stretches between kept states by Revolve (Griewank, Walther, ACM TOMS 26 (2000) 19): the fewest
recomputed steps for a given number of states alive at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor

from ..core import Step

if TYPE_CHECKING:
    from .sweep import Replay

S = TypeVar("S")
Advance = Callable[[S, int, int], S]
"""`advance(y, a, b)`: the state at the start of step b, from the state y at the start of step a."""


@dataclass
class Shelf(Generic[S]):
    """Keeps states of steps 0, 1, 2, ... as they come, never more than `limit(n)` after n of them."""

    limit: Callable[[int], float]
    states: dict[int, S] = field(default_factory=dict)
    spacing: int = 1

    def put(self, n: int, state: S) -> None:
        if n % self.spacing == 0:
            self.states[n] = state
        while len(self.states) > self.limit(n + 1):
            self.spacing *= 2
            self.states = {i: kept for i, kept in self.states.items() if i % self.spacing == 0}


class States:
    """The store of `aca`: the states that steps started from, or some of them, from which others are computed again."""

    def __init__(self, checkpoints: str | int) -> None:
        self.checkpoints = checkpoints
        self.shelf = Shelf[Tensor](limit_of(checkpoints))
        self.kept: Sequence[int] = ()

    def keep(self, n: int, start: Tensor, step: Step) -> None:
        """See `Store`."""
        self.shelf.put(n, start)

    def tensors(self, n_steps: int) -> list[Tensor]:
        """Hand over the states; see `Store`."""
        states, self.shelf = self.shelf.states, Shelf(limit_of(self.checkpoints))
        self.kept = worth_keeping([n for n in states if n < n_steps], n_steps, self.checkpoints)
        return [states[n] for n in self.kept]

    def reversed(self, kept: Sequence[Tensor], replay: Replay) -> Iterator[tuple[int, Tensor]]:
        """Compute the states between those that were kept; see `Store`."""
        states = dict(zip(self.kept, kept, strict=True))
        return reverse(states, replay.n_steps, self.checkpoints, replay.advance)


def limit_of(checkpoints: str | int) -> Callable[[int], float]:
    """How many states may be kept after n steps.

    "all": every one. An integer: that many. "sqrt": about 2 sqrt(n). "binomial": about log2(n).
    """
    if checkpoints == "all":
        return lambda n: math.inf
    if checkpoints == "sqrt":
        return lambda n: 2 * math.isqrt(n) + 1
    if checkpoints == "binomial":
        return lambda n: 1 + max(1, math.ceil(math.log2(n + 1)))
    count = int(checkpoints)
    return lambda n: count


def free_slots(checkpoints: str | int, n_steps: int, kept: int) -> float:
    """How many further states may be alive beside the `kept` ones, all of which autograd holds to the end."""
    if checkpoints == "all":
        return 0
    if checkpoints == "sqrt":
        return math.inf  # one stretch is about sqrt(n) long
    return limit_of(checkpoints)(n_steps) - kept


def revolve(length: int, states: int) -> int:
    """Steps to compute anew, at least, to reverse `length` steps with so many states, the first one among them.

    Griewank and Walther, ACM TOMS 26 (2000) 19, equation 3.
    """
    if length <= 1:
        return 0
    repeats = 1
    while math.comb(states + repeats, states) < length:
        repeats += 1
    return repeats * length - math.comb(states + repeats, states + 1)


def worth_keeping(kept: Sequence[int], n_steps: int, checkpoints: str | int) -> Sequence[int]:
    """Of the kept states those that save most: all of them stay alive, and leave less for what lies between them.

    Never more work than with the first state alone, which is Revolve's optimum.
    """
    if checkpoints in ("all", "sqrt") or not kept:
        return kept

    def cost(states: Sequence[int]) -> int:
        free = int(free_slots(checkpoints, n_steps, len(states)))
        return sum(revolve(end - start, 1 + free) for start, end in pairwise([*states, n_steps]))

    return min((kept[::stride] for stride in range(1, len(kept) + 1)), key=cost)


def reverse(
    kept: Mapping[int, S], n_steps: int, checkpoints: str | int, advance: Advance[S]
) -> Iterator[tuple[int, S]]:
    """`(n, state at the start of step n)` for n = n_steps - 1, ..., 0."""
    slots = free_slots(checkpoints, n_steps, len(kept))
    for start, end in reversed([*pairwise([*sorted(kept), n_steps])]):
        yield from _stretch(kept[start], start, end, slots, advance)


def _stretch(y: S, low: int, high: int, slots: float, advance: Advance[S]) -> Iterator[tuple[int, S]]:
    """The states of steps high - 1, ..., low from the state y of step low, with `slots` further states."""
    if high - low == 1:
        yield low, y
    elif slots < 1:
        for n in range(high - 1, low, -1):
            yield n, advance(y, low, n)
        yield low, y
    else:
        middle = low + split(high - low, slots)
        yield from _stretch(advance(y, low, middle), middle, high, slots - 1, advance)
        yield from _stretch(y, low, middle, slots, advance)


def split(length: int, slots: float) -> int:
    """After how many of `length` steps Revolve keeps its next state, with `slots` states to keep."""
    if slots >= length - 1:
        return 1
    c = int(slots) + 1  # Revolve counts the state that the stretch starts from
    repeats = 1
    while math.comb(c + repeats, c) < length:
        repeats += 1
    # The left part is repeated once less than the right one, and neither less than it has to be.
    shortest = math.comb(c + repeats - 2, c) if repeats > 1 else 1
    return max(1, shortest, length - math.comb(c - 1 + repeats, c - 1))


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(budget: str | int) -> int:
    """A number of bytes from `2_000_000`, `"500MB"` or `"2GiB"`.

    Raises
    ------
    ValueError
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(budget))
    if not match or match[2].upper() not in UNITS:
        raise ValueError(f"memory_budget is a number of bytes such as '2GiB' or '500MB', got {budget!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])
