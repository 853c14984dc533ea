"""Which pairs of rows of two tables a quick test runs over, so that each row of either is met; the others are slow."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def pairs(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """All pairs for `pytest.mark.parametrize`; those that are not on the diagonal are marked slow."""
    rows, columns = list(rows), list(columns)
    quick = {(i % len(rows), i % len(columns)) for i in range(max(len(rows), len(columns)))}
    return [
        pytest.param(row, column, marks=() if (i, j) in quick else pytest.mark.slow)
        for (i, row), (j, column) in product(enumerate(rows), enumerate(columns))
    ]
