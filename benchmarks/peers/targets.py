"""What torchaca promises beside its peers, and whether the rows keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .contestants import BATCH, BATCH_COMPILED, BY_HAND, COMPILED, COMPILED_KEPT, CONTINUOUS, KEPT, LANES
from .measure import Row

Tables = dict[str, list[Row]]
F_DOMINATES = ("conv",)  # where nearly all time is f's
LIBRARIES = ("torchdiffeq", "torchode", "torchdyn")


@dataclass(frozen=True)
class Verdict:
    """One promise: `measured` must be at most `limit`, or at least where `at_least`; None: nothing to compare."""

    promise: str
    workload: str
    against: str
    limit: float
    measured: float | None
    at_least: bool = False

    @property
    def outcome(self) -> str:
        """`met`, `missed`, or a dash."""
        if self.measured is None:
            return "-"
        return (
            "met"
            if (self.measured >= self.limit if self.at_least else self.measured <= self.limit)
            else "missed"
        )


def verdicts(tables: Tables) -> list[Verdict]:
    """Every promise whose workload was measured."""
    found = [*_compiled(tables), *_rows(tables)]
    for name, rows in tables.items():
        found += _eager(name, rows)
    return found


def _compiled(tables: Tables) -> list[Verdict]:
    found = []
    against_diffrax = [
        (COMPILED, "small", 0.5),
        (COMPILED, "conv", 1.0),
        (COMPILED, "middle", 1.15),
        (COMPILED_KEPT, "middle", 1.0),
        (COMPILED, "three-body", 0.25),
    ]
    for name, workload, limit in against_diffrax:
        ratio = _ratio(tables.get(workload, []), name, "diffrax", _total)
        found.append(Verdict(f"{name}: training step, of diffrax's", workload, "diffrax", limit, ratio))
    ratio = _ratio(tables.get("three-body", []), COMPILED, BY_HAND, _total)
    found.append(Verdict(f"{COMPILED}: training step, of {BY_HAND}'s", "three-body", BY_HAND, 4.0, ratio))
    worse = _ratio(tables.get("three-body", []), COMPILED, "diffrax", _gradient_error)
    promise = f"{COMPILED}: error of the gradient, of diffrax's"
    found.append(Verdict(promise, "three-body", "diffrax", 1.0, worse))
    for workload, limit in (("small", 10.0), ("three-body", 50.0)):
        ratio = _ratio(tables.get(workload, []), "torchdiffeq odeint", COMPILED, _total)
        promise = f"torchdiffeq odeint's training step, of {COMPILED}'s"
        found.append(Verdict(promise, workload, "torchdiffeq odeint", limit, ratio, at_least=True))
    return [v for v in found if v.workload in tables]


def _rows(tables: Tables) -> list[Verdict]:
    """Those of samples with steps of their own."""
    oscillators = tables.get("van-der-pol", [])
    torchode = min(
        (r for r in oscillators if r.reason is None and r.contestant.library == "torchode"),
        key=_total,
        default=None,
    )
    best = "torchode" if torchode is None else torchode.contestant.name
    found = []
    for name, whom, other, workload, limit in (
        (BATCH, "torchode's best", best, "van-der-pol", 0.8),
        (BATCH_COMPILED, "torchode's best", best, "van-der-pol", 0.1),
        (BATCH_COMPILED, "diffrax's vmap", "diffrax, vmap", "van-der-pol", 0.25),
        (BATCH_COMPILED, "joint steps', compiled,", COMPILED, "lorenz", 1.0),
    ):
        ratio = _ratio(tables.get(workload, []), name, other, _total)
        found.append(Verdict(f"{name}: training step, of {whom}", workload, other, limit, ratio))
    return [v for v in found if v.workload in tables]


def _eager(workload: str, rows: list[Row]) -> list[Verdict]:
    peers = [r for r in rows if r.reason is None and r.contestant.library in LIBRARIES]
    adjoints = [r for r in rows if r.reason is None and r.contestant.gradient == CONTINUOUS]
    adjoints = [r for r in adjoints if r.contestant.library != "diffrax"]
    default_limit = 4 / 3 if workload in F_DOMINATES else 1.0
    found = []
    for name, limit, rivals, whom in (
        (KEPT, 1.0, peers, "fastest PyTorch peer"),
        ("torchaca", default_limit, peers, "fastest PyTorch peer"),
        (LANES, 1.0, peers, "fastest PyTorch peer"),
        (KEPT, 1.0, adjoints, "fastest continuous adjoint"),
        ("torchaca", 1.0, adjoints, "fastest continuous adjoint"),
    ):
        fastest = min(rivals, key=_total, default=None)
        if fastest is not None and any(row.contestant.name == name for row in rows):
            ratio = _ratio(rows, name, fastest.contestant.name, _total)
            promise = f"{name}: training step, of the {whom}'s"
            found.append(Verdict(promise, workload, fastest.contestant.name, limit, ratio))
    return found


def _total(row: Row) -> float:
    return row.total


def _gradient_error(row: Row) -> float:
    return float("nan") if row.gradient_error is None else row.gradient_error


def _ratio(rows: Sequence[Row], name: str, other: str, value: Callable[[Row], float]) -> float | None:
    """`value` of one row over that of the other; None where one of them has none."""
    found = {r.contestant.name: value(r) for r in rows if r.reason is None}
    if name not in found or other not in found:
        return None
    return found[name] / found[other]
