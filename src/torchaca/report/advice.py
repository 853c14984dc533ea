"""Which gradient to take, from measured rows, with the reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..log import REMEDIES, GradientError

MEMORY_SHARE = (
    0.1  # of the free memory: a graph that takes more leaves no room for the rest of a training step
)
FASTER = 0.9  # of the other one's time: less is noise
UNSEEN = 1e-3  # of the error that the solution causes anyway: nobody can see that
STEPS = next(iter(REMEDIES))  # the part of steps that are too long for their derivative
COARSE = 1e-2  # a gradient's error that is worth a lower tolerance


class Row(Protocol):
    """What is known of one gradient."""

    @property
    def gradient(self) -> str: ...
    @property
    def failure(self) -> str | None: ...
    @property
    def by_chance(self) -> bool:
        """Whether it is not made to be the exact gradient of the computed solution."""
        ...

    @property
    def error_discrete(self) -> float: ...
    @property
    def error_ode(self) -> float | None: ...
    @property
    def seconds(self) -> float: ...
    @property
    def memory(self) -> int: ...


@dataclass(frozen=True)
class Advice:
    """`gradient` is the one to use (None: none of them), `reason` why, `notes` what else to know."""

    gradient: str | None
    reason: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"use {self.gradient}: {self.reason}" if self.gradient else self.reason


def advise(
    rows: Sequence[Row],
    *,
    rounding: float,
    reference_error: float | None,
    free: int | None,
    parts: GradientError | None = None,
) -> Advice:
    """What the rows say.

    Parameters
    ----------
    rows : sequence of rows
    rounding : float
        Of the state's dtype: a gradient that is off by not much more is the exact one of the computed solution.
    reference_error : float, optional
        The error of the reference of `error_ode`.
    free : int, optional
        Bytes of memory that are free.
    parts : GradientError, optional
        What the exact gradient of the computed solution is off by.
    """
    usable = [row for row in rows if row.failure is None and row.error_discrete < float("inf")]
    if not usable:
        return Advice(None, "none of these gradients came through: see the reasons above")
    close = [
        row for row in usable if row.error_discrete <= max(20 * rounding, UNSEEN * (row.error_ode or 0.0))
    ]
    exact = [row for row in close if not row.by_chance] or close
    if parts is not None and exact and too_long(parts):
        return _beside_the_steps(usable, exact[0], parts)
    best, reason = _best_exact(exact, free) if exact else _nearest(usable)
    return Advice(
        best.gradient,
        reason,
        tuple(_notes(best, [row for row in usable if row not in close], reference_error)),
    )


def too_long(parts: GradientError) -> bool:
    """Whether most of an error that matters is that of steps which are too long for their derivative."""
    return parts > COARSE and parts.largest == STEPS


def _beside_the_steps(usable: Sequence[Row], exact: Row, parts: GradientError) -> Advice:
    """The computed solution's gradient is none of the ODE's: whatever is nearer, and what repairs it."""
    best = min(usable, key=lambda row: float("inf") if row.error_ode is None else row.error_ode)
    own, off = exact.error_ode or 0.0, best.error_ode or 0.0
    why = (
        f"steps that are short enough for the solution are too long for its derivative, and the exact gradient of the "
        f"computed solution ({exact.gradient}) is off by {own:.1e}: use gradient={parts.remedy}"
    )
    if off < COARSE and off < FASTER * own:
        return Advice(best.gradient, f"{why}; {best.gradient} is off by {off:.1e}")
    return Advice(None, why)


def _best_exact(exact: Sequence[Row], free: int | None) -> tuple[Row, str]:
    """The fastest one if its memory is no matter, else the one that holds least."""
    fastest = min(exact, key=lambda row: row.seconds)
    leanest = min(exact, key=lambda row: row.memory)
    what = "because its gradient is the exact one of the computed solution"
    if len(exact) == 1:
        return fastest, f"{what}, the only such here"
    if fastest is leanest or fastest.seconds > FASTER * leanest.seconds:
        return (
            leanest,
            f"{what}, nothing exact is clearly faster here, and it holds least, {nbytes(leanest.memory)}",
        )
    ratio = leanest.seconds / fastest.seconds
    if free is not None and fastest.memory <= MEMORY_SHARE * free:
        return fastest, (
            f"{what}, {ratio:.2g} times as fast as {leanest.gradient}, and the {nbytes(fastest.memory)} that it "
            f"holds fit ({nbytes(free)} are free). When they no longer do, {leanest.gradient} gives the same gradient "
            f"from {nbytes(leanest.memory)}"
        )
    room = "how much is free is not known" if free is None else f"{nbytes(free)} are free"
    return leanest, (
        f"{what} and holds {nbytes(leanest.memory)}. {fastest.gradient} gives the same one {ratio:.2g} times as "
        f"fast, but holds {nbytes(fastest.memory)} ({room})"
    )


def _nearest(usable: Sequence[Row]) -> tuple[Row, str]:
    if all(row.error_ode is None for row in usable):
        best = min(usable, key=lambda row: row.error_discrete)
        return best, "because it is nearest to the exact gradient of the computed solution, among these"
    best = min(usable, key=lambda row: row.error_ode if row.error_ode is not None else float("inf"))
    return (
        best,
        "because it is nearest to the gradient of the ODE, among these; none of them is the computed one's",
    )


def _notes(best: Row, others: Sequence[Row], reference_error: float | None) -> list[str]:
    own = best.error_ode
    if own is None or reference_error is None:
        return []
    notes = []
    if reference_error > 0.3 * own:
        notes.append(
            f"the reference of the ODE's gradient is itself right only to {reference_error:.0e}: smaller errors than "
            "that cannot be told apart"
        )
    elif own > COARSE and best.error_discrete < 0.1 * own:
        notes.append(
            f"the error of {best.gradient}, {own:.0e}, is the solution's, not the gradient method's: lower rtol and "
            "atol, or take smaller steps, if that is too much"
        )
    for row in others:
        if row is best or row.error_ode is None:
            continue
        if row.error_ode > 2 * own and row.error_ode > 3 * reference_error:
            times = f"{row.error_ode / own:.1e} times" if own else "infinitely often"
            notes.append(
                f"beware of {row.gradient}: its error, {row.error_ode:.0e}, is {times} that of {best.gradient}"
            )
        elif row.error_ode < 0.5 * own and own > 3 * reference_error:
            notes.append(
                f"{row.gradient} is nearer to the ODE's gradient here ({row.error_ode:.0e} against {own:.0e}), which "
                f"is no law; with a lower tolerance {best.gradient} comes there too"
            )
    return notes


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where the device keeps its tensors, None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    names = getattr(os, "sysconf_names", {})
    if device.type != "cpu" or not {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return None
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def nbytes(n: float) -> str:
    """`"12.3 kB"`."""
    power = 0
    while n >= 1000 and power < 4:
        n, power = n / 1000, power + 1
    return f"{n:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
