"""Which combinations of rows of several tables a quick test runs over; the others are slow.

A covering array of strength 1 meets each row of each table, one of strength 2 each pair of rows of any two tables:
of tables of 15, 10, 6 and 2 rows, 15 or 150 of the 1800 combinations.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Indices = tuple[int, ...]


def array(sizes: Sequence[int], strength: int) -> list[Indices]:
    """Indices of rows such that every `strength` tables of these sizes show all combinations of their rows.

    Begins with a diagonal, which meets each row; then each line is the combination that meets most of what is missing,
    the first one in lexicographic order. The same sizes give the same array.
    """
    if not 1 <= strength <= len(sizes) or not all(sizes):
        raise ValueError(f"no array of strength {strength} for tables of {list(sizes)} rows")

    def met(line: Indices) -> set[tuple[Indices, Indices]]:
        return {(at, tuple(line[i] for i in at)) for at in combinations(range(len(sizes)), strength)}

    lines = [tuple(i % size for size in sizes) for i in range(max(sizes))]
    everything = {line: met(line) for line in product(*map(range, sizes))}
    missing = set().union(*everything.values()).difference(*(everything[line] for line in lines))
    while missing:
        best = max(everything, key=lambda line: len(everything[line] & missing))
        lines.append(best)
        missing -= everything[best]
    return lines


def covering(*tables: Iterable[Any], strength: int) -> list[Any]:
    """All combinations of rows for `pytest.mark.parametrize`; those outside the covering array are marked slow."""
    rows = [list(table) for table in tables]
    quick = set(array([len(table) for table in rows], strength))
    return [
        pytest.param(
            *(table[i] for table, i in zip(rows, line)), marks=() if line in quick else pytest.mark.slow
        )
        for line in product(*(range(len(table)) for table in rows))
    ]


def pairs(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """All pairs of rows of two tables; a quick test meets each row of either."""
    return covering(rows, columns, strength=1)
