"""The recommendation, from rows that nobody measured."""

from dataclasses import dataclass

import pytest
import torch

from torchaca.report.advice import advise, free_memory, nbytes

EPS = 2e-16


@dataclass(frozen=True)
class Row:
    gradient: str
    error_discrete: float = 0.0
    error_ode: float | None = 1e-4
    seconds: float = 1.0
    memory: int = 1000
    failure: str | None = None
    by_chance: bool = False


ACA = Row("aca", seconds=2.0, memory=10_000)
DIRECT = Row("direct", seconds=1.0, memory=1_000_000)
WRONG = Row("adjoint", error_discrete=0.3, error_ode=0.3, memory=10, seconds=0.1)


def said(*rows, free=10**9, reference=1e-9):
    return advise(rows, rounding=EPS, reference_error=reference, free=free)


def test_direct_where_its_memory_fits():
    advice = said(ACA, DIRECT)
    assert str(advice).startswith("use direct: because")
    assert all(words in advice.reason for words in ("2 times as fast as aca", "1 MB", "from 10 kB"))


@pytest.mark.parametrize("free", [2_000_000, None])
def test_aca_where_it_does_not_or_nobody_knows(free):
    advice = said(ACA, DIRECT, free=free)
    assert advice.gradient == "aca"
    assert "direct gives the same one 2 times as fast, but holds 1 MB" in advice.reason


def test_least_memory_where_nothing_is_faster():
    assert said(ACA, Row("direct", seconds=1.95, memory=10**6)).gradient == "aca"
    assert "the only such here" in said(ACA, WRONG).reason


def test_a_wrong_gradient_is_never_the_advice_while_an_exact_one_is_there():
    advice = said(WRONG, ACA)
    assert advice.gradient == "aca"
    assert "beware of adjoint: its error, 3e-01, is 3.0e+03 times that of aca" in advice.notes


def test_an_error_that_drowns_in_the_solutions_counts_as_exact():
    reversed_in_time = Row("mali", error_discrete=1e-8, memory=10)
    assert said(ACA, reversed_in_time).gradient == "mali"
    assert said(ACA, Row("mali", error_discrete=1e-6, memory=10)).gradient == "aca"


def test_agreement_by_chance_is_not_relied_on():
    lucky = Row("adjoint", memory=10, seconds=0.1, by_chance=True)
    assert said(lucky, ACA).gradient == "aca"
    assert said(lucky).gradient == "adjoint"


def test_the_nearest_where_none_is_exact():
    near = Row("near", error_discrete=0.1, error_ode=0.1)
    assert said(WRONG, near).gradient == "near"
    blind = [Row("far", 0.3, None), Row("near", 0.1, None)]
    assert said(*blind, reference=None).gradient == "near"


def test_a_nearer_one_is_named_but_not_recommended():
    advice = said(ACA, Row("adjoint", error_discrete=1e-4, error_ode=1e-6))
    assert advice.gradient == "aca"
    assert "adjoint is nearer to the ODE's gradient here (1e-06 against 1e-04)" in advice.notes[0]


def test_the_tolerance_is_named_where_the_solution_is_the_error():
    assert "lower rtol and atol" in said(Row("aca", error_ode=0.05)).notes[0]
    assert said(Row("aca", error_ode=1e-3)).notes == ()


def test_a_reference_that_is_no_better_is_said():
    advice = said(Row("aca", error_ode=1e-4), Row("naive", 1e-4, 3e-4), reference=2e-4)
    assert "right only to 2e-04" in advice.notes[0]
    assert len(advice.notes) == 1


def test_none_came_through():
    advice = said(Row("aca", failure="it broke"), Row("direct", error_discrete=float("nan")))
    assert advice.gradient is None
    assert "none of these" in str(advice)


def test_memory():
    assert free_memory(torch.device("cpu")) > 10**6
    assert free_memory(torch.device("meta")) is None
    assert [nbytes(n) for n in (0, 999, 12_345, 2.5e9, 1e15)] == [
        "0 B",
        "999 B",
        "12.3 kB",
        "2.5 GB",
        "1e+03 TB",
    ]
