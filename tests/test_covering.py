"""Covering arrays: what is quick meets what it says, and what is not quick is slow and not lost."""

from itertools import combinations, product

import pytest
from covering import array, covering, pairs

SIZES = [
    (1,),
    (5,),
    (1, 1),
    (4, 4),
    (4, 6),
    (7, 2),
    (2, 3, 4),
    (3, 3, 3),
    (5, 1, 2),
    (4, 3, 2, 2),
    (12, 9, 3),
]


def strengths(sizes):
    return [(sizes, strength) for strength in range(1, min(len(sizes), 3) + 1)]


@pytest.mark.parametrize(
    ("sizes", "strength"), [case for sizes in SIZES for case in strengths(sizes)], ids=str
)
def test_every_combination_of_rows_of_so_many_tables_is_met(sizes, strength):
    lines = array(sizes, strength)
    for tables in combinations(range(len(sizes)), strength):
        met = {tuple(line[i] for i in tables) for line in lines}
        assert met == set(product(*(range(sizes[i]) for i in tables)))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_as_few_lines_as_there_have_to_be(sizes):
    assert len(array(sizes, 1)) == max(sizes)
    if len(sizes) > 1:
        largest, second = sorted(sizes, reverse=True)[:2]
        lines = array(sizes, 2)
        assert len(lines) == len(set(lines))
        assert largest * second <= len(lines) <= 1.5 * largest * second


def test_the_same_sizes_give_the_same_array():
    assert array((2, 2, 2), 2) == [(0, 0, 0), (1, 1, 1), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert array((12, 9, 3), 2) == array((12, 9, 3), 2)


@pytest.mark.parametrize(("sizes", "strength"), [((3, 2), 0), ((3, 2), 3), ((3, 0), 1), ((), 1)])
def test_an_array_that_there_is_not(sizes, strength):
    with pytest.raises(ValueError, match=f"no array of strength {strength} for tables of"):
        array(sizes, strength)


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_all_combinations_are_quick_or_slow(strength):
    tables = "abcd", (1, 2, 3), [True, False]
    found = covering(*tables, strength=strength)
    assert [case.values for case in found] == list(product(*tables))
    quick = {case.values for case in found if not case.marks}
    assert quick == {(tables[0][i], tables[1][j], tables[2][k]) for i, j, k in array((4, 3, 2), strength)}
    marks = {case.values: [mark.name for mark in case.marks] for case in found}
    assert all(names == ([] if values in quick else ["slow"]) for values, names in marks.items())


def test_pairs_are_quick_on_the_diagonal():
    assert [case.values for case in pairs("abc", "xy") if not case.marks] == [
        ("a", "x"),
        ("b", "y"),
        ("c", "x"),
    ]
