"""Whether a tensor with strides may be seen in another shape without a copy."""

from __future__ import annotations

from collections.abc import Sequence

from .sizes import Size, product, same


def regrouped(shape: Sequence[Size], strides: Sequence[Size], into: Sequence[Size]) -> list[Size] | None:
    """The strides of a view of shape `into`; None where there is no such view.

    Dimensions are taken in groups from the right, each as small as both shapes allow: what is merged must lie one after
    the other.
    """
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    new = [d for d, n in enumerate(into) if n != 1]
    result: list[Size] = [1] * len(into)
    ends = [
        product([n for n, _ in old[i:]]) for i in range(len(old), -1, -1)
    ]  # of the last 0, 1, ... dimensions
    o = 0
    while new:
        group, size, there = [], 1, None
        while new and there is None:
            group.append(new.pop())
            size = product((size, into[group[-1]]))
            there = _match(ends, o, size)
        if there is None:
            return None
        dims = old[len(old) - there : len(old) - o]
        if not same([s for _, s in dims[:-1]], [product((s, n)) for n, s in dims[1:]]):
            return None
        step = dims[-1][1]
        for d in group:
            result[d] = step
            step = product((step, into[d]))
        o = there
    return result if o == len(old) else None


def _match(ends: Sequence[Size], o: int, size: Size) -> int | None:
    """The number of last dimensions of which all but `o` have this size together."""
    wanted = product((ends[o], size))
    return next((i for i in range(o + 1, len(ends)) if ends[i] == wanted), None)
